"""Webhooks: which are accepted, what became of their deliveries, and the secrets that sign them.

Signatures and payloads follow Standard Webhooks, https://www.standardwebhooks.com.
"""

from __future__ import annotations

import base64
import re
import secrets
from collections.abc import Mapping, Sequence
from datetime import datetime
from enum import StrEnum
from typing import Annotated, Any, Literal
from uuid import UUID

import httpx
from pydantic import BaseModel, ConfigDict, Field

from app.config import Environment, Settings
from app.db.engine import Database
from app.db.tables import results
from app.errors import AppError, DeliveryNotFound, InvalidRequest
from app.key_errors import OwnerNotFound, ScopeMissing
from app.queue.deliveries import DeliveryStore
from app.services.addresses import AddressPolicy, literal
from app.services.callers import Caller, Scope
from app.services.pages import Page
from app.services.results import Results
from app.storable import StorableText

LONGEST_URL = 2000
SECRET_BYTES = 32
OVERLAP_SECONDS = 24 * 3600
# Deliveries in a state are looked for among so many of the newest.
SEARCHED = 20_000
NAME = re.compile(r"[a-z0-9]([a-z0-9_-]*[a-z0-9])?(\.[a-z0-9]([a-z0-9_-]*[a-z0-9])?)*\.?")
LOCAL_NAME = re.compile(r"(.+\.)?localhost\.?")
HIGHEST_PORT = 65535
# Left out of what would be larger than a payload may be, and `request`, which no payload has.
BULKY = ("output", "outputs", "answer", "parameters", "request")
# Those that are not kept come without as well. What a document was compressed to says little of what it comes to, but
# spares a look at those that are large anyway.
ROWS = f"""
SELECT {", ".join(each.name for each in results.c if each.name not in BULKY)}, bulky,
       CASE WHEN NOT bulky THEN output END AS output,
       CASE WHEN NOT bulky THEN outputs END AS outputs,
       CASE WHEN NOT bulky THEN answer END AS answer,
       CASE WHEN bulky THEN '{{}}' ELSE parameters END AS parameters
FROM results, LATERAL (
    SELECT CASE
        WHEN NOT kept OR coalesce(octet_length(output), 0) + coalesce(pg_column_size(outputs), 0)
             + coalesce(pg_column_size(answer), 0) + pg_column_size(parameters) > $2
        THEN true
        ELSE coalesce(octet_length(output), 0) + coalesce(octet_length(outputs::text), 0)
             + coalesce(octet_length(answer::text), 0) + octet_length(parameters::text) > $2
    END AS bulky
) AS size
WHERE id = ANY($1::uuid[])
"""  # noqa: S608

Event = Literal["result.completed", "result.failed"]


class DeliveryState(StrEnum):
    PENDING = "pending"
    DELIVERED = "delivered"
    GIVEN_UP = "given_up"

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> DeliveryState:
        if row["due_at"] is not None:
            return cls.PENDING
        return cls.GIVEN_UP if row["delivered_at"] is None else cls.DELIVERED


class Webhook(BaseModel):
    """Whom to tell of the end of a result."""

    model_config = ConfigDict(extra="forbid", strict=True)

    url: Annotated[StorableText, Field(min_length=1, max_length=LONGEST_URL, examples=["https://example.com/hook"])]
    events: list[Event] = Field(["result.completed", "result.failed"], min_length=1, max_length=2)


def accepted(webhook: Webhook | None, settings: Settings, field: str = "webhook") -> dict[str, Any] | None:
    """The webhook as it is stored, its URL in normal form.

    Names are not resolved here: what they stand for is judged at each delivery.

    Raises:
        InvalidRequest: nothing can or may be delivered to this URL; the error names `field`.
    """
    if webhook is None:
        return None
    try:
        url = web_address(webhook.url, settings)
    except ValueError as error:
        message = str(error)
        name = f"{field}.url"
        raise InvalidRequest(f"{name}: {message}", errors=[{"field": name, "message": message}]) from None
    return {"url": url, "events": sorted(set(webhook.events))}


def web_address(text: str, settings: Settings) -> str:
    """The URL in normal form.

    Raises:
        ValueError: nothing can or may be delivered to it.
    """
    try:
        url = httpx.URL(text).copy_with(fragment=None)
    except httpx.InvalidURL:
        raise ValueError("is not a URL") from None
    if url.scheme not in ("http", "https") or not url.host:
        raise ValueError("must start with https:// and name a host")
    if url.scheme == "http" and settings.environment is Environment.PRODUCTION and not settings.webhook_allow_http:
        raise ValueError("must start with https://; WEBHOOK_ALLOW_HTTP=true allows http:// in production")
    if url.userinfo:
        raise ValueError("must not hold a user name or password; deliveries are signed instead")
    if len(str(url)) > LONGEST_URL:
        raise ValueError(f"is longer than {LONGEST_URL:,} characters")
    if url.port is not None and not 0 < url.port <= HIGHEST_PORT:
        raise ValueError(f"must have a port between 1 and {HIGHEST_PORT}")
    host = url.raw_host.decode("ascii")
    address = literal("127.0.0.1" if LOCAL_NAME.fullmatch(host) else host)
    if address is None and not NAME.fullmatch(host):
        raise ValueError("names no host that exists on the internet")
    policy = AddressPolicy.of(settings.webhook_allow_private, settings.webhook_allow_networks)
    if address is not None and not policy.allows(address):
        raise ValueError("must not point to a private, local or reserved address")
    return str(url)


class Webhooks:
    def __init__(self, store: DeliveryStore, results: Results) -> None:
        self._store = store
        self._results = results

    async def deliveries(self, caller: Caller, result_id: UUID) -> list[Mapping[str, Any]]:
        """The deliveries of a result, oldest first.

        Raises:
            ResultNotFound: no such result.
        """
        await self._results.get(caller, result_id)
        return await self._store.of_result(result_id, caller.owner_id)

    async def page(self, caller: Caller, state: DeliveryState | None, limit: int, before: UUID | None = None) -> Page:
        """The owner's deliveries, of results and of batches, newest first; in a `state`, of the newest SEARCHED."""
        rows = await self._store.of_owner(caller.owner_id, before, state, limit + 1, SEARCHED)
        more = len(rows) > limit
        rows = rows[:limit]
        return Page(rows, rows[-1]["id"] if more else None)

    async def deliver_again(self, caller: Caller, id_: UUID) -> None:
        """As `send_again`, of a batch's delivery too.

        Raises:
            DeliveryNotFound: the owner has no such delivery.
        """
        if not await self._store.send_again(id_, None, caller.owner_id):
            raise DeliveryNotFound(f"There is no delivery {id_}: ended ones are removed a week after they were made.")

    async def send_again(self, caller: Caller, result_id: UUID, id_: UUID) -> Mapping[str, Any]:
        """Makes a delivery that ended due once more, under the same id; one that has not ended stays as it is.

        Raises:
            ResultNotFound: no such result.
            DeliveryNotFound: the result has no such delivery.
        """
        await self._results.get(caller, result_id)
        await self._store.send_again(id_, result_id, caller.owner_id)
        for row in await self._store.of_result(result_id, caller.owner_id):
            if row["id"] == id_:
                return row
        raise DeliveryNotFound(
            f"Result {result_id} has no delivery {id_}. GET /results/{result_id}/webhooks lists those there are."
        )

    async def secret(self, caller: Caller) -> str:
        """What signs the webhooks of the caller's owner, made on first use.

        Raises:
            ScopeMissing: the key cannot submit.
        """
        _require_submit(caller)
        return await secret_of(self._store, caller.owner_id)

    async def rotate(self, caller: Caller) -> tuple[str, datetime]:
        """A new secret; until the time returned, deliveries carry a signature of the old one too.

        Raises:
            ScopeMissing: the key cannot submit.
        """
        _require_submit(caller)
        return await rotate(self._store, caller.owner_id)


async def owner_named(store: DeliveryStore, name: str) -> int:
    """Raises OwnerNotFound."""
    found = await store.owner(name)
    if found is None:
        raise _no_owner()
    return found


async def secret_of(store: DeliveryStore, owner_id: int) -> str:
    """Raises OwnerNotFound."""
    found = await store.secret(owner_id, make_secret())
    if found is None:
        raise _no_owner()
    return found


async def rotate(store: DeliveryStore, owner_id: int) -> tuple[str, datetime]:
    """Raises OwnerNotFound."""
    found = await store.rotate(owner_id, make_secret(), OVERLAP_SECONDS)
    if found is None:
        raise _no_owner()
    return found


async def rows_of(database: Database, ids: Sequence[UUID], most_bytes: int) -> dict[UUID, Mapping[str, Any]]:
    """Results by id, as far as they are still there.

    Those that hold more than `most_bytes` of output, outputs, answer and parameters are `bulky` and come without these.
    """
    async with database.hot() as connection:
        return {row["id"]: row for row in await connection.fetch(ROWS, list(ids), most_bytes)}


def make_secret() -> str:
    return "whsec_" + base64.b64encode(secrets.token_bytes(SECRET_BYTES)).decode()


def _require_submit(caller: Caller) -> None:
    if Scope.SUBMIT not in caller.scopes:
        raise ScopeMissing("Whoever reads this secret can sign webhooks: it takes a key with the scope `submit`.")


def _no_owner() -> AppError:
    return OwnerNotFound("There is no such owner: `make keys` lists those that have keys.")
