"""Logged-in browsers: each a random token, kept as a digest beside the key it stands for."""

from __future__ import annotations

import secrets
import time
from collections import OrderedDict
from hashlib import sha256

from app.db.engine import Database
from app.key_errors import TooManyGuesses, Unauthorized
from app.services.callers import Caller
from app.services.keys import Keys

TOKEN_BYTES = 32
LIFETIME_DAYS = 7
# Wrong keys from one address, in this process, until it has to wait.
MOST_GUESSES = 10
GUESS_SECONDS = 300.0
MOST_ADDRESSES = 10_000

OPEN = """
WITH ended AS (DELETE FROM console_sessions WHERE expires_at <= now())
INSERT INTO console_sessions (digest, key_id, expires_at)
SELECT $1, id, now() + make_interval(days => $3) FROM api_keys WHERE secret_hash = $2
"""
FIND = """
SELECT k.secret_hash FROM console_sessions s JOIN api_keys k ON k.id = s.key_id
WHERE s.digest = $1 AND s.expires_at > now()
"""
CLOSE = "DELETE FROM console_sessions WHERE digest = $1"


def new_token() -> str:
    return secrets.token_urlsafe(TOKEN_BYTES)


def form_token(token: str) -> str:
    """What a form of a browser with this token carries, so that no page elsewhere can send one in its name."""
    return sha256(b"form:" + token.encode()).hexdigest()


class Sessions:
    def __init__(self, database: Database, keys: Keys) -> None:
        self._database = database
        self._keys = keys
        self._guesses: OrderedDict[str, list[float]] = OrderedDict()

    async def open(self, key: str, address: str) -> str:
        """Logs in with an API key; returns the token of the session, which ends with the key.

        Raises:
            Unauthorized: the key is nobody's, has expired or was revoked.
            TooManyGuesses: wrong keys came from this address lately.
        """
        recent = [moment for moment in self._guesses.get(address, ()) if moment > time.monotonic() - GUESS_SECONDS]
        if len(recent) >= MOST_GUESSES:
            wait = max(1, round(recent[0] + GUESS_SECONDS - time.monotonic()))
            raise TooManyGuesses(
                f"{MOST_GUESSES} wrong keys came from your address: try again in {wait} seconds.",
                headers={"Retry-After": str(wait)},
            )
        try:
            await self._keys.caller(key)
        except Unauthorized:
            self._guesses[address] = [*recent, time.monotonic()]
            self._guesses.move_to_end(address)
            if len(self._guesses) > MOST_ADDRESSES:
                self._guesses.popitem(last=False)
            raise
        token = new_token()
        async with self._database.hot() as connection:
            await connection.execute(OPEN, _digest(token), _digest(key), LIFETIME_DAYS)
        return token

    async def caller(self, token: str) -> Caller | None:
        """Whose session this is; None where there is none.

        Raises:
            Unauthorized: its key has expired or was revoked.
        """
        async with self._database.hot() as connection:
            found = await connection.fetchval(FIND, _digest(token))
        return None if found is None else await self._keys.caller_of(found)

    async def close(self, token: str) -> None:
        async with self._database.hot() as connection:
            await connection.execute(CLOSE, _digest(token))


def _digest(secret: str) -> bytes:
    return sha256(secret.encode()).digest()
