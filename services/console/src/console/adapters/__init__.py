"""SQLAlchemy, HTTP, pydicom."""
