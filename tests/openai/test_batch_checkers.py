"""Lines of large files, which are checked by processes of their own."""

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import openai
import psutil
import pytest

from app.config import Settings
from app.services.line_checks import CheckedLine, Part
from app.services.line_reading import LARGE_FILE_BYTES, PARTS_AT_ONCE, in_order
from tests.openai.batch_kit import CHATS, FINAL, ended, in_progress, line, start
from tests.openai.conftest import Rows, client_of
from tests.openai.test_batches import BREAKS
from tests.servers import TEST_MODELS
from tests.service import ROOT, eventually, running_api

LONG = "x" * 20_000
FIELDS = """SELECT r.batch_line, r.client_reference, r.parameters, r.request, r.kind, r.task, r.owner_id, r.priority,
    r.status, r.error_code, r.error_message, r.model, r.kept, r.wish, r.expires_at - b.expires_at AS expires,
    r.rank - b.created_at AS rank, c.messages, c.content, r.created_at = c.created_at AS together
FROM results r JOIN contexts c ON c.id = r.context_id JOIN batches b ON b.id = r.batch_id ORDER BY r.batch_line"""


def chat(text: str, **parameters: Any) -> dict[str, Any]:
    return {"model": "chat", "messages": [{"role": "user", "content": text}], "max_tokens": 3} | parameters


def checkers() -> list[psutil.Process]:
    """Those of this process."""
    found = []
    for process in psutil.Process().children():
        with suppress(psutil.Error):
            if "app.checker" in process.cmdline():
                found.append(process)
    return found


def large(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The lines, each after a long one, so that they are in many parts."""
    given = []
    for number, each in enumerate(lines):
        given += [line(f"long {number}", chat(f"{number} {LONG}"), CHATS), each]
    rest = LARGE_FILE_BYTES // len(LONG) + 1 - len(lines)
    return [*given, *(line(f"more {number}", chat(LONG), CHATS) for number in range(rest))]


async def test_a_large_file_is_refused_in_the_same_words_as_a_small_one(
    make_settings: Callable[..., Settings], api_rows: Rows
) -> None:
    lines = large(
        [
            line("a", chat("Hi", temperature=9), CHATS),
            line("b", chat("Hi", model="nobody's"), CHATS),
            line("long 0", chat("Hi"), CHATS),
            line("c", {"max_tokens": 3, "messages": []}, CHATS),
            line("d", chat("\x00"), CHATS),
            line("long 3", chat("Hi", best_off=1), CHATS),
            line("e", chat("Hi", model="nobody's"), CHATS),
            line("f", chat("Hi")),
            line("long 1", {}, CHATS) | {"method": "GET"},
            line("more 3", chat("Hi"), CHATS),
            line("g", chat("Hi", tools=[{"type": "function"}]), CHATS),
            line("h", chat("Hi", stop=["a"] * 70), CHATS),
            line("i", {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 3}, CHATS),
        ]
    )
    told = []
    for number in (2, 0):
        async with running_api(make_settings(batch_checkers=number)) as service, client_of(service) as client:
            batch = await ended(client, await start(client, lines, CHATS))
            assert batch.errors is not None
            told.append([error.to_dict() for error in batch.errors.data or []])
            assert len(checkers()) == number
        assert checkers() == []
    assert told[0] == told[1]
    assert [each["code"] for each in told[0]].count("duplicate_custom_id") == 4
    assert await api_rows() == (0, 0)


async def test_a_large_file_is_stored_as_a_small_one(
    make_settings: Callable[..., Settings], rows: Any, served_models: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "models"
    shutil.copytree(served_models, folder)
    template = folder / "chat" / "1" / "chat_template.jinja"
    template.write_text(BREAKS + (TEST_MODELS / "chat" / "1" / "chat_template.jinja").read_text())
    briefed = [{"role": "system", "content": "Be brief.\t\\N\n"}, {"role": "user", "content": "Why?"}]
    lines = large(
        [
            line("a", chat("break"), CHATS),
            line("b", chat("") | {"messages": briefed}, CHATS),
            line("c", chat("Hi", store=False, seed=3, metadata={"a": "b"}), CHATS),
            line("d", chat("") | {"messages": [{"role": "system", "content": "Be kind."}, briefed[1]]}, CHATS),
            line("e", chat("") | {"messages": briefed}, CHATS),
            line("f", chat("Hi", chat_template_kwargs={"a": 1}, response_format={"type": "json_object"}), CHATS),
        ]
    )
    stored = []
    for number in (2, 0):
        settings = make_settings(batch_checkers=number, model_repository=str(folder), log_level="CRITICAL")
        async with running_api(settings) as service, client_of(service) as client:
            await in_progress(client, await start(client, lines, CHATS))
        stored.append([dict(row) for row in await rows.fetch(FIELDS)])
        in_line = await rows.fetch("SELECT batch_line FROM results ORDER BY id")
        assert [row["batch_line"] for row in in_line] == list(range(1, len(lines) + 1))
        await rows.execute("TRUNCATE batches, results, contexts CASCADE")
    assert stored[0] == stored[1]
    assert [row["client_reference"] for row in stored[0]] == [each["custom_id"] for each in lines]
    assert [row["client_reference"] for row in stored[0] if row["status"] == "failed"] == ["a"]


async def test_a_batch_outlives_a_checker_and_says_so_where_it_does_not(
    make_settings: Callable[..., Settings], api_rows: Rows
) -> None:
    """Where two are killed with a part, nothing is stored, and the batch can be made again."""
    lines = large([])
    async with running_api(make_settings(log_level="CRITICAL")) as service, client_of(service) as client:

        async def killed(batch: openai.types.Batch, most: int) -> set[int]:
            """The checkers that were killed while the batch was checked."""
            dead: set[int] = set()
            while (await client.batches.retrieve(batch.id)).status == "validating":
                for process in checkers():
                    if len(dead) < most and process.pid not in dead:
                        process.kill()
                        dead.add(process.pid)
            return dead

        batch = await start(client, lines, CHATS)
        assert len(await killed(batch, 100)) >= 2
        batch = await client.batches.retrieve(batch.id)
        assert batch.errors is not None
        (error,) = batch.errors.data or []
        assert (batch.status, error.code, error.line) == ("failed", "checkers_died", None)
        assert "checked lines 1 to " in str(error.message)
        assert await api_rows() == (0, 0)
        batch = await start(client, lines, CHATS)
        assert len(await killed(batch, 1)) == 1
        assert (await client.batches.retrieve(batch.id)).status not in FINAL
        assert await api_rows() == (len(lines), len(lines))


PARENT = """
import asyncio, sys
from pathlib import Path
from uuid import uuid4
from datetime import datetime, UTC
from app.config import Settings
from app.services.callers import Caller
from app.services.checkers import Checkers
from app.services.line_checks import LinesOf, Part

async def main():
    models = (frozenset({"chat"}), frozenset())
    checkers = Checkers("app.checker", Settings(model_repository=sys.argv[1]), lambda: models)
    lines = LinesOf(uuid4(), "/v1/chat/completions", 0, None, datetime.now(UTC), None, "", Caller(0), 10**6)
    task = asyncio.create_task(checkers.check(Part(0, [(1, sys.stdin.buffer.read())]), lines))
    while not checkers.pids:
        await asyncio.sleep(0.01)
    print(checkers.pids[0], flush=True)
    await task

asyncio.run(main())
"""
ENDLESS = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"


async def test_a_checker_ends_with_a_killed_api_also_within_a_template_that_does_not_end(tmp_path: Path) -> None:
    folder = tmp_path / "chat" / "1"
    folder.mkdir(parents=True)
    template = folder / "chat_template.jinja"
    os.mkfifo(template)
    parent = subprocess.Popen(  # noqa: ASYNC220 - it takes no time
        [sys.executable, "-c", PARENT, str(tmp_path)],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert parent.stdin is not None
    assert parent.stdout is not None
    parent.stdin.write(json.dumps(line("a", chat("Hi"), CHATS)).encode())
    parent.stdin.close()
    checker = psutil.Process(int(await asyncio.to_thread(parent.stdout.readline)))
    # It has come to the template once this is read.
    await asyncio.to_thread(template.write_text, ENDLESS)
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    parent.stdout.close()

    async def gone() -> bool:
        return not checker.is_running() or checker.status() == psutil.STATUS_ZOMBIE

    await eventually(gone, "the checker ends", 20)


@pytest.mark.parametrize("count", [1, 3, 20])
async def test_few_parts_are_under_way_and_come_in_order(count: int) -> None:
    read = done = most = 0

    async def parts() -> AsyncIterator[Part]:
        nonlocal read, most
        for number in range(count):
            read += 1
            most = max(most, read - done)
            yield Part(number, [])

    async def check(part: Part) -> list[CheckedLine]:
        # The later ones are ready first.
        for _ in range(count - part.ms):
            await asyncio.sleep(0)
        return [CheckedLine(part.ms)]

    order = []
    async for part, checked in in_order(parts(), check, PARTS_AT_ONCE):
        done += 1
        order.append((part.ms, checked[0].number))
    assert order == [(number, number) for number in range(count)]
    assert most == min(count, PARTS_AT_ONCE)


async def test_parts_under_way_end_together_where_the_reading_is_cancelled() -> None:
    begun: list[int] = []
    room = asyncio.Semaphore(2)

    async def parts() -> AsyncIterator[Part]:
        for number in range(10):
            yield Part(number, [])

    async def check(part: Part) -> list[CheckedLine]:
        async with room:
            begun.append(part.ms)
            await asyncio.Event().wait()
        return []

    async def reading() -> None:
        async for _ in in_order(parts(), check, PARTS_AT_ONCE):
            pass

    task = asyncio.create_task(reading())

    async def busy() -> bool:
        return len(begun) == 2

    await eventually(busy, "two are checked")
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert begun == [0, 1]
