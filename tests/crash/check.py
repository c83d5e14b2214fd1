"""What must hold, asked from Postgres: while the load runs, and of everything once it is over."""

from __future__ import annotations

import asyncio
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

import asyncpg

from tests.crash.load import Tally

LOOK_SECONDS = 0.5
TIMEOUT_SECONDS = 5.0
DATABASE_AWAY = (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError)

# The whole row as text: whatever changes in it later, the hash differs.
FINAL = "SELECT id, hashtextextended(r::text, 0) AS hash FROM results r WHERE id = ANY($1) AND status <> 'pending'"
PENDING = "SELECT count(*) FROM results WHERE context_id = ANY($1) AND status = 'pending'"

ROWS = """
SELECT id, client_reference, status, error_code, attempt_count, cancel_requested_at IS NOT NULL AS cancel_requested,
       hashtextextended(r::text, 0) AS hash, extract(epoch FROM completed_at)::float8 AS ended
FROM results r WHERE context_id = ANY($1)
"""
LEDGER = """
SELECT a.result_id, r.priority, a.number, a.outcome, a.error_code, a.dispatcher,
       extract(epoch FROM a.started_at)::float8 AS started, extract(epoch FROM a.ended_at)::float8 AS ended
FROM attempts a JOIN results r ON r.id = a.result_id WHERE r.context_id = ANY($1)
ORDER BY a.result_id, a.number
"""
WITNESSED = "SELECT to_regclass('crash_changes_after_the_end') IS NOT NULL"
CHANGES = "SELECT DISTINCT id FROM crash_changes_after_the_end"
# 503 is how the API says that Postgres is away.
ALLOWED = (200, 202, 503)
TERMINAL = ("completed", "failed", "cancelled", "expired")


class Watch:
    """Looks for results that became final and keeps each row as it was then."""

    def __init__(self, database_url: str, tally: Tally) -> None:
        self.final: dict[UUID, int] = {}
        self._url = database_url
        self._tally = tally
        self._open: set[UUID] = set()
        self._taken = 0

    @property
    def unsettled(self) -> int:
        return len(self._tally.acknowledged) - len(self.final)

    async def run(self) -> None:
        """Runs until cancelled; Postgres may come and go."""
        while True:
            with suppress(*DATABASE_AWAY):
                connection = await asyncpg.connect(self._url, timeout=TIMEOUT_SECONDS, command_timeout=TIMEOUT_SECONDS)
                try:
                    while True:
                        await self._look(connection)
                        await asyncio.sleep(LOOK_SECONDS)
                finally:
                    connection.terminate()
            await asyncio.sleep(LOOK_SECONDS)

    async def _look(self, connection: Any) -> None:
        ids = list(self._tally.acknowledged)
        self._open.update(ids[self._taken :])
        self._taken = len(ids)
        for row in await connection.fetch(FINAL, list(self._open)):
            self.final[row["id"]] = row["hash"]
            self._open.discard(row["id"])


async def all_settled(database_url: str, contexts: list[UUID], seconds: float) -> float:
    """Waits until nothing is pending, at most `seconds`; returns how long it took."""
    loop = asyncio.get_running_loop()
    started = loop.time()
    while (waited := loop.time() - started) < seconds:
        with suppress(*DATABASE_AWAY):
            connection = await asyncpg.connect(database_url, timeout=TIMEOUT_SECONDS, command_timeout=TIMEOUT_SECONDS)
            try:
                while (waited := loop.time() - started) < seconds:
                    if not await connection.fetchval(PENDING, contexts):
                        return waited
                    await asyncio.sleep(0.2)
            finally:
                connection.terminate()
        await asyncio.sleep(0.2)
    return waited


@dataclass
class Verdict:
    """What was found; `problems` is empty when every promise held."""

    acknowledged: int = 0
    unacknowledged: int = 0  # stored, but the answer was lost with the API: allowed
    settled: int = 0
    completed: int = 0
    cancelled: int = 0
    lost: list[UUID] = field(default_factory=list)
    changed: list[UUID] = field(default_factory=list)
    settled_twice: list[UUID] = field(default_factory=list)
    ledger_wrong: list[UUID] = field(default_factory=list)
    made_twice: list[str] = field(default_factory=list)  # references that one Idempotency-Key made more than one of
    stored_unsaid: int = 0  # stored although the answer was a 503, which says that nothing was
    stuck: list[UUID] = field(default_factory=list)
    cancelled_unasked: list[UUID] = field(default_factory=list)
    failed: Counter[str] = field(default_factory=Counter)
    attempts: int = 0
    beyond_need: int = 0
    retries: Counter[str] = field(default_factory=Counter)
    answers: Counter[int] = field(default_factory=Counter)
    unanswered: int = 0
    batches: int = 0
    batch_lines: int = 0
    batches_wrong: list[str] = field(default_factory=list)
    deaths: list[str] = field(default_factory=list)
    triton_deaths: int = 0

    @property
    def problems(self) -> list[str]:
        found = []
        for ids, what in (
            (self.lost, "acknowledged and lost"),
            (self.changed, "changed after they were final"),
            (self.settled_twice, "settled twice in the ledger"),
            (self.ledger_wrong, "whose ledger does not fit their end"),
            (self.stuck, "stuck"),
            (self.cancelled_unasked, "cancelled though nobody asked"),
        ):
            if ids:
                found.append(f"{len(ids)} tickets {what}, for example {ids[0]}")
        if self.made_twice:
            found.append(f"{len(self.made_twice)} Idempotency-Keys made two tickets, for example {self.made_twice[0]}")
        found += [f"{count} tickets failed with {code}" for code, count in self.failed.items()]
        found += [f"{n} answers with status {status}" for status, n in self.answers.items() if status not in ALLOWED]
        return found + self.batches_wrong + self.deaths


@dataclass
class Evidence:
    """The rows at the end; times in seconds of the wall clock."""

    rows: list[Any]
    ledger: list[Any]
    changes: set[UUID]


async def collect(database_url: str, contexts: list[UUID]) -> Evidence:
    connection = await asyncpg.connect(database_url, timeout=TIMEOUT_SECONDS)
    try:
        changes = await connection.fetch(CHANGES) if await connection.fetchval(WITNESSED) else []
        return Evidence(
            rows=await connection.fetch(ROWS, contexts),
            ledger=await connection.fetch(LEDGER, contexts),
            changes={row["id"] for row in changes},
        )
    finally:
        await connection.close()


def judge(evidence: Evidence, tally: Tally, final: dict[UUID, int]) -> Verdict:
    """Compares what the users were told and what was seen on the way with what is there."""
    rows = {row["id"]: row for row in evidence.rows}
    references = Counter(row["client_reference"] for row in evidence.rows)
    verdict = Verdict(
        acknowledged=len(tally.acknowledged),
        unacknowledged=len(rows.keys() - tally.acknowledged.keys()),
        lost=sorted(tally.acknowledged.keys() - rows.keys()),
        changed=sorted(
            evidence.changes | {id_ for id_, seen in final.items() if id_ in rows and rows[id_]["hash"] != seen}
        ),
        made_twice=[name for name, count in references.items() if count > 1 and name in tally.keyed],
        stored_unsaid=len(tally.refused & references.keys()),
        answers=tally.answers,
        unanswered=tally.unanswered,
    )
    attempts: dict[UUID, list[Any]] = {}
    for attempt in evidence.ledger:
        attempts.setdefault(attempt["result_id"], []).append(attempt)
        if attempt["outcome"] in ("retried", "lease_lost"):
            verdict.retries[attempt["error_code"] or attempt["outcome"]] += 1
    for id_, row in rows.items():
        if row["status"] == "pending":
            verdict.stuck.append(id_)
            continue
        verdict.settled += 1
        verdict.attempts += row["attempt_count"]
        verdict.beyond_need += max(0, row["attempt_count"] - 1)
        if row["status"] == "completed":
            verdict.completed += 1
        elif row["error_code"] != "cancelled":
            verdict.failed[row["error_code"]] += 1
        else:
            verdict.cancelled += 1
            if id_ not in tally.cancel_asked:
                verdict.cancelled_unasked.append(id_)
        _judge_ledger(verdict, row, attempts.get(id_, []))
    return verdict


def _judge_ledger(verdict: Verdict, row: Any, attempts: list[Any]) -> None:
    terminal = [attempt["outcome"] for attempt in attempts if attempt["outcome"] in TERMINAL]
    if len(terminal) > 1:
        verdict.settled_twice.append(row["id"])
    numbers = [attempt["number"] for attempt in attempts]
    whole = numbers == list(range(1, row["attempt_count"] + 1))
    # A cancel or an expiry may find a result that nobody runs; only an answer must come from an attempt.
    ends_so = terminal == ["completed"] if row["status"] == "completed" else "completed" not in terminal
    if not whole or not ends_so or (terminal and attempts[-1]["outcome"] not in TERMINAL):
        verdict.ledger_wrong.append(row["id"])
