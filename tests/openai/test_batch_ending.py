"""How a batch ends: its files, and what remains of one that is cancelled, expires or is deleted."""

import asyncio
import re
from collections.abc import Callable
from contextlib import AsyncExitStack
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import openai
import pytest

from app.config import Settings
from app.db.engine import Database
from app.db.ids import lowest_at
from app.queue.batches import BatchStore
from app.queue.store import QueueStore
from tests.openai.batch_kit import RESPONSES, TOO_LONG, ended, in_progress, line, lines_of, prompt, start
from tests.openai.conftest import client_of
from tests.service import Service, eventually, running_api, running_dispatcher


async def test_a_cancelled_batch_keeps_what_is_done(make_settings: Callable[..., Settings], database: Database) -> None:
    settings = make_settings(model_concurrency=2)
    async with running_api(settings) as service, running_dispatcher(settings), client_of(service) as client:
        slow = [line(str(n), prompt(model="slow", ignore_eos=True)) for n in range(700)]
        batch = await start(client, slow)

        async def some() -> bool:
            counts = (await client.batches.retrieve(batch.id)).request_counts
            return counts is not None and counts.completed > 3

        await eventually(some, "some lines are done")
        assert (await client.batches.cancel(batch.id)).status == "cancelling"
        assert (await client.batches.cancel(batch.id)).status in ("cancelling", "cancelled")
        batch = await ended(client, batch)
        assert batch.status == "cancelled"
        assert batch.cancelled_at is not None
        done = await lines_of(client, batch.output_file_id)
        not_done = await lines_of(client, batch.error_file_id)
        assert len(done) > 3
        assert sorted(int(each["custom_id"]) for each in (*done, *not_done)) == list(range(700))
        assert {(each["response"], each["error"]["code"]) for each in not_done} == {(None, "batch_cancelled")}
        assert batch.request_counts is not None
        assert batch.request_counts.to_dict() == {"total": 700, "completed": len(done), "failed": len(not_done)}
        with pytest.raises(openai.ConflictError) as refused:
            await client.batches.cancel((await ended(client, await start(client, [line("a", prompt())]))).id)
        assert refused.value.code == "batch_ended"


async def test_an_expired_batch_keeps_what_is_done(make_settings: Callable[..., Settings], database: Database) -> None:
    settings = make_settings(model_concurrency=2)
    async with AsyncExitStack() as stack:
        client = await stack.enter_async_context(client_of(await stack.enter_async_context(running_api(settings))))
        batch = await in_progress(client, await start(client, [line(str(n), prompt()) for n in range(20)]))
        async with database.hot() as connection:
            await connection.execute("UPDATE results SET expires_at = now() WHERE batch_line > 12")
        await stack.enter_async_context(running_dispatcher(settings))
        batch = await ended(client, batch)
        assert batch.status == "expired"
        assert batch.expired_at is not None
        assert [int(each["custom_id"]) for each in await lines_of(client, batch.output_file_id)] == list(range(12))
        errors = await lines_of(client, batch.error_file_id)
        assert [int(each["custom_id"]) for each in errors] == list(range(12, 20))
        assert {each["error"]["code"] for each in errors} == {"batch_expired"}


async def test_two_dispatchers_write_one_pair_of_files(
    make_settings: Callable[..., Settings], database: Database
) -> None:
    settings = make_settings()
    async with running_api(settings) as service, running_dispatcher(settings), running_dispatcher(settings):
        async with client_of(service) as client:
            batches = await asyncio.gather(
                *(start(client, [line(str(n), prompt()) for n in range(40)]) for _ in range(4))
            )
            for batch in batches:
                found = await ended(client, batch)
                assert len(await lines_of(client, found.output_file_id)) == 40
        async with database.hot() as connection:
            outputs = await connection.fetchval("SELECT count(*) FROM files WHERE purpose = 'batch_output'")
        assert outputs == 4


@pytest.mark.parametrize("broken", [[2], [1, 2, 3]])
async def test_an_answer_that_cannot_be_rendered_keeps_back_no_other(
    make_settings: Callable[..., Settings], database: Database, broken: list[int]
) -> None:
    settings = make_settings(log_level="CRITICAL")
    async with AsyncExitStack() as stack:
        service = await stack.enter_async_context(running_api(settings))
        client = await stack.enter_async_context(client_of(service))
        batch = await in_progress(client, await start(client, [line(str(n), prompt()) for n in (1, 2, 3)]))
        async with database.hot() as connection:
            await connection.execute("UPDATE results SET request = '[1]' WHERE batch_line = ANY ($1)", broken)
        await stack.enter_async_context(running_dispatcher(settings))
        batch = await ended(client, batch)
        assert batch.status == "completed"
        whole = [str(n) for n in (1, 2, 3) if n not in broken]
        assert batch.request_counts is not None
        assert batch.request_counts.to_dict() == {"total": 3, "completed": len(whole), "failed": len(broken)}
        assert [each["custom_id"] for each in await lines_of(client, batch.output_file_id)] == whole
        errors = await lines_of(client, batch.error_file_id)
        assert [each["custom_id"] for each in errors] == [str(n) for n in broken]
        for each in errors:
            assert (each["response"], each["error"]["code"]) == (None, "line_defective")
            id_ = re.findall(r"GET /results/([0-9a-f-]{36})", each["error"]["message"])[0]
            assert (await service.result(id_))["status"] == "completed"


async def test_what_belongs_to_an_open_batch_is_not_deleted(service: Service, client: openai.AsyncOpenAI) -> None:
    texts = {"done": "Hi", "hangs": "[[sim:hang]]"}
    lines = [
        line(name, {"model": "chat", "input": text, "max_output_tokens": 3}, RESPONSES) for name, text in texts.items()
    ]
    batch = await in_progress(client, await start(client, lines, RESPONSES))
    results = {each["client_reference"]: each for each in (await service.client.get("/results/")).json()}
    done, hangs = await service.settled(results["done"]["id"]), results["hangs"]
    again = (await service.client.post(f"/results/{done['id']}/retry")).json()
    await service.settled(again["result_id"])

    async def delete_context(result: dict[str, Any]) -> tuple[int, str]:
        answer = await service.client.delete(f"/contexts/{result['context_id']}")
        return answer.status_code, answer.json()["code"] if answer.content else ""

    assert await delete_context(done) == await delete_context(hangs) == (409, "batch_not_ended")
    with pytest.raises(openai.ConflictError) as refused:
        await client.responses.delete(response_id(done["id"]))
    assert refused.value.code == "batch_not_ended"
    assert f"is a line of {batch.id}" in refused.value.message
    # Its retry is no line of the batch.
    await client.responses.delete(response_id(again["result_id"]))
    await client.batches.cancel(batch.id)
    batch = await ended(client, batch)
    assert [each["custom_id"] for each in await lines_of(client, batch.output_file_id)] == ["done"]
    assert [each["custom_id"] for each in await lines_of(client, batch.error_file_id)] == ["hangs"]
    await client.responses.delete(response_id(done["id"]))
    assert await delete_context(hangs) == (204, "")
    assert (await service.client.get("/results/")).json() == []


def response_id(result_id: str) -> str:
    return f"resp_{UUID(result_id).hex}"


async def test_the_retention_takes_lines_only_once_they_are_in_a_file(
    make_settings: Callable[..., Settings], database: Database
) -> None:
    settings = make_settings()
    async with running_api(settings) as service, running_dispatcher(settings), client_of(service) as client:
        lines = [line("a", prompt()), line("b", prompt(TOO_LONG)), line("c", prompt("[[sim:hang]]"))]
        batch = await in_progress(client, await start(client, lines))

        async def two_done() -> bool:
            counts = (await client.batches.retrieve(batch.id)).request_counts
            return counts is not None and counts.completed + counts.failed == 2

        await eventually(two_done, "all but one are done")
        store, tomorrow = QueueStore(database), lowest_at(datetime.now(UTC) + timedelta(days=1))
        assert await store.remove(tomorrow, 0, 10) == 0
        await client.batches.cancel(batch.id)
        batch = await ended(client, batch)
        assert batch.request_counts is not None
        assert batch.request_counts.to_dict() == {"total": 3, "completed": 1, "failed": 2}
        assert await store.remove(tomorrow, 0, 10) == 3
        assert await BatchStore(database).remove(tomorrow, 10) == 1
