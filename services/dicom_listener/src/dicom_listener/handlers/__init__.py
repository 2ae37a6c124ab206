"""Use cases: an object arrives, an association ends, a study becomes complete."""
