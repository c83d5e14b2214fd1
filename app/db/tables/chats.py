"""Chats of the console, whose tickets name them (see app/services/chats.py), named instructions, and ratings."""

from sqlalchemy import (
    Boolean,
    CheckConstraint,
    Column,
    ForeignKey,
    Index,
    Integer,
    SmallInteger,
    Table,
    Text,
    UniqueConstraint,
    func,
    text,
)
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
    # The use of it whose questions were noted for the search by meaning.
    Column("noticed_at", Moment),
    Index("chats_by_owner", "owner_id", "used_at"),
    Index("chats_unnoticed", "used_at", postgresql_where=text("noticed_at IS NULL OR noticed_at < used_at")),
    Index("chats_age", "used_at"),
)

# Named texts that chats are begun with; what a child says goes on from its parent's text.
instructions = Table(
    "instructions",
    metadata,
    Column("id", UUID, primary_key=True),
    Column("owner_id", Integer, nullable=False),
    Column("key_id", UUID),
    Column("name", Text, nullable=False),
    Column("text", Text, nullable=False),
    Column("parent_id", UUID, ForeignKey("instructions.id")),
    # Read by all owners.
    Column("shared", Boolean, nullable=False, server_default="false"),
    Column("created_at", Moment, nullable=False, server_default=func.now()),
    Column("changed_at", Moment, nullable=False, server_default=func.now()),
    UniqueConstraint("owner_id", "name"),
    Index("instructions_shared", "id", postgresql_where=text("shared")),
    Index("instructions_by_parent", "parent_id"),
)

# What people think of answers: 1 for a good one, -1 for a bad one.
ratings = Table(
    "ratings",
    metadata,
    Column("id", UUID, primary_key=True, server_default=func.uuidv7()),
    Column("result_id", UUID, ForeignKey("results.id", ondelete="CASCADE"), nullable=False),
    Column("owner_id", Integer, nullable=False),
    Column("key_id", UUID),
    Column("rating", SmallInteger, nullable=False),
    Column("comment", Text),
    Column("created_at", Moment, nullable=False, server_default=func.now()),
    UniqueConstraint("result_id", "key_id", postgresql_nulls_not_distinct=True),
    CheckConstraint("rating IN (-1, 1)", name="rating"),
    Index("ratings_by_owner", "owner_id", "id"),
)
