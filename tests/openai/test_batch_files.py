"""The files of a batch, which are written while its lines finish."""

import asyncio
import json
import random
import tracemalloc
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import openai
import pytest

from app.config import Settings
from app.db.engine import Database
from app.db.ids import lowest_at, uuid7
from app.dispatch import batch_files
from app.dispatch.batch_files import BatchFiles
from app.openai.batch_lines import defective_line, render_line
from app.openai.ids import uuid_of
from app.queue.batch_work import BatchWork
from app.queue.files import CHUNK_BYTES, FileStore
from app.queue.store import QueueStore
from app.services.batches import Batches
from app.services.callers import Caller
from app.services.files import Files
from tests.openai.batch_kit import ended, in_progress, line, prompt, start
from tests.openai.conftest import client_of
from tests.service import Service, eventually

# As an engine would: every seventh line fails.
SETTLE = """
UPDATE results SET completed_at = now(), prompt_tokens = 5, completion_tokens = batch_line,
    status = CASE WHEN batch_line % 7 = 0 THEN 'failed' ELSE 'completed' END,
    output = CASE WHEN batch_line % 7 <> 0 THEN repeat('answer ', 1 + batch_line % 50) END,
    finish_reason = CASE WHEN batch_line % 7 <> 0 THEN 'stop' END,
    error_code = CASE WHEN batch_line % 7 = 0 THEN 'engine_died' END,
    error_message = CASE WHEN batch_line % 7 = 0 THEN 'It broke.' END
WHERE batch_line = ANY ($1)
"""


@pytest.fixture
async def alone(api: Service) -> AsyncIterator[openai.AsyncOpenAI]:
    """A client of an API without a dispatcher: lines finish when the test says so."""
    async with client_of(api) as client:
        yield client


@pytest.fixture
def eager(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lines are written one by one, and in small chunks."""
    monkeypatch.setattr(batch_files, "LEAST_LINES", 1)
    monkeypatch.setattr(batch_files, "CHECK_SECONDS", 0.01)
    monkeypatch.setattr(batch_files, "ROWS_AT_ONCE", 7)
    monkeypatch.setattr(batch_files, "CHUNK_BYTES", 2000)


class Writers:
    """Dispatchers that do nothing but write batches' files, and come and go."""

    def __init__(self, database: Database, settings: Settings) -> None:
        self._files = BatchFiles(database, settings, render_line, defective_line)
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        self._tasks.append(asyncio.create_task(self._files.run()))

    async def stop(self, number: int = -1) -> None:
        task = self._tasks.pop(number)
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task

    async def __aenter__(self) -> "Writers":
        return self

    async def __aexit__(self, *_: object) -> None:
        while self._tasks:
            await self.stop()


async def settle(database: Database, *lines: int) -> None:
    async with database.hot() as connection:
        await connection.execute(SETTLE, list(lines))
    await BatchWork(database).count()


async def expected(database: Database, batch: Any) -> dict[bool, bytes]:
    """The files as they are when all lines are rendered in their order, at once."""
    async with database.hot() as connection:
        row = await connection.fetchrow("SELECT * FROM batches WHERE id = $1", uuid_of("batch", batch.id))
        results = await connection.fetch("SELECT * FROM results WHERE batch_id = $1 ORDER BY batch_line", row["id"])
    lines = [render_line(row, result) for result in results]
    return {kind: b"".join(text for done, text in lines if done is kind) for kind in (True, False)}


async def contents(client: openai.AsyncOpenAI, batch: Any) -> dict[bool, bytes]:
    files = {True: batch.output_file_id, False: batch.error_file_id}
    return {kind: (await client.files.content(id_)).content if id_ else b"" for kind, id_ in files.items()}


async def _random_life(
    client: openai.AsyncOpenAI, database: Database, settings: Settings, seed: int, lines: int
) -> None:
    draw = random.Random(seed)
    # Empty lines have numbers too.
    texts: list[Any] = [line(f"c{number}", prompt()) for number in range(lines)]
    for _ in range(draw.randrange(4)):
        texts.insert(draw.randrange(len(texts)), "")
    batch = await in_progress(client, await start(client, texts))
    async with database.hot() as connection:
        left = [row["batch_line"] for row in await connection.fetch("SELECT batch_line FROM results")]
    if draw.random() < 0.5:
        draw.shuffle(left)
    async with Writers(database, settings) as writers:
        writers.start()
        writers.start()
        while left:
            some, left = left[: (many := draw.randrange(1, 12))], left[many:]
            await settle(database, *some)
            match draw.randrange(4):
                case 0:
                    await writers.stop(draw.randrange(2))
                    writers.start()
                case 1:
                    # As after a freeze that was longer than the lease: whoever had it goes on, beside another.
                    async with database.hot() as connection:
                        await connection.execute("UPDATE batches SET lease_until = now() WHERE lease_until IS NOT NULL")
            await asyncio.sleep(draw.uniform(0, 0.03))
        batch = await ended(client, batch)
    assert batch.status == "completed"
    assert await contents(client, batch) == await expected(database, batch)
    async with database.hot() as connection:
        totals = await connection.fetchrow(
            "SELECT count(*) FILTER (WHERE status = 'completed') AS completed, sum(prompt_tokens) AS prompt_tokens,"
            " count(*) FILTER (WHERE status = 'failed') AS failed, sum(completion_tokens) AS completion_tokens,"
            " min(batch_line) FILTER (WHERE status = 'failed') AS first FROM results"
        )
        row = await connection.fetchrow("SELECT * FROM batches")
        files = await connection.fetch("SELECT id, bytes, upload_id FROM files WHERE purpose = 'batch_output'")
        chunks = await connection.fetch(
            "SELECT file_id, array_agg(number ORDER BY number) AS numbers, sum(length(data)) AS bytes FROM file_chunks"
            " WHERE file_id = ANY ($1) GROUP BY 1",
            [file["id"] for file in files],
        )
    counted = dict(totals)
    first = counted.pop("first")
    assert {name: row[name] for name in counted} == counted
    assert batch.errors is not None
    shown = [error.line or 0 for error in batch.errors.data or []]
    assert shown == sorted(shown)
    assert (shown[0], len(shown)) == (first, min(10, counted["failed"]))
    assert {file["id"] for file in files} == {row["output_file_id"], row["error_file_id"]}
    assert {each["file_id"]: each["bytes"] for each in chunks} == {file["id"]: file["bytes"] for file in files}
    assert all(each["numbers"] == list(range(len(each["numbers"]))) for each in chunks)


@pytest.mark.usefixtures("eager")
@pytest.mark.parametrize("seed", [1, 2])
async def test_files_are_the_same_however_their_lines_finish(
    alone: openai.AsyncOpenAI, database: Database, make_settings: Callable[..., Settings], seed: int
) -> None:
    settings = make_settings(poll_seconds=0.05, lease_seconds=5)
    await _random_life(alone, database, settings, seed, 120)


@pytest.mark.long
@pytest.mark.usefixtures("eager")
@pytest.mark.parametrize("turn", range(10))
async def test_files_are_the_same_however_many_lines_finish(
    alone: openai.AsyncOpenAI, database: Database, make_settings: Callable[..., Settings], turn: int
) -> None:
    seed = random.randrange(1 << 32)
    print(f"seed {seed}, turn {turn}")
    settings = make_settings(poll_seconds=0.05, lease_seconds=5)
    await _random_life(alone, database, settings, seed, 900)


@pytest.mark.usefixtures("eager")
async def test_a_writer_that_is_stopped_gives_its_batch_back_and_one_that_is_killed_keeps_it_for_seconds(
    alone: openai.AsyncOpenAI, database: Database, make_settings: Callable[..., Settings]
) -> None:
    settings = make_settings(poll_seconds=0.05, lease_seconds=600)
    await in_progress(alone, await start(alone, [line("c1", prompt()), line("c2", prompt())]))
    async with database.hot() as connection:
        number = await connection.fetchval("SELECT min(batch_line) FROM results")

    async def lease() -> float:
        async with database.hot() as connection:
            return float(await connection.fetchval("SELECT extract(epoch FROM lease_until - now()) FROM batches"))

    async def held() -> bool:
        return await lease() > 0

    async with database.transaction() as blocking, Writers(database, settings) as writers:
        await blocking.execute("LOCK TABLE file_chunks")
        await settle(database, number)
        writers.start()
        await eventually(held, "somebody writes")
        assert await lease() <= batch_files.LEASE_SECONDS
        await writers.stop()
        assert await lease() <= 0


@pytest.mark.usefixtures("eager")
async def test_what_there_is_so_far_belongs_to_the_batch_alone(
    alone: openai.AsyncOpenAI, api: Service, database: Database, make_settings: Callable[..., Settings]
) -> None:
    settings = make_settings(poll_seconds=0.05)
    batch = await in_progress(alone, await start(alone, [line(f"c{n}", prompt()) for n in range(1, 10)]))
    files = Files(database, QueueStore(database), settings)
    batches = Batches(database, QueueStore(database), files, settings)

    async def so_far() -> dict[bool, list[str]]:
        row = await batches.get(Caller(0), uuid_of("batch", batch.id))
        return {
            kind: [
                json.loads(text)["custom_id"]
                for text in b"".join([part async for part in files.content_so_far(file)]).splitlines()
            ]
            for kind, file in (await batches.files_so_far(row)).items()
        }

    async def has(answers: list[str], errors: list[str]) -> bool:
        return await so_far() == {True: answers, False: errors}

    async with Writers(database, settings) as writers:
        writers.start()
        assert await so_far() == {}
        await settle(database, 7, 8, 2)
        await eventually(lambda: has(["c2", "c8"], ["c7"]), "three lines are written")
        # At OpenAI too a batch names its files once it has ended.
        found = await alone.batches.retrieve(batch.id)
        assert (found.status, found.output_file_id, found.error_file_id) == ("in_progress", None, None)
        assert [file.id async for file in alone.files.list()] == [batch.input_file_id]
        async with database.hot() as connection:
            hidden = [row["id"] for row in await connection.fetch("SELECT id FROM files WHERE upload_id IS NOT NULL")]
        assert len(hidden) == 2
        for id_ in hidden:
            for answer in (
                await api.client.get(f"/v1/files/file-{id_.hex}/content"),
                await api.client.delete(f"/v1/files/file-{id_.hex}"),
            ):
                assert (answer.status_code, answer.json()["error"]["code"]) == (404, "file_not_found")
        # The retention takes the input and leaves the parts.
        store, tomorrow = FileStore(database), lowest_at(datetime.now(UTC) + timedelta(days=1))
        assert await store.remove(tomorrow, 10) == 1
        await settle(database, 1)
        await eventually(lambda: has(["c1", "c2", "c8"], ["c7"]), "another line is written")
        await settle(database, *(n for n in range(1, 10) if n not in (1, 2, 7, 8)))
        batch = await ended(alone, batch)
    assert await so_far() == {}
    assert await contents(alone, batch) == await expected(database, batch)
    # What a dispatcher of an older version left: it wrote the files anew.
    async with database.hot() as connection:
        await connection.execute(
            "INSERT INTO files (id, owner_id, purpose, filename, bytes, upload_id) SELECT $1, 0, 'x', 'x', 1, $2",
            uuid7(),
            uuid_of("batch", batch.id),
        )
    assert await store.remove(UUID(int=0), 10) == 1


@pytest.mark.usefixtures("eager")
async def test_a_line_that_was_cancelled_before_its_batch_says_so(
    alone: openai.AsyncOpenAI, api: Service, database: Database, make_settings: Callable[..., Settings]
) -> None:
    batch = await in_progress(alone, await start(alone, [line(f"c{n}", prompt()) for n in range(3)]))
    [first] = (await api.client.get("/results/?client_reference=c0")).json()
    assert (await api.client.post(f"/results/{first['id']}/cancel")).status_code == 200
    async with Writers(database, make_settings(poll_seconds=0.05)) as writers:
        await BatchWork(database).count()
        await alone.batches.cancel(batch.id)
        writers.start()
        while await BatchWork(database).cancel_lines():
            pass
        batch = await ended(alone, batch)
    assert batch.status == "cancelled"
    errors = [json.loads(text) for text in (await contents(alone, batch))[False].splitlines()]
    own, *others = errors
    assert (own["error"], own["response"]["body"]["error"]["code"]) == (None, "cancelled")
    assert [(each["response"], each["error"]["code"]) for each in others] == [(None, "batch_cancelled")] * 2


async def test_the_lines_of_a_batch_are_written_few_bytes_at_a_time(
    alone: openai.AsyncOpenAI, database: Database, make_settings: Callable[..., Settings]
) -> None:
    batch = await in_progress(alone, await start(alone, [line(str(n), prompt()) for n in range(20)]))
    async with database.hot() as connection:
        await connection.execute(
            "UPDATE results SET status = 'completed', completed_at = now(), finish_reason = 'stop',"
            " output = repeat('x', 4000000)"
        )
    async with Writers(database, make_settings(poll_seconds=0.05)) as writers:
        tracemalloc.start()
        try:
            writers.start()
            batch = await ended(alone, batch)
            assert tracemalloc.get_traced_memory()[1] < 40_000_000
        finally:
            tracemalloc.stop()
    assert await contents(alone, batch) == await expected(database, batch)


async def test_a_file_is_read_in_parts_of_one_size_whatever_its_chunks_are(
    alone: openai.AsyncOpenAI, database: Database
) -> None:
    draw = random.Random(3)
    file = await alone.files.create(file=("a.jsonl", b"x"), purpose="batch")
    sizes = [1, 3 * CHUNK_BYTES + 17, *[40] * 3000, CHUNK_BYTES, CHUNK_BYTES + 1, 5]
    chunks = [draw.randbytes(size) for size in sizes]
    id_ = uuid_of("file", file.id)
    async with database.hot() as connection:
        await connection.execute("DELETE FROM file_chunks")
        await connection.executemany(
            "INSERT INTO file_chunks VALUES ($1, $2, $3)", [(id_, 3 * n, data) for n, data in enumerate(chunks)]
        )
        await connection.execute("UPDATE files SET bytes = $1", sum(sizes))
        row = await connection.fetchrow("SELECT * FROM files")
    files = Files(database, QueueStore(database), Settings())
    parts = [part async for part in files.content(row)]
    assert b"".join(parts) == b"".join(chunks)
    assert max(map(len, parts)) <= 2 * CHUNK_BYTES
    assert len(parts) < 20
    assert (await alone.files.content(file.id)).content == b"".join(chunks)
