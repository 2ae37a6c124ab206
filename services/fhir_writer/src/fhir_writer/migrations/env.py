"""Alembic runs this with the connection that `Database.migrate` has opened."""

from alembic import context

from fhir_writer.adapters.tables import metadata

context.configure(connection=context.config.attributes["connection"], target_metadata=metadata)
with context.begin_transaction():
    context.run_migrations()
