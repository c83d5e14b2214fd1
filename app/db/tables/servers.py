"""Servers, and the slots of each model on each."""

from sqlalchemy import BigInteger, CheckConstraint, Column, Double, Integer, String, Table, Text, func, text
from sqlalchemy.dialects.postgresql import JSONB, UUID

from app.db.tables.base import Moment, metadata

# Where tickets may be run. What TRITON_URLS and the servers file list is written here by the processes that read them.
servers = Table(
    "servers",
    metadata,
    Column("id", UUID, primary_key=True, server_default=text("uuidv7()")),
    Column("name", String(200), nullable=False, unique=True),
    Column("kind", Text, nullable=False),
    # results.server and attempts.server hold this.
    Column("address", Text, nullable=False, unique=True),
    # Aliases, their name to ours; where there are some, only those models are offered.
    Column("models", JSONB, nullable=False, server_default="{}"),
    # Requests of each model at once; null for MODEL_CONCURRENCY.
    Column("concurrency", Integer),
    # Dollars an hour, and dollars for a million tokens.
    Column("hourly_price", Double),
    Column("prompt_token_price", Double),
    Column("completion_token_price", Double),
    # In seconds: connect, first_token, between_tokens, total; what is missing is the service's own.
    Column("timeouts", JSONB, nullable=False, server_default="{}"),
    # Where the secret is, never the secret: env:NAME or file:PATH.
    Column("credential", Text),
    # The rented host behind it.
    Column("host_id", UUID),
    Column("wanted", Text, nullable=False, server_default="active"),
    Column("origin", Text, nullable=False, server_default="api"),
    # When a process last found it in its environment or file.
    Column("seen_at", Moment, nullable=False, server_default=func.now()),
    Column("created_at", Moment, nullable=False, server_default=func.now()),
    Column("updated_at", Moment, nullable=False, server_default=func.now()),
    CheckConstraint("wanted IN ('active', 'draining', 'disabled')", name="wanted_known"),
    CheckConstraint("origin IN ('api', 'environment', 'file')", name="origin_known"),
    CheckConstraint("concurrency > 0", name="concurrency_positive"),
)

# The slots of a model on a server, one row each, and what was done in it; see app/queue/slots.py.
server_slots = Table(
    "server_slots",
    metadata,
    Column("server", Text, primary_key=True),
    Column("model", Text, primary_key=True),
    Column("number", Integer, primary_key=True, autoincrement=False),
    # The claim that has it, up to the end of its lease.
    Column("token", UUID),
    Column("until", Moment, nullable=False, server_default="-infinity"),
    Column("attempts", BigInteger, nullable=False, server_default="0"),
    Column("prompt_tokens", BigInteger, nullable=False, server_default="0"),
    Column("completion_tokens", BigInteger, nullable=False, server_default="0"),
    Column("gpu_seconds", Double, nullable=False, server_default="0"),
    Column("cost", Double),
    Column("error_code", Text),
    Column("error_message", Text),
    Column("error_at", Moment),
    # No index but the key, so that every change stays on its page.
    postgresql_with={"fillfactor": "40"},
)
