"""pynetdicom and SQLAlchemy behind the ports."""
