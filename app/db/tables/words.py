"""Where words and properties find final tickets: a row for each, made soon after its end; see app/queue/words.py."""

from sqlalchemy import Boolean, CheckConstraint, Column, ForeignKey, Index, Table
from sqlalchemy.dialects.postgresql import TSVECTOR, UUID

from app.db.tables.base import Moment, metadata

ticket_words = Table(
    "ticket_words",
    metadata,
    Column("result_id", UUID, ForeignKey("results.id", ondelete="CASCADE"), primary_key=True),
    Column("words", TSVECTOR, nullable=False),
    # A search reads what was added since the list of pending entries was merged, so that stays short (kB).
    Index(
        "ticket_words_words",
        "words",
        postgresql_using="gin",
        postgresql_with={"gin_pending_list_limit": "512"},
    ),
)

# How far the pass that makes them has come: the end and the id of the last ticket. One row.
ticket_words_progress = Table(
    "ticket_words_progress",
    metadata,
    Column("one", Boolean, primary_key=True, server_default="true"),
    Column("completed_at", Moment, nullable=False),
    Column("result_id", UUID, nullable=False),
    CheckConstraint("one", name="one_row"),
)
