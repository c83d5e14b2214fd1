"""The tables; see docs/architecture.md."""

from app.db.tables.base import metadata
from app.db.tables.changed_settings import changed_settings
from app.db.tables.chats import chats, instructions, ratings
from app.db.tables.comparisons import comparison_picks, comparisons
from app.db.tables.contexts import contexts
from app.db.tables.conversations import conversation_items, conversations
from app.db.tables.files import batches, file_chunks, files
from app.db.tables.hosts import budget_alerts, capacity_leader, host_charges, host_events, hosts, pools
from app.db.tables.log_lines import log_lines
from app.db.tables.minutes import minute_counts
from app.db.tables.models import models, ordered_models, set_aside_models
from app.db.tables.owners import (
    api_keys,
    audit,
    console_sessions,
    idempotency_keys,
    owners,
    request_counts,
    usage,
)
from app.db.tables.question_vectors import question_vectors
from app.db.tables.results import attempts, output_files, result_events, results
from app.db.tables.servers import server_slots, servers
from app.db.tables.uploads import uploads
from app.db.tables.webhooks import webhook_deliveries
from app.db.tables.words import ticket_words, ticket_words_progress

__all__ = [
    "api_keys",
    "attempts",
    "audit",
    "batches",
    "budget_alerts",
    "capacity_leader",
    "changed_settings",
    "chats",
    "comparison_picks",
    "comparisons",
    "console_sessions",
    "contexts",
    "conversation_items",
    "conversations",
    "file_chunks",
    "files",
    "host_charges",
    "host_events",
    "hosts",
    "idempotency_keys",
    "instructions",
    "log_lines",
    "metadata",
    "minute_counts",
    "models",
    "ordered_models",
    "output_files",
    "owners",
    "pools",
    "question_vectors",
    "ratings",
    "request_counts",
    "result_events",
    "results",
    "server_slots",
    "servers",
    "set_aside_models",
    "ticket_words",
    "ticket_words_progress",
    "uploads",
    "usage",
    "webhook_deliveries",
]
