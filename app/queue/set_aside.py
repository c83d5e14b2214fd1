"""All SQL of the models that are set aside: what dispatchers know of them, for each other and for the API.

A row counts while some dispatcher says so again and again. A reload is claimed with a lease, so that one dispatcher at
a time makes it, and another goes on where that one died.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

from app.db.engine import Database

# What no dispatcher has said for this long is no longer so.
FRESH_SECONDS = 30.0
RELOAD_LEASE_SECONDS = 20.0
# A reload that nobody goes on with is forgotten after this.
ABANDONED_SECONDS = 3600.0
# Before the same model is loaded yet another time.
PAUSE_SECONDS = 10.0
KEPT_DAYS = 1

Key = tuple[str, str]  # server, model
Step = Literal["unload", "load"]

SHARE = """
INSERT INTO set_aside_models AS s (server, model, since, reason, dead, seen_at)
SELECT g.server, g.model, now(), g.reason, g.dead, now()
FROM unnest($1::text[], $2::text[], $3::text[], $4::bool[]) AS g(server, model, reason, dead)
ORDER BY 1, 2
ON CONFLICT (server, model) DO UPDATE SET
    since = CASE WHEN s.seen_at > now() - make_interval(secs => $5) OR s.step IS NOT NULL THEN coalesce(s.since, now())
            ELSE now() END,
    note = CASE WHEN s.since IS NULL THEN '' ELSE s.note END,
    reason = excluded.reason, dead = excluded.dead, seen_at = now()
"""

READ = """
SELECT server, model, since, reason, dead, note, step, coalesce(reload_until < now(), true) AS free
FROM set_aside_models
WHERE since IS NOT NULL AND (
    seen_at > now() - make_interval(secs => $1)
    OR step IS NOT NULL AND seen_at > now() - make_interval(secs => $2)
)
ORDER BY server, model
"""

CLEAR = """
UPDATE set_aside_models s SET since = NULL, note = '', step = NULL, reload_until = NULL
FROM unnest($1::text[], $2::text[]) AS g(server, model)
WHERE s.server = g.server AND s.model = g.model
"""

# One that is taken over goes on with its step, and is no further reload.
CLAIM = """
UPDATE set_aside_models SET
    step = coalesce(step, 'unload'), reloader = $3, reload_until = now() + make_interval(secs => $5), seen_at = now(),
    reloads = ARRAY(SELECT r FROM unnest(reloads) r WHERE r > now() - interval '1 hour' ORDER BY 1)
              || CASE WHEN step IS NULL THEN ARRAY[now()] ELSE '{}' END
WHERE server = $1 AND model = $2 AND since IS NOT NULL AND dead AND (reload_until IS NULL OR reload_until < now())
  AND (step IS NOT NULL OR (SELECT count(*) FROM unnest(reloads) r WHERE r > now() - interval '1 hour') < $4)
RETURNING step
"""

# When the next reload is allowed; null where one is under way, or was a moment ago.
NEXT = """
SELECT (SELECT min(r) FROM unnest(reloads) r WHERE r > now() - interval '1 hour') + interval '1 hour'
FROM set_aside_models
WHERE server = $1 AND model = $2 AND since IS NOT NULL AND step IS NULL AND coalesce(reload_until < now(), true)
"""

KEEP = """
UPDATE set_aside_models SET step = $4, note = $5, reload_until = now() + make_interval(secs => $6), seen_at = now()
WHERE server = $1 AND model = $2 AND reloader = $3 AND step IS NOT NULL
"""

NOTE = "UPDATE set_aside_models SET note = $3 WHERE server = $1 AND model = $2 AND since IS NOT NULL AND step IS NULL"
FORGET = "DELETE FROM set_aside_models WHERE seen_at < now() - make_interval(days => $1)"


@dataclass(frozen=True, slots=True)
class SetAside:
    """A model of a server that is set aside; `free` says that no dispatcher is at work on it."""

    server: str
    model: str
    since: datetime
    reason: str
    dead: bool
    note: str
    step: Step | None
    free: bool


class SetAsideStore:
    def __init__(self, database: Database) -> None:
        self._database = database

    async def read(self, *, abandoned: bool = False) -> dict[Key, SetAside]:
        """What is set aside by the word of a living dispatcher; or also what one that died left half reloaded."""
        async with self._database.hot() as connection:
            rows = await connection.fetch(READ, FRESH_SECONDS, ABANDONED_SECONDS if abandoned else FRESH_SECONDS)
        return {(row["server"], row["model"]): SetAside(**row) for row in rows}

    async def share(self, known: Mapping[Key, tuple[str, bool]]) -> None:
        """Says that models are set aside, each with the reason and whether it is dead; a day later all is forgotten."""
        async with self._database.hot() as connection:
            servers, models = [key[0] for key in known], [key[1] for key in known]
            reasons, dead = [reason for reason, _ in known.values()], [each for _, each in known.values()]
            await connection.execute(SHARE, servers, models, reasons, dead, FRESH_SECONDS)
            await connection.execute(FORGET, KEPT_DAYS)

    async def clear(self, keys: Iterable[Key]) -> None:
        """They answer again."""
        async with self._database.hot() as connection:
            servers, models = zip(*sorted(keys), strict=True)
            await connection.execute(CLEAR, servers, models)

    async def claim(self, key: Key, dispatcher: str, per_hour: int) -> Step | None:
        """The step to begin with, for who holds the reload now; None where it is another's, or too soon."""
        async with self._database.hot() as connection:
            step: Step | None = await connection.fetchval(CLAIM, *key, dispatcher, per_hour, RELOAD_LEASE_SECONDS)
        return step

    async def next_reload(self, key: Key) -> datetime | None:
        """When there may be another one, where the hour's are spent."""
        async with self._database.hot() as connection:
            moment: datetime | None = await connection.fetchval(NEXT, *key)
        return moment

    async def keep(self, key: Key, dispatcher: str, step: Step, note: str) -> bool:
        """Renews a claim; False where it was lost."""
        return await self._write(key, dispatcher, step, note, RELOAD_LEASE_SECONDS)

    async def finish(self, key: Key, dispatcher: str, note: str) -> None:
        """Ends a reload, well or not; the next one comes after a pause."""
        await self._write(key, dispatcher, None, note, PAUSE_SECONDS)

    async def note(self, key: Key, note: str) -> None:
        async with self._database.hot() as connection:
            await connection.execute(NOTE, *key, note)

    async def _write(self, key: Key, dispatcher: str, step: Step | None, note: str, seconds: float) -> bool:
        async with self._database.hot() as connection:
            done: Any = await connection.execute(KEEP, *key, dispatcher, step, note, seconds)
        return str(done) != "UPDATE 0"
