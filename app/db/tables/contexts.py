"""Prompts."""

from dataclasses import dataclass
from typing import Annotated, Any

from sqlalchemy import CheckConstraint, Column, Index, Integer, Table, Text, func
from sqlalchemy.dialects.postgresql import JSONB, UUID

from app.db.tables.base import Moment, metadata
from app.db.tables.declared import LARGE, columns_of


@dataclass(slots=True)
class Prompt:
    """What a context says: each attribute is a column that a submit, a batch and POST /contexts/ store."""

    # A text, as the engine gets it. Beside the messages of a chat it is what an older version rendered at the submit.
    content: Annotated[str | None, Column(Text, info=LARGE)] = None
    # A chat, as it came.
    messages: Annotated[list[dict[str, Any]] | None, Column(JSONB(none_as_null=True), info=LARGE)] = None
    # Tensors, as KServe v2 has them: [{"name", "datatype", "shape", "data"}].
    inputs: Annotated[list[dict[str, Any]] | None, Column(JSONB(none_as_null=True), info=LARGE)] = None
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
    CheckConstraint("(num_nonnulls(content, messages) > 0) = (inputs IS NULL)", name="says_something"),
    Index("contexts_by_owner", "owner_id", "id"),
)
