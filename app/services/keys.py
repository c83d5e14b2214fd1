"""API keys: made, listed, revoked, and recognised on each request without asking Postgres each time."""

from __future__ import annotations

import asyncio
import re
import secrets
import time
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from string import ascii_letters, digits
from typing import Any
from uuid import UUID

from app.db.engine import Database
from app.db.ids import uuid7
from app.errors import InvalidRequest
from app.key_errors import ApiKeyExpired, ApiKeyRevoked, KeyExists, KeyNotFound, Unauthorized
from app.queue.audit import Action, Actor, record
from app.services.callers import EVERYBODY, LIMITS, Caller, Scope

PREFIX = "sk-"
SECRET_BYTES = 32
ALPHABET = digits + ascii_letters
# As many characters as the largest secret takes.
SECRET_CHARS = 43
KEY = re.compile(rf"{PREFIX}[0-9A-Za-z]{{{SECRET_CHARS}}}")
HINT_CHARS = 4
UNKNOWN = "This API key is not known here: check it, or have a new one made with `make key NAME=...`."

# Bounds of what a key may be given.
LONGEST_DAYS = 36_500
MOST_OF_A_LIMIT = 10_000_000
MOST_TOKENS = 10**15
MOST_DOLLARS = 1e9
MOST_BYTES = 10**15
MOST_MODELS = 100
LONGEST_MODEL = 255
MOST_WEIGHT = 1000

# A revocation takes effect within this, a new key is known within it where it was tried before it was made.
FRESH_SECONDS = 3.0
MOST_REMEMBERED = 10_000

OWNER = """
INSERT INTO owners AS o (name, weight) VALUES ($1, coalesce($2::smallint, 1))
ON CONFLICT (name) DO UPDATE SET weight = coalesce($2::smallint, o.weight)
RETURNING id
"""
# What a key is made with, by the same names in the table and in NewKey.
GIVEN = ("name", "person", *LIMITS, "models", "webhook")
INSERT = f"""
INSERT INTO api_keys (id, owner_id, secret_hash, hint, scopes, expires_at, {", ".join(GIVEN)})
VALUES ($1, $2, $3, $4, $5, $6, {", ".join(f"${number}" for number, _ in enumerate(GIVEN, 7))})
ON CONFLICT (id) DO NOTHING RETURNING id
"""  # noqa: S608
FIND = f"""
SELECT id, owner_id, scopes, expires_at, revoked_at, {", ".join(LIMITS)}, models, webhook FROM api_keys WHERE
"""  # noqa: S608
FIND_BY_HASH, FIND_BY_ID = FIND + "secret_hash = $1", FIND + "id = $1"
LIST = f"""
SELECT k.id, k.owner_id, o.name AS owner, o.weight, k.hint, k.scopes, k.created_at, k.expires_at, k.revoked_at,
       {", ".join(f"k.{name}" for name in GIVEN)},
       CASE WHEN k.revoked_at IS NOT NULL THEN 'revoked' WHEN k.expires_at <= now() THEN 'expired' ELSE 'active' END
           AS state
FROM api_keys k JOIN owners o ON o.id = k.owner_id
WHERE ($1::uuid IS NULL OR k.id = $1) AND ($2::int IS NULL OR k.owner_id = $2)
ORDER BY k.id
"""  # noqa: S608
# A key that was revoked before stays as it is.
REVOKE = """
UPDATE api_keys SET revoked_at = coalesce(revoked_at, now()) WHERE id = $1
RETURNING secret_hash, owner_id, name, old.revoked_at IS NULL AS is_new
"""


@dataclass(frozen=True, slots=True)
class NewKey:
    """`owner` is the name of whom the key belongs to, the key's own name where it is None; `weight` is that owner's.
    `webhook` as `services.webhooks.accepted` gives it. An `id` chosen before makes one key, however often it is sent.
    """

    name: str
    owner: str | None = None
    scopes: Sequence[Scope] = (Scope.READ, Scope.SUBMIT)
    expires_days: float | None = None
    person: str | None = None
    requests_per_minute: int | None = None
    pending_limit: int | None = None
    tokens_per_day: int | None = None
    tokens_per_month: int | None = None
    dollars_per_day: float | None = None
    dollars_per_month: float | None = None
    storage_bytes: int | None = None
    models: Sequence[str] | None = None
    weight: int | None = None
    webhook: dict[str, Any] | None = None
    id: UUID | None = None


class Remembered:
    """The last digests that were looked up, each for FRESH_SECONDS."""

    def __init__(self) -> None:
        self._found: OrderedDict[bytes, tuple[float, Mapping[str, Any] | None]] = OrderedDict()

    def get(self, digest: bytes) -> tuple[float, Mapping[str, Any] | None] | None:
        entry = self._found.get(digest)
        return entry if entry is not None and entry[0] > time.monotonic() else None

    def put(self, digest: bytes, row: Mapping[str, Any] | None) -> None:
        self._found[digest] = (time.monotonic() + FRESH_SECONDS, row)
        self._found.move_to_end(digest)
        if len(self._found) > MOST_REMEMBERED:
            self._found.popitem(last=False)

    def forget(self, digest: bytes) -> None:
        self._found.pop(digest, None)


class Keys:
    def __init__(self, database: Database) -> None:
        self._database = database
        # Apart, so that guesses push no real key out.
        self._known, self._unknown = Remembered(), Remembered()
        self._asking: dict[bytes, asyncio.Task[Mapping[str, Any] | None]] = {}

    async def caller(self, key: str) -> Caller:
        """Whose key this is.

        Raises:
            Unauthorized: nobody's; or it has expired, or was revoked.
        """
        if not KEY.fullmatch(key):
            raise Unauthorized(UNKNOWN)
        return await self.caller_of(sha256(key.encode()).digest())

    async def caller_of(self, digest: bytes) -> Caller:
        """As `caller`, of the key with this SHA-256."""
        entry = self._known.get(digest) or self._unknown.get(digest)
        row = entry[1] if entry is not None else await self._ask_once(digest)
        if row is None:
            raise Unauthorized(UNKNOWN)
        if row["revoked_at"] is not None:
            raise ApiKeyRevoked("This API key was revoked: have a new one made with `make key NAME=...`.")
        if row["expires_at"] is not None and row["expires_at"] <= datetime.now(UTC):
            raise ApiKeyExpired(
                f"This API key expired at {row['expires_at']:%Y-%m-%d %H:%M} UTC: have a new one made with "
                "`make key NAME=...`."
            )
        caller: Caller = row["caller"]
        return caller

    async def _ask_once(self, digest: bytes) -> Mapping[str, Any] | None:
        """Those who bring the same key at the same moment share one query."""
        asking = self._asking.get(digest)
        if asking is None:
            asking = self._asking[digest] = asyncio.create_task(self._ask(digest))
            asking.add_done_callback(lambda _: self._asking.pop(digest))
        return await asyncio.shield(asking)

    async def _ask(self, digest: bytes) -> Mapping[str, Any] | None:
        async with self._database.hot() as connection:
            row = await connection.fetchrow(FIND_BY_HASH, digest)
        if row is None:
            self._unknown.put(digest, None)
            return None
        found = {"revoked_at": row["revoked_at"], "expires_at": row["expires_at"], "caller": _caller(row)}
        self._known.put(digest, found)
        return found

    async def bounds(self, id_: UUID) -> Caller:
        """The caller that the key stands for, whether or not it is still valid: what it began is bounded by it.

        Raises:
            KeyNotFound: there is none with this id.
        """
        async with self._database.hot() as connection:
            row = await connection.fetchrow(FIND_BY_ID, id_)
        if row is None:
            raise KeyNotFound(f"No API key has the id {id_}.")
        return _caller(row)

    async def create(self, new: NewKey, actor: Actor) -> tuple[Mapping[str, Any], str]:
        """Makes a key; returns its row as `list` does, and the key itself, which is stored nowhere.

        Raises:
            InvalidRequest: the owner's name stands for something else.
            KeyExists: a key with the chosen id was made before.
        """
        if (new.owner or new.name) == EVERYBODY:
            message = f"{EVERYBODY!r} stands for all owners together: give another name"
            raise InvalidRequest(f"owner: {message}", errors=[{"field": "owner", "message": message}])
        key = PREFIX + base62(secrets.token_bytes(SECRET_BYTES))
        id_ = new.id or uuid7()
        expires_at = None if new.expires_days is None else datetime.now(UTC) + timedelta(days=new.expires_days)
        digest = sha256(key.encode()).digest()
        async with self._database.transaction() as connection:
            owner_id = await connection.fetchval(OWNER, new.owner or new.name, new.weight)
            made = await connection.fetchval(
                INSERT,
                id_,
                owner_id,
                digest,
                f"{PREFIX}…{key[-HINT_CHARS:]}",
                sorted(set(new.scopes)),
                expires_at,
                *(getattr(new, name) for name in GIVEN),
            )
            if made is None:
                raise KeyExists(
                    "This form was sent before and its key was made then. A key is shown once: if you did not keep it, "
                    "revoke it and make another one."
                )
            row = await connection.fetchrow(LIST, id_, None)
            details = {"name": new.name, "person": new.person, "scopes": row["scopes"]}
            await record(connection, Action.KEY_CREATED, actor, owner_id, str(id_), details=details)
        return row, key

    async def list(self) -> Sequence[Mapping[str, Any]]:
        """All keys, oldest first."""
        async with self._database.hot() as connection:
            found: Sequence[Mapping[str, Any]] = await connection.fetch(LIST, None, None)
        return found

    async def seen_by(self, caller: Caller) -> Sequence[Mapping[str, Any]]:
        """As `list`, for those who may not see all: the keys of their owner."""
        if Scope.ADMIN in caller.scopes:
            return await self.list()
        async with self._database.hot() as connection:
            found: Sequence[Mapping[str, Any]] = await connection.fetch(LIST, None, caller.owner_id)
        return found

    async def revoke(self, id_: UUID, actor: Actor) -> None:
        """Ends a key for good: here at once, in other processes within FRESH_SECONDS.

        Raises:
            KeyNotFound: there is none with this id.
        """
        async with self._database.transaction() as connection:
            row = await connection.fetchrow(REVOKE, id_)
            if row is not None and row["is_new"]:
                name = {"name": row["name"]}
                await record(connection, Action.KEY_REVOKED, actor, row["owner_id"], str(id_), details=name)
        if row is None:
            raise KeyNotFound(f"No API key has the id {id_}. `make keys` and GET /keys/ list those there are.")
        self._known.forget(row["secret_hash"])


def base62(secret: bytes) -> str:
    """`secret` in digits and letters, padded to SECRET_CHARS."""
    number = int.from_bytes(secret)
    characters = []
    for _ in range(SECRET_CHARS):
        number, remainder = divmod(number, len(ALPHABET))
        characters.append(ALPHABET[remainder])
    return "".join(reversed(characters))


def _caller(row: Mapping[str, Any]) -> Caller:
    return Caller(
        owner_id=row["owner_id"],
        key_id=row["id"],
        scopes=frozenset(map(Scope, row["scopes"])),
        models=None if row["models"] is None else tuple(row["models"]),
        webhook=row["webhook"],
        **{name: row[name] for name in LIMITS},
    )
