"""How a file becomes a batch: its lines are read, checked and stored."""

import asyncio
import json
from collections.abc import Callable
from typing import Any
from uuid import uuid4

import asyncpg
import openai
import pytest

from app.config import Settings
from app.db.engine import Database
from app.openai.batch_lines import json_line
from app.queue.batch_work import BatchWork
from tests.conftest import alembic, with_database
from tests.openai.batch_kit import COMPLETIONS, ended, in_progress, line, lines_of, prompt, start
from tests.openai.conftest import Rows, client_of
from tests.postgres_server import RunningPostgres
from tests.service import eventually, running_api, running_dispatcher


async def test_bad_lines_are_named_and_nothing_is_queued(client: openai.AsyncOpenAI, api_rows: Rows) -> None:
    wrong: list[tuple[Any, str, str | None]] = [
        ("{not json", "invalid_json_line", None),
        ("[1]", "invalid_json_line", None),
        ({"method": "POST", "url": COMPLETIONS, "body": prompt()}, "missing_required_parameter", "custom_id"),
        ({"custom_id": "m", "url": COMPLETIONS, "body": prompt()}, "missing_required_parameter", "method"),
        ({"custom_id": "u", "method": "POST", "body": prompt()}, "missing_required_parameter", "url"),
        ({"custom_id": "b", "method": "POST", "url": COMPLETIONS}, "missing_required_parameter", "body"),
        (line("g", prompt()) | {"method": "GET"}, "invalid_method", "method"),
        (line("e", prompt(), "/v1/embeddings"), "mismatched_endpoint", "url"),
        (line(7, prompt()), "invalid_custom_id", "custom_id"),  # type: ignore[arg-type]
        (line("ok", prompt()), "duplicate_custom_id", "custom_id"),
        (line("s", prompt(stream=True)), "unsupported_parameter", "body.stream"),
        (line("t", prompt(temperature=9)), "invalid_request", "body.temperature"),
        (line("x", prompt(best_off=1)), "unsupported_parameter", "body.best_off"),
        (line("lb", prompt(logit_bias={"42": 5})), "unsupported_parameter", "body.logit_bias"),
        (line("n", prompt(model="nobody's")), "model_not_found", None),
        (line("l", [1]), "invalid_request", "body"),  # type: ignore[arg-type]
        (line("0", prompt("\x00")), "invalid_request", None),
    ]
    batch = await ended(client, await start(client, [line("ok", prompt()), "", *(each for each, _, _ in wrong)]))
    assert (batch.status, batch.output_file_id, batch.error_file_id) == ("failed", None, None)
    assert batch.failed_at is not None
    assert batch.errors is not None
    assert batch.errors.data is not None
    assert batch.errors.to_dict()["total"] == len(wrong)
    found = [(error.line, error.code) for error in batch.errors.data]
    assert found == [(number, code) for number, (_, code, _) in enumerate(wrong, start=3)]
    for error, (_, _, param) in zip(batch.errors.data, wrong, strict=True):
        assert error.message
        assert param is None or error.param == param, error
    (twice,) = [error for error in batch.errors.data if error.code == "duplicate_custom_id"]
    assert "line 1 and again on line 12" in str(twice.message)
    assert await api_rows() == (0, 0)


async def test_of_many_bad_lines_a_hundred_are_shown(client: openai.AsyncOpenAI) -> None:
    batch = await ended(client, await start(client, [line(str(n), prompt(top_p=7)) for n in range(250)]))
    assert batch.errors is not None
    assert batch.errors.data is not None
    assert (len(batch.errors.data), batch.errors.to_dict()["total"]) == (100, 250)


async def test_a_file_is_no_batch_when_it_is_too_long_or_says_nothing(client: openai.AsyncOpenAI) -> None:
    empty = await ended(client, await start(client, ["", "  ", ""]))
    assert [error.code for error in (empty.errors and empty.errors.data) or []] == ["empty_file"]
    many = await ended(client, await start(client, ["{}"] * 50_001))
    assert many.errors is not None
    assert many.errors.to_dict()["total"] == 50_001


def test_no_line_of_a_file_ends_within_what_it_says() -> None:
    said = {"text": "a\u2028b\u2029c\x85d\x0b\x0c\x1c\x1d\x1ee\r\nf"}
    (written,) = json_line(said).decode().splitlines()
    assert json.loads(written) == said


async def test_a_byte_order_mark_and_windows_line_ends_are_no_errors(client: openai.AsyncOpenAI) -> None:
    lines = [json.dumps(line(custom_id, prompt())) for custom_id in "ab"]
    batch = await ended(client, await start(client, ["\ufeff" + "\r\n".join(lines) + "\r\n"]))
    assert (batch.status, batch.errors) == ("completed", None)
    assert [each["custom_id"] for each in await lines_of(client, batch.output_file_id)] == ["a", "b"]


async def test_a_line_may_be_as_long_as_a_body(make_settings: Callable[..., Settings]) -> None:
    settings = make_settings(max_body_bytes=2048)
    async with running_api(settings) as service, client_of(service) as client:
        lines = [line("a", prompt("x" * 700_000)), line("b", prompt()), line("c", prompt("x" * 2500))]
        batch = await ended(client, await start(client, lines))
        assert batch.errors is not None
        assert [(error.line, error.code) for error in batch.errors.data or []] == [
            (1, "body_too_large"),
            (3, "body_too_large"),
        ]


async def test_what_is_wrong_with_the_request_is_named(client: openai.AsyncOpenAI) -> None:
    file = await client.files.create(file=("a.jsonl", b"x"), purpose="batch")
    right: dict[str, Any] = {"input_file_id": file.id, "endpoint": COMPLETIONS, "completion_window": "24h"}
    for name, value in (("endpoint", "/v1/moderations"), ("completion_window", "1h"), ("metadata", {"a": 1})):
        with pytest.raises(openai.BadRequestError) as refused:
            await client.batches.create(**(right | {name: value}))
        assert refused.value.param is not None
        assert refused.value.param.startswith(name)
    for unknown in ("file-" + "0" * 32, "file-x", "x"):
        with pytest.raises(openai.NotFoundError):
            await client.batches.create(**(right | {"input_file_id": unknown}))
    batch = await ended(client, await start(client, [line("a", prompt())]))
    with pytest.raises(openai.BadRequestError) as refused:
        await client.batches.create(**(right | {"input_file_id": batch.output_file_id}))
    assert refused.value.param == "input_file_id"


async def test_the_same_key_makes_one_batch(client: openai.AsyncOpenAI) -> None:
    file = await client.files.create(file=("a.jsonl", json.dumps(line("a", prompt())).encode()), purpose="batch")
    asked: dict[str, Any] = {"input_file_id": file.id, "endpoint": COMPLETIONS, "completion_window": "24h"}
    headers = {"Idempotency-Key": "one"}
    made = {(await client.batches.create(**asked, extra_headers=headers)).id for _ in range(3)}
    assert len(made) == 1
    with pytest.raises(openai.BadRequestError) as refused:
        await client.batches.create(**asked, metadata={"other": "one"}, extra_headers=headers)
    assert refused.value.code == "idempotency_mismatch"
    batches = [(await client.batches.create(**asked)).id for _ in range(3)]
    assert [batch.id async for batch in client.batches.list(limit=2)] == [*batches[::-1], *made]


async def test_a_batch_that_is_cancelled_while_it_is_checked_never_begins(
    make_settings: Callable[..., Settings], api_rows: Rows
) -> None:
    """However the two meet: it has all its lines or none."""
    async with running_api(make_settings()) as service, client_of(service) as client:
        batch = await start(client, [line(str(n), prompt()) for n in range(3000)])
        batch = await client.batches.cancel(batch.id)
        assert batch.status == "cancelled"
        after = await start(client, [line("a", prompt())])
        await in_progress(client, after)
        assert await api_rows() == (1, 1)
        assert (await client.batches.retrieve(batch.id)).status == "cancelled"


async def test_a_loader_that_died_leaves_nothing_and_another_one_loads(
    make_settings: Callable[..., Settings], database: Database, api_rows: Rows
) -> None:
    async with running_api(make_settings(poll_seconds=1000)) as service, client_of(service) as client:
        store = BatchWork(database)
        file = await client.files.create(file=("a", json.dumps(line("a", prompt())).encode()), purpose="batch")
        asked: dict[str, Any] = {"input_file_id": file.id, "endpoint": COMPLETIONS, "completion_window": "24h"}
        # Taken as by a process that dies before the API's own loader looks.
        async with database.hot() as connection:
            await connection.execute("ALTER TABLE batches ALTER lease_until SET DEFAULT now() + interval '2 seconds'")
        batch = await client.batches.create(**asked)
        assert await store.take_to_load(3) is None
        assert (await client.batches.retrieve(batch.id)).status == "validating"
        async with running_api(make_settings(poll_seconds=0.2)):
            await in_progress(client, batch)
        assert await api_rows() == (1, 1)


async def test_an_api_that_was_there_before_the_tables_loads_batches_all_the_same(
    make_settings: Callable[..., Settings], postgres: RunningPostgres
) -> None:
    name = f"test_{uuid4().hex}"
    connection = await asyncpg.connect(postgres.url)
    await connection.execute(f"CREATE DATABASE {name}")
    settings = make_settings(database_url=with_database(postgres.url, name))
    async with running_api(settings) as service, client_of(service) as client:
        assert (await service.client.get("/health/ready")).status_code == 503
        done = await asyncio.to_thread(alembic, settings.database_url, "upgrade", "head")
        assert done.returncode == 0, done.stderr
        async with running_dispatcher(settings):

            async def served() -> bool:
                return (await service.client.get("/v1/models/tiny")).status_code == 200

            await eventually(served, "the model is there")
            batch = await ended(client, await start(client, [line("a", prompt())]))
            assert (batch.status, batch.errors) == ("completed", None)
    await connection.execute(f"DROP DATABASE {name} WITH (FORCE)")
    await connection.close()


async def test_a_file_deleted_before_it_is_read_ends_the_batch(
    make_settings: Callable[..., Settings], database: Database
) -> None:
    async with database.hot() as connection:
        await connection.execute("ALTER TABLE batches ALTER lease_until SET DEFAULT now() + interval '1 second'")
    async with running_api(make_settings()) as service, client_of(service) as client:
        batch = await start(client, [line("a", prompt())])
        await client.files.delete(batch.input_file_id)
        batch = await ended(client, batch)
        assert batch.errors is not None
        assert [error.code for error in batch.errors.data or []] == ["file_not_found"]
