"""`python -m fhir_writer`."""

from fhir_writer.app import main

if __name__ == "__main__":
    raise SystemExit(main())
