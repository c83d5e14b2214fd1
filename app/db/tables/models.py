"""The models that servers have."""

from sqlalchemy import ARRAY, Boolean, CheckConstraint, Column, ForeignKey, String, Table, Text, func
from sqlalchemy.dialects.postgresql import UUID

from app.db.tables.base import Moment, metadata

models = Table(
    "models",
    metadata,
    Column("name", String(255), primary_key=True),
    Column("version", Text, nullable=False),
    Column("first_seen_at", Moment, nullable=False, server_default=func.now()),
    Column("last_seen_at", Moment, nullable=False, server_default=func.now()),
)

# Models that an admin had a server load: they are loaded again after its restart, until they are unloaded by order.
ordered_models = Table(
    "ordered_models",
    metadata,
    Column("server_id", UUID, ForeignKey("servers.id", onupdate="CASCADE", ondelete="CASCADE"), primary_key=True),
    Column("model", Text, primary_key=True),
    # When the server was last asked to load it.
    Column("asked_at", Moment, nullable=False, server_default=func.now()),
)

# Models of servers that are ready by their word but do not answer. A row outlasts its episode, for its `reloads`.
set_aside_models = Table(
    "set_aside_models",
    metadata,
    Column("server", Text, primary_key=True),
    Column("model", Text, primary_key=True),
    # Null: it answers again.
    Column("since", Moment),
    Column("reason", Text, nullable=False),
    # Known to be dead, not only silent.
    Column("dead", Boolean, nullable=False),
    # When a dispatcher last said so: what none says any longer is not so.
    Column("seen_at", Moment, nullable=False),
    # What is done about it, a sentence.
    Column("note", Text, nullable=False, server_default=""),
    # How far a reload is; whose it is, and until when it holds without a renewal.
    Column("step", Text),
    Column("reloader", Text),
    Column("reload_until", Moment),
    # When the reloads of the last hour began.
    Column("reloads", ARRAY(Moment), nullable=False, server_default="{}"),
    CheckConstraint("step IN ('unload', 'load')", name="step_known"),
)
