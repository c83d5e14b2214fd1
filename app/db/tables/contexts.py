"""Prompts."""

from dataclasses import dataclass
from typing import Annotated, Any

from sqlalchemy import CheckConstraint, Column, Index, Integer, Table, Text, func
from sqlalchemy.dialects.postgresql import JSONB, UUID

from app.db.tables.base import Moment, metadata
from app.db.tables.declared import LARGE, columns_of


@dataclass(frozen=True, slots=True)
class Prompt:
    """What a context says: each attribute is a column that a submit, a batch and POST /contexts/ store."""

    # As the engine gets it; for a chat, `messages` rendered with the model's template.
    content: Annotated[str, Column(Text, nullable=False, info=LARGE)]
    messages: Annotated[list[dict[str, Any]] | None, Column(JSONB(none_as_null=True), info=LARGE)] = None
    metadata: Annotated[dict[str, Any] | None, Column(JSONB(none_as_null=True), info=LARGE)] = None


contexts = Table(
    "contexts",
    metadata,
    Column("id", UUID, primary_key=True),
    # No foreign key: each insert would lock the one row of its owner.
    Column("owner_id", Integer, nullable=False, server_default="0"),
    Column("created_at", Moment, nullable=False, server_default=func.now()),
    *columns_of(Prompt),
    CheckConstraint("content <> ''", name="content_not_empty"),
    Index("contexts_by_owner", "owner_id", "id"),
)
