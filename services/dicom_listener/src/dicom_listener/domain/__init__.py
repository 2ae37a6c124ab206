"""Pure rules of receiving: no input or output, no clock, no framework."""
