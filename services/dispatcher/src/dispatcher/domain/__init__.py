"""Pure rules: `eligibility` says what is reported, `jobs` how a job lives."""
