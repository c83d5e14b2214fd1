"""/v1/batches through the official client."""

import asyncio
import json
import re
import tracemalloc
from collections.abc import Callable
from contextlib import AsyncExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import openai
import pytest
from openai.types import Batch

from app.config import Settings
from app.db.engine import Database
from app.db.ids import lowest_at
from app.dispatch.batches import _lines
from app.openai.batch_lines import json_line
from app.queue import bulk
from app.queue.audit import KEYLESS
from app.queue.batches import BatchStore
from app.queue.store import QueueStore
from app.services.keys import Keys, NewKey
from app.services.loading import MOST_TRIES
from tests.conftest import alembic, with_database
from tests.openai.conftest import client_of
from tests.postgres_server import RunningPostgres
from tests.servers import TEST_MODELS
from tests.service import Service, eventually, running_api, running_dispatcher

COMPLETIONS = "/v1/completions"
CHATS = "/v1/chat/completions"
RESPONSES = "/v1/responses"
FINAL = ("completed", "failed", "expired", "cancelled")
TOO_LONG = "far too long " * 2000


def line(custom_id: str, body: dict[str, Any], url: str = COMPLETIONS) -> dict[str, Any]:
    return {"custom_id": custom_id, "method": "POST", "url": url, "body": body}


def prompt(text: str = "Tell me.", **parameters: Any) -> dict[str, Any]:
    return {"model": "tiny", "prompt": text, "max_tokens": 3, "seed": 1} | parameters


async def start(client: openai.AsyncOpenAI, lines: list[Any], endpoint: Any = COMPLETIONS, **options: Any) -> Batch:
    content = "\n".join(each if isinstance(each, str) else json.dumps(each) for each in lines)
    file = await client.files.create(file=("in.jsonl", content.encode()), purpose="batch")
    return await client.batches.create(input_file_id=file.id, endpoint=endpoint, completion_window="24h", **options)


async def ended(client: openai.AsyncOpenAI, batch: Batch, seconds: float = 40) -> Batch:
    async def final() -> Batch | None:
        found = await client.batches.retrieve(batch.id)
        return found if found.status in FINAL else None

    found: Batch = await eventually(final, f"the end of {batch.id}", seconds, 0.1)
    return found


async def lines_of(client: openai.AsyncOpenAI, file_id: str | None) -> list[dict[str, Any]]:
    if file_id is None:
        return []
    return [json.loads(text) for text in (await client.files.content(file_id)).text.splitlines()]


async def in_progress(client: openai.AsyncOpenAI, batch: Batch) -> Batch:
    async def begun() -> Batch | None:
        found = await client.batches.retrieve(batch.id)
        return found if found.status != "validating" else None

    found: Batch = await eventually(begun, "the batch is loaded")
    assert found.status == "in_progress", found.errors
    return found


@pytest.mark.parametrize(
    ("endpoint", "body"),
    [
        (COMPLETIONS, prompt(n=2, logprobs=1)),
        ("/v1/chat/completions", {"model": "chat", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 4}),
        ("/v1/responses", {"model": "chat", "input": "Hi", "max_output_tokens": 4}),
        ("/v1/embeddings", {"model": "embed", "input": ["one text", "another text"]}),
    ],
)
async def test_each_line_is_answered_as_the_endpoint_answers_it(
    client: openai.AsyncOpenAI, service: Service, endpoint: str, body: dict[str, Any]
) -> None:
    batch = await start(client, [line(f"id {n}", body | {"user": f"u{n}"}, endpoint) for n in range(5)], endpoint)
    assert (batch.object, batch.status, batch.endpoint) == ("batch", "validating", endpoint)
    batch = await ended(client, batch)
    assert batch.status == "completed", batch.errors
    assert batch.request_counts is not None
    assert batch.request_counts.to_dict() == {"total": 5, "completed": 5, "failed": 0}
    assert batch.error_file_id is None
    made = (batch.created_at, batch.in_progress_at, batch.finalizing_at, batch.completed_at)
    assert all(made)
    assert list(made) == sorted(made)  # type: ignore[type-var]
    answers = await lines_of(client, batch.output_file_id)
    assert [each["custom_id"] for each in answers] == [f"id {n}" for n in range(5)]
    for each in answers:
        assert (each["error"], each["response"]["status_code"]) == (None, 200)
        assert set(each["response"]["body"]) == set((await service.client.post(endpoint, json=body)).json())
    assert batch.usage is not None
    assert batch.usage.total_tokens == sum(each["response"]["body"]["usage"]["total_tokens"] for each in answers)
    assert batch.output_file_id is not None
    file = await client.files.retrieve(batch.output_file_id)
    assert (file.purpose, file.filename) == ("batch_output", f"{batch.id}_output.jsonl")


async def test_what_fails_is_in_the_error_file(client: openai.AsyncOpenAI) -> None:
    texts = {"a": "Tell me.", "b": TOO_LONG, "c": "Tell me.", "d": TOO_LONG}
    batch = await start(
        client,
        [line(name, prompt(text)) for name, text in texts.items()],
        metadata={"job": "nightly"},
        output_expires_after={"anchor": "created_at", "seconds": 7200.0},  # type: ignore[dict-item]
    )
    batch = await ended(client, batch)
    assert (batch.status, batch.metadata) == ("completed", {"job": "nightly"})
    assert batch.request_counts is not None
    assert batch.request_counts.to_dict() == {"total": 4, "completed": 2, "failed": 2}
    assert [each["custom_id"] for each in await lines_of(client, batch.output_file_id)] == ["a", "c"]
    errors = await lines_of(client, batch.error_file_id)
    assert [each["custom_id"] for each in errors] == ["b", "d"]
    with pytest.raises(openai.BadRequestError) as refused:
        await client.completions.create(**prompt(TOO_LONG))
    for each in errors:
        assert (each["error"], each["response"]["status_code"]) == (None, 400)
        assert each["response"]["body"]["error"]["code"] == refused.value.code == "context_length_exceeded"
    # The batch itself names them too.
    assert batch.errors is not None
    assert [(each.line, each.code) for each in batch.errors.data or []] == [
        (2, "context_length_exceeded"),
        (4, "context_length_exceeded"),
    ]
    assert batch.error_file_id is not None
    file = await client.files.retrieve(batch.error_file_id)
    assert file.expires_at is not None
    assert abs(file.expires_at - file.created_at - 7200) <= 1


async def test_bad_lines_are_named_and_nothing_is_queued(client: openai.AsyncOpenAI, api_rows: "Rows") -> None:
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


Rows = Callable[[], Any]


@pytest.fixture
def api_rows(database: Database) -> Rows:
    async def count() -> tuple[int, int]:
        async with database.hot() as connection:
            row = await connection.fetchrow("SELECT (SELECT count(*) FROM contexts), (SELECT count(*) FROM results)")
        return tuple(row)

    return count


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


async def test_batches_are_listed_by_status_and_time(client: openai.AsyncOpenAI, service: Service) -> None:
    done, refused = await start(client, [line("a", prompt())]), await start(client, ["{"])
    done, refused = await ended(client, done), await ended(client, refused)

    async def listed(**query: Any) -> list[str]:
        return [batch.id async for batch in client.batches.list(limit=1, extra_query=query)]

    assert await listed(status="completed") == [done.id]
    assert await listed(status=["failed", "completed"]) == [refused.id, done.id]
    assert await listed(status="cancelled") == []
    assert await listed(created_after=done.created_at - 1) == [refused.id, done.id]
    assert await listed(created_before=done.created_at - 1) == []
    assert await listed(created_after="2999-01-01T00:00:00Z") == []
    for query, param in (("status=queued", "status[0]"), ("created_after=soon", "created_after")):
        answer = await service.client.get(f"/v1/batches?{query}")
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)


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


STARTED = "SELECT count(*) FROM results WHERE batch_id IS NOT NULL AND started_at IS NOT NULL"


async def test_what_is_sent_by_itself_goes_before_the_lines_of_a_batch(
    make_settings: Callable[..., Settings], database: Database
) -> None:
    settings = make_settings(model_concurrency=1)
    async with running_api(settings) as service, running_dispatcher(settings), client_of(service) as client:
        batch = await in_progress(client, await start(client, [line(str(n), prompt()) for n in range(400)]))
        async with database.hot() as connection:
            for _ in range(5):
                sent = await service.send()
                before = await connection.fetchval(STARTED)
                result = await service.settled(sent)
                started = await connection.fetchval(
                    f"{STARTED} AND started_at < $1", datetime.fromisoformat(result["started_at"])
                )
                # One may have been claimed in the same moment, before the ticket could be seen.
                assert started - before <= 1
        assert (await client.batches.retrieve(batch.id)).status == "in_progress"
        async with database.hot() as connection:
            ranks = await connection.fetchrow(
                """SELECT min(l.rank) - l.created_at AS behind, l.expires_at - min(l.rank) AS before_its_end
                   FROM results l WHERE l.batch_line = 1 GROUP BY l.created_at, l.expires_at"""
            )
        assert ranks["behind"].total_seconds() > 21 * 3600
        assert ranks["before_its_end"].total_seconds() == pytest.approx(2 * 3600, abs=5)
        await client.batches.cancel(batch.id)
        await ended(client, batch)


async def test_a_loader_that_died_leaves_nothing_and_another_one_loads(
    make_settings: Callable[..., Settings], database: Database, api_rows: Rows
) -> None:
    async with running_api(make_settings(poll_seconds=1000)) as service, client_of(service) as client:
        store = BatchStore(database)
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


async def test_limits_of_the_key_and_its_webhook_count(
    make_settings: Callable[..., Settings], database: Database
) -> None:
    made, key = await Keys(database).create(NewKey("alice", pending_limit=10), KEYLESS)
    async with database.hot() as connection:
        hook = {"url": "http://127.0.0.1:9/hook", "events": ["result.completed", "result.failed"]}
        await connection.execute("UPDATE api_keys SET webhook = $1", hook)
    settings = make_settings(auth_required=True, webhook_allow_private=False)
    async with AsyncExitStack() as stack:
        service = await stack.enter_async_context(running_api(settings))
        client = await stack.enter_async_context(client_of(service, api_key=key))
        batch = await ended(client, await start(client, [line(str(n), prompt()) for n in range(11)]))
        assert batch.errors is not None
        assert [error.code for error in batch.errors.data or []] == ["pending_limit_reached"]
        done = await in_progress(client, await start(client, [line(str(n), prompt()) for n in range(10)]))
        await stack.enter_async_context(running_dispatcher(settings))
        done = await ended(client, done)
        assert done.status == "completed"
        async with database.hot() as connection:
            told = await connection.fetch("SELECT batch_id, event, url FROM webhook_deliveries ORDER BY event")
            keys = await connection.fetchval("SELECT count(*) FROM results WHERE key_id = $1", made["id"])
        assert [(f"batch_{row['batch_id'].hex}", row["event"], row["url"]) for row in told] == [
            (done.id, "batch.completed", hook["url"]),
            (batch.id, "batch.failed", hook["url"]),
        ]
        assert keys == 10


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


BREAKS = "{% if messages[0].content == 'break' %}{{ 'x' * (10 ** 18 * messages | length) }}{% endif %}"


@pytest.fixture
def breakable(make_settings: Callable[..., Settings], tmp_path: Path) -> Callable[..., Settings]:
    """Settings of a service whose template for `chat` runs out of memory where a chat begins with `break`."""
    template = tmp_path / "models" / "chat" / "1" / "chat_template.jinja"
    template.parent.mkdir(parents=True)
    template.write_text(BREAKS + (TEST_MODELS / "chat" / "1" / "chat_template.jinja").read_text())

    def make(**changes: object) -> Settings:
        return make_settings(**({"model_repository": str(tmp_path / "models")} | changes))

    return make


def chats(texts: list[str]) -> list[dict[str, Any]]:
    body = {"model": "chat", "max_tokens": 3}
    return [
        line(f"{place}", body | {"messages": [{"role": "user", "content": text}]}, CHATS)
        for place, text in enumerate(texts)
    ]


async def test_a_line_that_nothing_can_be_made_of_ends_alone(breakable: Callable[..., Settings]) -> None:
    settings = breakable(log_level="CRITICAL")
    async with running_api(settings) as service, running_dispatcher(settings), client_of(service) as client:
        batch = await ended(client, await start(client, chats(["Hi", "break", "Ho"]), CHATS))
        assert batch.status == "completed"
        assert batch.request_counts is not None
        assert batch.request_counts.to_dict() == {"total": 3, "completed": 2, "failed": 1}
        assert [each["custom_id"] for each in await lines_of(client, batch.output_file_id)] == ["0", "2"]
        [error] = await lines_of(client, batch.error_file_id)
        assert (error["custom_id"], error["response"], error["error"]["code"]) == ("1", None, "line_defective")
        assert "its cause is in the service's log" in error["error"]["message"]
        [result] = (await service.client.get("/results/?status=failed")).json()
        assert (result["error"]["code"], result["attempt_count"]) == ("line_defective", 0)
        answer = await service.client.post(f"/results/{result['id']}/retry")
        assert (answer.status_code, answer.json()["code"]) == (409, "line_defective")


async def test_a_line_that_postgres_refuses_ends_alone(
    make_settings: Callable[..., Settings], database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bulk, "MAX_STATEMENT_BYTES", 3000)
    async with database.hot() as connection:
        await connection.execute("ALTER TABLE contexts ADD CONSTRAINT tame CHECK (content NOT LIKE '%poison%')")
    async with AsyncExitStack() as stack:
        settings = make_settings(log_level="CRITICAL")
        service = await stack.enter_async_context(running_api(settings))
        await stack.enter_async_context(running_dispatcher(settings))
        client = await stack.enter_async_context(client_of(service))
        texts = ["poison" if n in (0, 7, 29) else f"text {n}" for n in range(30)]
        batch = await ended(client, await start(client, [line(f"c{n}", prompt(t)) for n, t in enumerate(texts)]))
        assert batch.status == "completed", batch.errors
        assert batch.request_counts is not None
        assert batch.request_counts.to_dict() == {"total": 30, "completed": 27, "failed": 3}
        answered = await lines_of(client, batch.output_file_id)
        assert [each["custom_id"] for each in answered] == [f"c{n}" for n in range(30) if n not in (0, 7, 29)]
        errors = await lines_of(client, batch.error_file_id)
        assert [each["custom_id"] for each in errors] == ["c0", "c7", "c29"]
        for each in errors:
            assert each["error"]["code"] == "line_defective"
            assert "Postgres cannot store this request" in each["error"]["message"]


async def test_a_defect_that_hits_every_line_ends_the_batch(
    breakable: Callable[..., Settings], database: Database, api_rows: Rows
) -> None:
    async with database.hot() as connection:
        # The try before the last one.
        await connection.execute(f"ALTER TABLE batches ALTER tries SET DEFAULT {MOST_TRIES - 1}")
    async with running_api(breakable(log_level="CRITICAL")) as service, client_of(service) as client:
        batch = await ended(client, await start(client, chats(["break"] * 3), CHATS))
        assert batch.status == "failed"
        assert batch.errors is not None
        assert [(error.line, error.code) for error in batch.errors.data or []] == [(None, "internal_error")]
        assert await api_rows() == (0, 0)
        mixed = [
            *chats(["break"]),
            line("a", {"model": "nobody's", "messages": [{"role": "user", "content": "x"}]}, CHATS),
        ]
        refused = await ended(client, await start(client, mixed, CHATS))
        assert refused.errors is not None
        assert [(error.line, error.code) for error in refused.errors.data or []] == [(2, "model_not_found")]


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


async def test_the_lines_of_a_batch_are_read_few_bytes_at_a_time(api: Service, database: Database) -> None:
    async with client_of(api) as client:
        await in_progress(client, await start(client, [line(str(n), prompt()) for n in range(20)]))
    async with database.hot() as connection:
        await connection.execute("UPDATE results SET output = repeat('x', 4000000)")
        row = await connection.fetchrow("SELECT * FROM batches")
        tracemalloc.start()
        try:
            sizes = [len(each["output"]) async for each in _lines(connection, row)]
            assert tracemalloc.get_traced_memory()[1] < 20_000_000
        finally:
            tracemalloc.stop()
    assert sizes == [4_000_000] * 20


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
