"""Database, FHIR server and HTTP."""
