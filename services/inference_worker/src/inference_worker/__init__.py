"""Celery GPU worker: pixels to draft report."""
