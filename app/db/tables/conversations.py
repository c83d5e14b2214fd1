"""Conversations: items that responses begin with and add to."""

from sqlalchemy import BigInteger, Column, ForeignKey, Identity, Index, Integer, Table, Text, UniqueConstraint, func
from sqlalchemy.dialects.postgresql import JSONB, UUID

from app.db.tables.base import Moment, metadata

conversations = Table(
    "conversations",
    metadata,
    Column("id", UUID, primary_key=True),
    Column("owner_id", Integer, nullable=False),
    Column("key_id", UUID),
    Column("metadata", JSONB(none_as_null=True)),
    Column("created_at", Moment, nullable=False, server_default=func.now()),
    # When something was added to it last: the retention counts from then.
    Column("used_at", Moment, nullable=False, server_default=func.now()),
    Index("conversations_age", "used_at"),
)

conversation_items = Table(
    "conversation_items",
    metadata,
    Column("conversation_id", UUID, ForeignKey("conversations.id", ondelete="CASCADE"), primary_key=True),
    # Their order; whoever adds some holds the conversation's row.
    Column("position", BigInteger, Identity(always=True), primary_key=True),
    Column("item_id", Text, nullable=False),
    # As the API shows it.
    Column("item", JSONB, nullable=False),
    UniqueConstraint("conversation_id", "item_id"),
)
