"""The worker's ties to the world."""
