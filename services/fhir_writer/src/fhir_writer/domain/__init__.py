"""What is written to the EHR and the rules for it: no network, no database, no clock."""
