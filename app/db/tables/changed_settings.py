"""Settings that an admin has changed while everything runs."""

from sqlalchemy import UUID, Column, Table, Text, func

from app.db.tables.base import Moment, metadata

# In place of what the environments of all processes say; a setting that is not here is as they say.
changed_settings = Table(
    "changed_settings",
    metadata,
    Column("name", Text, primary_key=True),
    # As an environment variable would have it.
    Column("value", Text, nullable=False),
    Column("changed_at", Moment, nullable=False, server_default=func.now()),
    # Who changed it, as in the audit log.
    Column("actor_key_id", UUID),
    Column("actor", Text, nullable=False),
)
