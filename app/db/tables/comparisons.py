"""Comparisons: one prompt, sent to several models; and which answer was picked."""

from sqlalchemy import ARRAY, Boolean, Column, Index, Integer, Table, Text, UniqueConstraint, func
from sqlalchemy.dialects.postgresql import UUID

from app.db.tables.base import Moment, metadata

comparisons = Table(
    "comparisons",
    metadata,
    Column("id", UUID, primary_key=True),
    Column("owner_id", Integer, nullable=False),
    Column("key_id", UUID),
    Column("context_id", UUID, nullable=False),
    # Whether the prompt came with the comparison, and goes with it.
    Column("with_prompt", Boolean, nullable=False),
    # The tickets, in the order of the request, and the model of each: kept where a result is removed on its own.
    Column("result_ids", ARRAY(UUID), nullable=False),
    Column("models", ARRAY(Text), nullable=False),
    Column("created_at", Moment, nullable=False, server_default=func.now()),
    Index("comparisons_by_owner", "owner_id", "id"),
)

# Which answer somebody found the best. It has no text, so it stays when the retention takes the comparison.
comparison_picks = Table(
    "comparison_picks",
    metadata,
    Column("id", UUID, primary_key=True),
    Column("owner_id", Integer, nullable=False),
    Column("comparison_id", UUID, nullable=False),
    # Who picked; each key picks once, and may change its mind.
    Column("key_id", UUID),
    Column("context_id", UUID, nullable=False),
    # Null where no answer was better than the others.
    Column("result_id", UUID),
    # In the order of the comparison: the models, and the servers that answered, '' where none did.
    Column("models", ARRAY(Text), nullable=False),
    Column("servers", ARRAY(Text), nullable=False),
    # Those of the answer that was picked.
    Column("model", Text),
    Column("server", Text),
    Column("created_at", Moment, nullable=False, server_default=func.now()),
    UniqueConstraint("comparison_id", "key_id", postgresql_nulls_not_distinct=True),
    Index("comparison_picks_by_owner", "owner_id", "id"),
)
