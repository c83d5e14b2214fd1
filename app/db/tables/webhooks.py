"""What is told to webhooks: ends of results and batches, and budgets that are reached."""

from sqlalchemy import Column, Computed, Index, Integer, Table, Text, func, text
from sqlalchemy.dialects.postgresql import JSONB, UUID

from app.db.tables.base import Moment, metadata

URL_HOST = r"""COALESCE("substring"(url, '^[a-z]+://(\[[^]]*\]|[^/:?#]+)'::text), ''::text)"""

# What somebody wants to hear of, written in the transaction that makes it so, delivered by the dispatcher.
webhook_deliveries = Table(
    "webhook_deliveries",
    metadata,
    Column("id", UUID, primary_key=True, server_default=text("uuidv7()")),
    Column("owner_id", Integer, nullable=False),
    Column("result_id", UUID),
    Column("batch_id", UUID),
    # What is said of anything else.
    Column("data", JSONB),
    Column("event", Text, nullable=False),
    Column("url", Text, nullable=False),
    # No host takes more than its share of the deliveries under way.
    Column("host", Text, Computed(URL_HOST, persisted=True), nullable=False),
    Column("created_at", Moment, nullable=False, server_default=func.now()),
    # When to try next, or the end of the lease of whoever is trying; null once delivered or given up.
    Column("due_at", Moment, server_default=func.now()),
    Column("give_up_at", Moment, nullable=False, server_default=text("now() + '72:00:00'::interval")),
    Column("tries", Integer, nullable=False, server_default="0"),
    Column("delivered_at", Moment),
    Column("last_error", Text),
    Index("webhook_deliveries_due", "host", "due_at", postgresql_where=text("due_at IS NOT NULL")),
    Index("webhook_deliveries_by_result", "result_id"),
    Index("webhook_deliveries_by_owner", "owner_id", "id"),
)
