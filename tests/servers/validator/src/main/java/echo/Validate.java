package echo;

import ca.uhn.fhir.context.FhirContext;
import ca.uhn.fhir.context.support.DefaultProfileValidationSupport;
import ca.uhn.fhir.validation.FhirValidator;
import ca.uhn.fhir.validation.SingleValidationMessage;
import com.fasterxml.jackson.databind.ObjectMapper;
import java.io.IOException;
import java.io.PrintStream;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.Map;
import org.hl7.fhir.common.hapi.validation.support.CommonCodeSystemsTerminologyService;
import org.hl7.fhir.common.hapi.validation.support.InMemoryTerminologyServerValidationSupport;
import org.hl7.fhir.common.hapi.validation.support.SnapshotGeneratingValidationSupport;
import org.hl7.fhir.common.hapi.validation.support.ValidationSupportChain;
import org.hl7.fhir.common.hapi.validation.validator.FhirInstanceValidator;
import org.hl7.fhir.r5.utils.validation.constants.BestPracticeWarningLevel;

/**
 * Judges FHIR R4 files (JSON or XML) with the HL7 validator, offline.
 *
 * <p>Arguments: the files. Output: JSON lines {@code {"file", "severity", "location", "message"}}, and after the
 * findings of each file one line {@code {"file", "done": true}}, so that a reader sees that no file was left out.
 */
public final class Validate {

    private Validate() {}

    private static FhirValidator validator() {
        FhirContext fhir = FhirContext.forR4();
        FhirInstanceValidator rules = new FhirInstanceValidator(new ValidationSupportChain(
                new DefaultProfileValidationSupport(fhir),
                new CommonCodeSystemsTerminologyService(fhir),
                new InMemoryTerminologyServerValidationSupport(fhir),
                new SnapshotGeneratingValidationSupport(fhir)));
        rules.setBestPracticeWarningLevel(BestPracticeWarningLevel.Ignore); // "should have a narrative" and the like
        return fhir.newValidator().registerValidatorModule(rules);
    }

    public static void main(String[] files) throws IOException {
        ObjectMapper json = new ObjectMapper();
        PrintStream out = new PrintStream(System.out, true, StandardCharsets.UTF_8);
        FhirValidator validator = validator();
        for (String file : files) {
            try {
                for (SingleValidationMessage finding :
                        validator.validateWithResult(Files.readString(Path.of(file))).getMessages()) {
                    String location = finding.getLocationString();
                    out.println(json.writeValueAsString(Map.of(
                            "file", file,
                            "severity", finding.getSeverity().getCode(),
                            "location", location == null ? "" : location,
                            "message", String.valueOf(finding.getMessage()))));
                }
            } catch (RuntimeException unreadable) { // the parsers underneath throw what they like
                out.println(json.writeValueAsString(Map.of(
                        "file", file, "severity", "fatal", "location", "",
                        "message", "not readable as FHIR: " + unreadable)));
            }
            out.println(json.writeValueAsString(Map.of("file", file, "done", true)));
        }
    }
}
