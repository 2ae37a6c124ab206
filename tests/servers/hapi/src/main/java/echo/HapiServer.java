package echo;

import ca.uhn.fhir.context.FhirContext;
import ca.uhn.fhir.context.support.IValidationSupport;
import ca.uhn.fhir.jpa.api.config.JpaStorageSettings;
import ca.uhn.fhir.jpa.api.dao.IFhirSystemDao;
import ca.uhn.fhir.jpa.interceptor.UserRequestRetryVersionConflictsInterceptor;
import ca.uhn.fhir.jpa.provider.IJpaSystemProvider;
import ca.uhn.fhir.jpa.provider.JpaCapabilityStatementProvider;
import ca.uhn.fhir.jpa.search.DatabaseBackedPagingProvider;
import ca.uhn.fhir.rest.server.RestfulServer;
import ca.uhn.fhir.rest.server.interceptor.RequestValidatingInterceptor;
import ca.uhn.fhir.rest.server.provider.ResourceProviderFactory;
import ca.uhn.fhir.rest.server.util.ISearchParamRegistry;
import ca.uhn.fhir.validation.ResultSeverityEnum;
import org.eclipse.jetty.ee10.servlet.ServletContextHandler;
import org.eclipse.jetty.ee10.servlet.ServletHolder;
import org.eclipse.jetty.http.UriCompliance;
import org.eclipse.jetty.server.HttpConnectionFactory;
import org.eclipse.jetty.server.Server;
import org.eclipse.jetty.server.ServerConnector;
import org.hl7.fhir.common.hapi.validation.validator.FhirInstanceValidator;
import org.springframework.context.annotation.AnnotationConfigApplicationContext;

/**
 * A strict FHIR R4 server for the tests: HAPI's JPA server behind an embedded Jetty on loopback, with every request
 * validated. Settings: {@code -Dhapi.port}, {@code -Dhapi.jdbc}. The service is at {@code /fhir}.
 */
public final class HapiServer {

    private HapiServer() {}

    @SuppressWarnings({"rawtypes", "unchecked"}) // HAPI's own constructor takes the raw type
    private static RestfulServer restfulServer(AnnotationConfigApplicationContext spring) {
        RestfulServer server = new RestfulServer(spring.getBean(FhirContext.class));
        IFhirSystemDao dao = spring.getBean(IFhirSystemDao.class);
        IValidationSupport definitions = spring.getBean(IValidationSupport.class);
        server.registerProviders(spring.getBean(ResourceProviderFactory.class).createProviders());
        server.registerProvider(spring.getBean(IJpaSystemProvider.class));
        server.setServerConformanceProvider(new JpaCapabilityStatementProvider(
                server, dao, spring.getBean(JpaStorageSettings.class), spring.getBean(ISearchParamRegistry.class),
                definitions));
        server.setPagingProvider(spring.getBean(DatabaseBackedPagingProvider.class));
        // retries a conflicting write inside the server, only for clients that ask for it by header
        server.registerInterceptor(new UserRequestRetryVersionConflictsInterceptor());
        // without it HAPI takes a DiagnosticReport without a code and silently drops unknown elements
        RequestValidatingInterceptor strict = new RequestValidatingInterceptor();
        strict.addValidatorModule(new FhirInstanceValidator(definitions));
        strict.setFailOnSeverity(ResultSeverityEnum.ERROR);
        server.registerInterceptor(strict);
        return server;
    }

    public static void main(String[] arguments) throws Exception {
        AnnotationConfigApplicationContext spring = new AnnotationConfigApplicationContext(Storage.class);
        Server jetty = new Server();
        ServerConnector connector = new ServerConnector(jetty);
        connector.setHost("127.0.0.1");
        connector.setPort(Integer.getInteger("hapi.port"));
        // FHIR search values may hold an escaped slash, which Jetty refuses by default
        connector.getConnectionFactory(HttpConnectionFactory.class)
                .getHttpConfiguration()
                .setUriCompliance(UriCompliance.LEGACY);
        jetty.addConnector(connector);
        ServletContextHandler web = new ServletContextHandler("/");
        web.addServlet(new ServletHolder(restfulServer(spring)), "/fhir/*");
        jetty.setHandler(web);
        Runtime.getRuntime().addShutdownHook(new Thread(() -> {
            try {
                jetty.stop();
            } catch (Exception problem) {
                System.err.println("Jetty did not stop cleanly: " + problem);
            }
            spring.close();
        }));
        jetty.start();
        System.out.println("listening on 127.0.0.1:" + connector.getLocalPort());
    }
}
