"""/v1/batches through the official client: each line is answered, by itself and in its turn."""

from collections.abc import Callable
from contextlib import AsyncExitStack
from datetime import datetime
from pathlib import Path
from typing import Any

import openai
import pytest

from app.config import Settings
from app.db.engine import Database
from app.queue import bulk
from app.queue.audit import KEYLESS
from app.services.keys import Keys, NewKey
from app.services.loading import MOST_TRIES
from tests.openai.batch_kit import CHATS, COMPLETIONS, TOO_LONG, ended, in_progress, line, lines_of, prompt, start
from tests.openai.conftest import Rows, client_of
from tests.servers import TEST_MODELS
from tests.service import Service, running_api, running_dispatcher


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
