"""Files, and the batches that read and write them."""

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    Column,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    Table,
    Text,
    func,
    text,
)
from sqlalchemy.dialects.postgresql import INT4MULTIRANGE, JSONB, UUID

from app.db.tables.base import Moment, metadata

# What batches read and write, whole within Postgres, so that any API process can serve it.
files = Table(
    "files",
    metadata,
    Column("id", UUID, primary_key=True),
    Column("owner_id", Integer, nullable=False),
    Column("purpose", Text, nullable=False),
    Column("filename", Text, nullable=False),
    Column("bytes", BigInteger, nullable=False),
    Column("created_at", Moment, nullable=False, server_default=func.now()),
    Column("expires_at", Moment),
    # Who uploaded it, or made the batch that wrote it.
    Column("key_id", UUID),
    # Of a part: the upload, or the batch that has not ended, whose it is. No other file is one.
    Column("upload_id", UUID),
    Index("files_by_owner", "owner_id", "id"),
    Index("files_by_purpose", "owner_id", "purpose", "id"),
    Index("files_by_upload", "upload_id", postgresql_where=text("upload_id IS NOT NULL")),
    Index("files_expiry", "expires_at", postgresql_where=text("expires_at IS NOT NULL")),
)

file_chunks = Table(
    "file_chunks",
    metadata,
    Column("file_id", UUID, ForeignKey("files.id", ondelete="CASCADE"), primary_key=True),
    Column("number", Integer, primary_key=True, autoincrement=False),
    Column("data", LargeBinary, nullable=False),
)

# A batch's lines are results. Whoever works on it, to load or to finalize it, holds the lease under its token.
batches = Table(
    "batches",
    metadata,
    Column("id", UUID, primary_key=True),
    Column("owner_id", Integer, nullable=False),
    Column("key_id", UUID),
    Column("endpoint", Text, nullable=False),
    Column("input_file_id", UUID, nullable=False),
    Column("metadata", JSONB(none_as_null=True)),
    Column("output_seconds", Integer),
    # The servers that may run its lines, as results have it.
    Column("wish", Text, nullable=False, server_default=""),
    # {"url", "events"} of the key, as it was when the batch was made.
    Column("webhook", JSONB(none_as_null=True)),
    Column("status", Text, nullable=False, server_default="validating"),
    # {"total", "data": [{"line", "code", "message", "param"}]}: why it was refused.
    Column("errors", JSONB(none_as_null=True)),
    Column("total", Integer, nullable=False, server_default="0"),
    Column("completed", Integer, nullable=False, server_default="0"),
    Column("failed", Integer, nullable=False, server_default="0"),
    Column("prompt_tokens", BigInteger),
    Column("completion_tokens", BigInteger),
    Column("output_file_id", UUID),
    Column("error_file_id", UUID),
    Column("created_at", Moment, nullable=False, server_default=func.now()),
    Column("expires_at", Moment, nullable=False),
    Column("in_progress_at", Moment),
    Column("finalizing_at", Moment),
    Column("completed_at", Moment),
    Column("failed_at", Moment),
    Column("expired_at", Moment),
    Column("cancelling_at", Moment),
    Column("cancelled_at", Moment),
    Column("lease_token", UUID),
    # Null once the batch is final.
    Column("lease_until", Moment, server_default=func.now()),
    Column("tries", Integer, nullable=False, server_default="0"),
    # Until it is final: the lines that are in its files already, and what they come to.
    Column("written", INT4MULTIRANGE, nullable=False, server_default="{}"),
    Column("tally", JSONB(none_as_null=True)),
    CheckConstraint(
        "CASE WHEN lease_until IS NULL THEN status IN ('failed', 'completed', 'expired', 'cancelled')"
        " ELSE status IN ('validating', 'in_progress', 'finalizing', 'cancelling') END",
        name="status_known",
    ),
    Index("batches_by_owner", "owner_id", "id"),
    Index("batches_by_status", "owner_id", "status", "id"),
    Index("batches_open", "id", postgresql_where=text("lease_until IS NOT NULL")),
)
