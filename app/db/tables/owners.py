"""Owners, their keys, and what is counted and noted of them."""

from sqlalchemy import (
    ARRAY,
    BigInteger,
    CheckConstraint,
    Column,
    Date,
    Double,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    SmallInteger,
    String,
    Table,
    Text,
    func,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB, UUID

from app.db.tables.base import Moment, metadata

# The owner of prompts that nobody may read; no row has this id.
NOBODY = -1

# Whom contexts, results, files and batches belong to; 0 is whoever calls without a key.
owners = Table(
    "owners",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("name", String(200), nullable=False, unique=True),
    Column("weight", SmallInteger, nullable=False, server_default="1"),
    # Signs the webhooks of this owner (Standard Webhooks); made on first use.
    Column("webhook_secret", Text),
    # The one before, which signs beside it for a while after a rotation.
    Column("old_webhook_secret", Text),
    Column("old_webhook_secret_until", Moment),
    Column("created_at", Moment, nullable=False, server_default=func.now()),
    CheckConstraint("weight > 0", name="weight_positive"),
)

api_keys = Table(
    "api_keys",
    metadata,
    Column("id", UUID, primary_key=True),
    Column("owner_id", Integer, ForeignKey("owners.id"), nullable=False),
    Column("name", String(200), nullable=False),
    # SHA-256 of the key: it is random, so a slow hash would add nothing.
    Column("secret_hash", LargeBinary, nullable=False, unique=True),
    Column("hint", Text, nullable=False),
    Column("scopes", ARRAY(Text), nullable=False),
    Column("created_at", Moment, nullable=False, server_default=func.now()),
    Column("expires_at", Moment),
    Column("revoked_at", Moment),
    Column("requests_per_minute", Integer),
    Column("pending_limit", Integer),
    Column("tokens_per_day", BigInteger),
    Column("webhook", JSONB(none_as_null=True)),
    # Who uses it, for people.
    Column("person", String(200)),
    # Ids as in GET /v1/models, a model's own name standing for its adapters too; null allows all.
    Column("models", ARRAY(Text)),
    Column("tokens_per_month", BigInteger),
    Column("dollars_per_day", Double),
    Column("dollars_per_month", Double),
    # What the files of its owner may come to when it uploads one; null for the setting.
    Column("storage_bytes", BigInteger),
)

# Browsers that are logged in at the console; a session ends with its key.
console_sessions = Table(
    "console_sessions",
    metadata,
    # SHA-256 of the cookie's token, which is random.
    Column("digest", LargeBinary, primary_key=True),
    Column("key_id", UUID, ForeignKey("api_keys.id", ondelete="CASCADE"), nullable=False),
    Column("created_at", Moment, nullable=False, server_default=func.now()),
    Column("expires_at", Moment, nullable=False),
)

# One row for each Idempotency-Key of the last day; `resource_id` is what it made.
idempotency_keys = Table(
    "idempotency_keys",
    metadata,
    Column("owner_id", Integer, primary_key=True, autoincrement=False, server_default="0"),
    Column("key", String(255), primary_key=True),
    Column("fingerprint", LargeBinary, nullable=False),
    Column("resource_id", UUID, nullable=False),
    Column("created_at", Moment, nullable=False, server_default=func.now()),
    Index("idempotency_keys_age", "created_at"),
)

# Counts that add up: each settling statement appends a few rows, and the dispatcher merges those of a day.
usage = Table(
    "usage",
    metadata,
    Column("day", Date, nullable=False),
    Column("owner_id", Integer, nullable=False),
    Column("key_id", UUID),
    Column("model", Text, nullable=False),
    Column("requests", BigInteger, nullable=False),
    Column("failures", BigInteger, nullable=False),
    Column("prompt_tokens", BigInteger, nullable=False),
    Column("completion_tokens", BigInteger, nullable=False),
    Column("gpu_seconds", Double, nullable=False),
    # Dollars for those seconds whose server has a known price; null for none.
    Column("cost", Double),
    # The rented host that was used; null for other servers.
    Column("host_id", UUID),
    # When the tickets ended, and how those that failed: until they are summed by the minute.
    Column("minute", Moment),
    Column("error_code", Text),
    Index("usage_by_owner", "owner_id", "day"),
    Index("usage_by_day", "day"),
    Index("usage_by_host", "day", postgresql_where=text("host_id IS NOT NULL")),
)

# Requests of limited keys by second (Unix time), added up over all API processes; kept for two minutes.
request_counts = Table(
    "request_counts",
    metadata,
    Column("key_id", UUID, primary_key=True),
    Column("second", BigInteger, primary_key=True, autoincrement=False),
    Column("requests", Integer, nullable=False),
)

# Who did what to keys, and to what another made. Triggers refuse every change; see migration 0005.
audit = Table(
    "audit",
    metadata,
    Column("id", UUID, primary_key=True, server_default=text("uuidv7()")),
    Column("created_at", Moment, nullable=False, server_default=func.now()),
    Column("action", Text, nullable=False),
    Column("actor_key_id", UUID),
    # Who it was apart from a key: `api`, or the user of a command.
    Column("actor", Text, nullable=False),
    # Whose the subject is.
    Column("owner_id", Integer),
    Column("subject", Text, nullable=False),
    # Which key had made it.
    Column("subject_key_id", UUID),
    Column("details", JSONB(none_as_null=True)),
    Index("audit_age", "created_at"),
)
