"""Alembic environment: migrates over the connection that the service hands in."""

from alembic import context

from dicom_listener.adapters.tables import metadata

context.configure(connection=context.config.attributes["connection"], target_metadata=metadata)
with context.begin_transaction():
    context.run_migrations()
