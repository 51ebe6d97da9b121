"""Alembic's way in: runs the migrations on the connection, and in the transaction, of ``storage.upgrade``."""

from __future__ import annotations

from alembic import context

from coapgw.storage.tables import REVISION_TABLE, metadata

context.configure(
    connection=context.config.attributes["connection"], target_metadata=metadata, version_table=REVISION_TABLE
)
with context.begin_transaction():
    context.run_migrations()
