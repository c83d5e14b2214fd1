"""Comparisons: one prompt, sent to several models."""

from sqlalchemy import ARRAY, Boolean, Column, Index, Integer, Table, Text, func
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
