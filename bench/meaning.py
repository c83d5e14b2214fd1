"""Search by meaning: how soon near questions are found among many, and what making their vectors costs."""

from __future__ import annotations

import asyncio
import os
import statistics
import time
from typing import Any

import asyncpg
import numpy as np
from numpy.typing import NDArray

from app.config import Settings
from app.db.engine import open_database
from app.db.ids import uuid7
from app.queue.question_vectors import EXACT_UP_TO, QuestionVectorStore
from bench.figure import Figure
from bench.stack import Bench
from tests.conftest import alembic, with_database

VECTORS = int(os.environ.get("BENCH_VECTORS", "100000"))
NUMBERS, SUBJECTS = 384, 500
CALLS, NEAREST = 200, 10
LONGEST_SECONDS = 0.2
# Owner 1 has most; the others have as many as are compared one by one, and few.
SHARES = {1: VECTORS - EXACT_UP_TO - 100, 2: EXACT_UP_TO, 3: 100}
QUESTIONS = """
WITH made AS (
    INSERT INTO chats (id, owner_id, title, noticed_at) SELECT uuidv7(), $2, 'A chat', now() + interval '1 day'
    FROM generate_series(1, $1) RETURNING id
), asked AS (
    INSERT INTO contexts (id, owner_id, messages)
    SELECT id, $2, jsonb_build_array(jsonb_build_object('role', 'user', 'content', 'Question ' || id)) FROM made
)
INSERT INTO results (id, owner_id, context_id, model, parameters, client_reference, status, completed_at, output,
                     finish_reason)
SELECT uuidv7(), $2, id, 'noop', '{}', 'chat:' || id, 'completed', now(), 'Yes.', 'stop' FROM made
"""


def _vectors(random: np.random.Generator, subjects: NDArray[np.float64], number: int) -> NDArray[np.float64]:
    """As of texts: about some subjects each."""
    made = subjects[random.integers(SUBJECTS, size=number)] + random.normal(size=(number, NUMBERS)) * 0.7
    return np.asarray(made / np.linalg.norm(made, axis=1, keepdims=True))


async def _filled(bench: Bench) -> tuple[Settings, dict[int, NDArray[np.float64]], float]:
    """A database with the vectors, those of each owner, and the seconds that a vector takes to be stored."""
    url = with_database(bench.postgres.url, "meaning")
    connection = await asyncpg.connect(bench.postgres.url)
    await connection.execute("DROP DATABASE IF EXISTS meaning WITH (FORCE)")
    await connection.execute("CREATE DATABASE meaning")
    await connection.close()
    done = await asyncio.to_thread(alembic, url, "upgrade", "head")
    assert done.returncode == 0, done.stderr
    settings = Settings(database_url=url)
    async with open_database(settings) as database:
        store = QuestionVectorStore(database)
        extension = await store.extension(create=True)
        assert extension is not None
        await store.index(NUMBERS, extension)
    connection = await asyncpg.connect(url)
    random = np.random.default_rng(1)
    subjects = random.normal(size=(SUBJECTS, NUMBERS))
    made, seconds = {}, 0.0
    for owner_id, number in SHARES.items():
        await connection.execute(QUESTIONS, number, owner_id, timeout=600)
        ids = [row["id"] for row in await connection.fetch("SELECT id FROM results WHERE owner_id = $1", owner_id)]
        made[owner_id] = _vectors(random, subjects, number)
        began = time.monotonic()
        for first in range(0, number, 10_000):
            some = slice(first, first + 10_000)
            await connection.copy_records_to_table(
                "question_vectors",
                records=[
                    (id_, owner_id, uuid7(), "m", vector.tolist())
                    for id_, vector in zip(ids[some], made[owner_id][some], strict=True)
                ],
                columns=["result_id", "owner_id", "chat_id", "model", "vector"],
                timeout=600,
            )
        seconds += time.monotonic() - began
    await connection.execute("VACUUM ANALYZE", timeout=600)
    await connection.close()
    return settings, made, seconds / VECTORS


async def search(bench: Bench) -> Figure:
    settings, made, storing = await _filled(bench)
    random = np.random.default_rng(2)
    slowest: dict[int, float] = {}
    found: dict[int, float] = {}
    async with open_database(settings) as database:
        store = QuestionVectorStore(database)
        extension = await store.extension()
        assert extension is not None
        for owner_id, own in made.items():
            times, right = [], 0
            for call in range(CALLS):
                asked = own[random.integers(len(own))] + random.normal(size=NUMBERS) * 0.02
                asked /= np.linalg.norm(asked)
                began = time.monotonic()
                near = await store.near(owner_id, "m", asked.tolist(), NEAREST, extension)
                # The first ones read the index into memory.
                times += [time.monotonic() - began] if call >= CALLS // 10 else []
                best = np.sort(own @ asked)[-NEAREST]
                right += sum(likeness >= float(best) - 0.001 for _, _, likeness in near)
            slowest[owner_id] = statistics.quantiles(times, n=20)[-1]
            found[owner_id] = float(right / CALLS / NEAREST)
    extra: dict[str, Any] = {"p95_seconds": slowest, "recall": found, "seconds_to_store_one": storing}
    worst = max(slowest.values())
    return Figure(
        f"the nearest {NEAREST} of {VECTORS:,} questions, {NUMBERS} numbers each, p95",
        worst * 1000,
        f"≤ {LONGEST_SECONDS * 1000:.0f} ms",
        worst <= LONGEST_SECONDS and min(found.values()) >= 0.95,
        f"{slowest[1] * 1000:.1f} ms by the index, {found[1]:.1%} of the nearest; {storing * 1000:.2f} ms to store one",
        f"{slowest[2] * 1000:.1f} ms for all of {SHARES[2]:,}, {slowest[3] * 1000:.1f} ms for all of {SHARES[3]}",
        extra,
    )
