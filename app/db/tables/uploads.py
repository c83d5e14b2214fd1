"""Files that come in parts."""

from sqlalchemy import BigInteger, Column, Index, Integer, Table, Text, func
from sqlalchemy.dialects.postgresql import UUID

from app.db.tables.base import Moment, metadata

# Its parts are rows of `files` that name it, until they become one file.
uploads = Table(
    "uploads",
    metadata,
    Column("id", UUID, primary_key=True),
    Column("owner_id", Integer, nullable=False),
    Column("purpose", Text, nullable=False),
    Column("filename", Text, nullable=False),
    # What the parts are to come to.
    Column("bytes", BigInteger, nullable=False),
    # How long the file is kept, in seconds.
    Column("file_seconds", Integer),
    Column("file_id", UUID),
    Column("created_at", Moment, nullable=False, server_default=func.now()),
    Column("expires_at", Moment, nullable=False),
    Column("cancelled_at", Moment),
    Index("uploads_expiry", "expires_at"),
)
