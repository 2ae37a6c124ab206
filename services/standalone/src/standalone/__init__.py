"""The whole flow in one process tree on embedded adapters."""
