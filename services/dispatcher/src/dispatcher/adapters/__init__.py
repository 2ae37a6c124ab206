"""The dispatcher's ties to the world."""
