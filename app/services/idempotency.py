"""Idempotency-Key: the same request with the same key makes one thing, however often it is sent."""

from hashlib import sha256
from typing import Any
from uuid import UUID

from pydantic_core import to_json

from app.errors import IdempotencyMismatch
from app.queue.statements.keys import IDEMPOTENCY_HOURS
from app.queue.store import QueueStore
from app.queue.ticket import Idempotency


def idempotency_of(key: str | None, *request: Any) -> Idempotency | None:
    """The key with a digest of what is asked for; None without a key."""
    return None if key is None else Idempotency(key, sha256(to_json(request)).digest())


async def made_before(store: QueueStore, owner_id: int, idempotency: Idempotency | None) -> UUID | None:
    """The id that an earlier request with this key made; None where there was none.

    Raises:
        IdempotencyMismatch: it was another request.
    """
    if idempotency is None:
        return None
    found = await store.key_in_use(owner_id, idempotency.key)
    if found is None:
        return None
    fingerprint, resource_id = found
    if fingerprint != idempotency.fingerprint:
        raise IdempotencyMismatch(
            "This Idempotency-Key came with another request before: use a key of its own for each. "
            f"Keys are kept for {IDEMPOTENCY_HOURS} hours."
        )
    return resource_id
