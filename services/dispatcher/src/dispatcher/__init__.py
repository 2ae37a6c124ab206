"""Decides what is reported, keeps the jobs table, hands jobs to Celery."""
