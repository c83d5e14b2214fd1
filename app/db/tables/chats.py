"""Chats of the console; their tickets name them, see app/services/chats.py."""

from sqlalchemy import Column, Index, Integer, Table, Text, func
from sqlalchemy.dialects.postgresql import UUID

from app.db.tables.base import Moment, metadata

chats = Table(
    "chats",
    metadata,
    Column("id", UUID, primary_key=True),
    Column("owner_id", Integer, nullable=False),
    Column("key_id", UUID),
    Column("title", Text, nullable=False),
    Column("created_at", Moment, nullable=False, server_default=func.now()),
    # When a message was sent in it last: lists and the retention go by it.
    Column("used_at", Moment, nullable=False, server_default=func.now()),
    Index("chats_by_owner", "owner_id", "used_at"),
    Index("chats_age", "used_at"),
)
