"""Posts preliminary DiagnosticReports to a FHIR R4 server."""
