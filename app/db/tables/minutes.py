"""How many tickets ended in each minute."""

from sqlalchemy import BigInteger, Column, Index, Integer, Table, Text

from app.db.tables.base import Moment, metadata

# For lines over an hour and a day. What settles appends to `usage`, of which a dispatcher sums this: see
# app/queue/housekeeping.py. Rows are kept for a few days.
minute_counts = Table(
    "minute_counts",
    metadata,
    Column("owner_id", Integer, primary_key=True, autoincrement=False),
    # When it began.
    Column("minute", Moment, primary_key=True),
    Column("model", Text, primary_key=True),
    # Empty for those that completed.
    Column("error_code", Text, primary_key=True),
    Column("tickets", BigInteger, nullable=False),
    Column("prompt_tokens", BigInteger, nullable=False),
    Column("completion_tokens", BigInteger, nullable=False),
    Index("minute_counts_by_minute", "minute"),
)
