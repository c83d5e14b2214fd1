"""SQL of the audit log: who did what to keys, and to what another made. Rows are added and never changed."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any
from uuid import UUID

from app.db.engine import Database

REMOVE = "SELECT audit_remove_before($1, $2)"
RECORD = """
INSERT INTO audit (action, actor_key_id, actor, owner_id, subject, subject_key_id, details)
VALUES ($1, $2, $3, $4, $5, $6, $7)
"""


class Action(StrEnum):
    KEY_CREATED = "key.created"
    KEY_REVOKED = "key.revoked"
    RESULT_CANCELLED = "result.cancelled"
    RESULT_DELETED = "result.deleted"
    CONTEXT_DELETED = "context.deleted"
    COMPARISON_DELETED = "comparison.deleted"
    BATCH_CANCELLED = "batch.cancelled"
    FILE_DELETED = "file.deleted"
    SERVER_ADDED = "server.added"
    SERVER_CHANGED = "server.changed"
    SERVER_REMOVED = "server.removed"
    MODEL_LOAD_ORDERED = "model.load_ordered"
    MODEL_UNLOAD_ORDERED = "model.unload_ordered"
    SETTING_CHANGED = "setting.changed"
    SETTING_RESET = "setting.reset"
    HOST_DRAINED = "host.drained"
    HOST_DESTROYED = "host.destroyed"
    HOST_LOCKED = "host.locked"
    HOST_UNLOCKED = "host.unlocked"


@dataclass(frozen=True, slots=True)
class Actor:
    """Who does something: by a key, or `name` says how it was done without one."""

    key_id: UUID | None
    name: str


KEYLESS = Actor(None, "api, without a key")


def recorded(action: Action, source: str, key: str, name: str, *, subject: str = "id::text") -> str:
    """Appends a row for each row of `source` that another key made; `key` and `name` are the actor's parameters.

    `source` has id, owner_id and key_id. Part of the statement that does it: neither is there without the other.
    """
    return f"""INSERT INTO audit (action, actor_key_id, actor, owner_id, subject, subject_key_id)
    SELECT '{action}', {key}::uuid, {name}::text, owner_id, {subject}, key_id
    FROM {source} WHERE key_id IS DISTINCT FROM {key}::uuid"""  # noqa: S608


async def record(
    connection: Any,
    action: Action,
    actor: Actor,
    owner_id: int | None,
    subject: str,
    subject_key_id: UUID | None = None,
    details: dict[str, Any] | None = None,
) -> None:
    """Appends one row, in the transaction of an asyncpg `connection`."""
    await connection.execute(RECORD, action.value, actor.key_id, actor.name, owner_id, subject, subject_key_id, details)


class AuditStore:
    """Every method raises DatabaseUnavailable when Postgres is out of reach."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def remove(self, before: datetime, limit: int) -> int:
        """Removes the oldest rows made before the moment; returns how many."""
        async with self._database.hot() as connection:
            removed: int = await connection.fetchval(REMOVE, before, limit)
        return removed
