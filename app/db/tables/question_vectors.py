"""Vectors of the questions asked in chats; see app/queue/question_vectors.py.

Plain numbers, so that a database without pgvector has the table too. The index that finds near ones is made where
pgvector is, for the number of numbers that the model's vectors have.
"""

from sqlalchemy import ARRAY, REAL, Column, ForeignKey, Index, Integer, SmallInteger, Table, Text, text
from sqlalchemy.dialects.postgresql import UUID

from app.db.tables.base import metadata

question_vectors = Table(
    "question_vectors",
    metadata,
    # The ticket that asked.
    Column("result_id", UUID, ForeignKey("results.id", ondelete="CASCADE"), primary_key=True),
    Column("owner_id", Integer, nullable=False),
    Column("chat_id", UUID, nullable=False),
    Column("model", Text, nullable=False),
    # Of the length 1; null until it is there.
    Column("vector", ARRAY(REAL)),
    # The ticket that makes it, and which of its texts this is.
    Column("ticket_id", UUID),
    Column("place", SmallInteger),
    Column("tries", SmallInteger, nullable=False, server_default="0"),
    Index("question_vectors_by_owner", "model", "owner_id"),
    Index("question_vectors_wanted", "owner_id", "result_id", postgresql_where=text("vector IS NULL AND tries < 3")),
    Index("question_vectors_by_ticket", "ticket_id", postgresql_where=text("ticket_id IS NOT NULL")),
)
