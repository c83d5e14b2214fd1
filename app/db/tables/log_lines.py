"""The newest log lines of every process."""

from sqlalchemy import BigInteger, Column, Identity, Index, SmallInteger, Table, Text

from app.db.tables.base import Moment, metadata

# Bounded: each kind of process keeps its newest, whoever of it wrote them.
log_lines = Table(
    "log_lines",
    metadata,
    Column("id", BigInteger, Identity(always=True), primary_key=True),
    Column("at", Moment, nullable=False),
    # As Python's logging has it: 20 INFO, 30 WARNING, 40 ERROR.
    Column("level", SmallInteger, nullable=False),
    # api, dispatcher or capacity, and which one of them: host:pid.
    Column("process", Text, nullable=False),
    Column("host", Text, nullable=False),
    Column("logger", Text, nullable=False),
    Column("message", Text, nullable=False),
    Index("log_lines_by_process", "process", "id"),
)
