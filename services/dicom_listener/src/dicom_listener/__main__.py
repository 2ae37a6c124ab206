"""`python -m dicom_listener`."""

from dicom_listener.app import main

raise SystemExit(main())
