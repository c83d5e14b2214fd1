"""A defect, or a row that Postgres refuses, ends one thing and no dispatcher."""

import asyncio
import logging
import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any
from uuid import UUID

import asyncpg
import pytest
from prometheus_client import REGISTRY

from app import background
from app.background import Background
from app.config import Settings
from app.db.engine import Database
from app.db.ids import time_of, uuid7
from app.db.tables.contexts import Prompt
from app.db.tables.results import SettledColumns
from app.dispatch.outbox import Outbox
from app.queue import bulk
from app.queue.bulk import statements_of
from app.queue.store import QueueStore, submission_row, submission_size
from app.queue.submit import Submitter
from app.queue.ticket import Claim, Outcome, Release, Settlement, Status, Submission, rank_of
from app.services.changed_settings import ChangedSettings
from tests.service import eventually, running_api, running_dispatcher


def restarts(task: str) -> float:
    return REGISTRY.get_sample_value("tickets_background_restarts_total", {"task": task}) or 0.0


async def test_a_task_that_crashes_is_restarted_after_pauses_that_grow(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(background, "FIRST_PAUSE_SECONDS", 0.02)
    monkeypatch.setattr(logging.getLogger("tickets"), "propagate", True)
    clock = asyncio.get_running_loop().time
    starts: list[float] = []
    cancelled = asyncio.Event()

    async def work() -> None:
        starts.append(clock())
        if len(starts) == 1:
            raise RuntimeError("a defect")
        if len(starts) == 2:
            # What awaits a task that another one cancelled ends like this; it is no reason to stop.
            raise asyncio.CancelledError
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    before = restarts("test")
    async with Background() as owner:
        owner.start("test", work)

        async def third() -> bool:
            return len(starts) == 3

        await eventually(third, "it was started again twice")
    assert cancelled.is_set()
    assert starts[1] - starts[0] >= 0.02
    assert starts[2] - starts[1] >= 0.04
    assert restarts("test") == before + 2
    assert "crashed and is restarted" in caplog.text


async def test_a_task_that_loses_a_cancel_is_ended_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(background, "CANCEL_AGAIN_SECONDS", 0.02)
    lost = 0

    async def work() -> None:
        nonlocal lost
        while True:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                if lost == 2:
                    raise
                lost += 1

    async with asyncio.timeout(60), Background() as owner:
        owner.start("test", work)
        await asyncio.sleep(0)
    assert lost == 2


@pytest.mark.parametrize("ticks", range(5))
async def test_a_cancel_that_comes_with_what_was_waited_for_is_not_lost(
    database: Database, make_settings: Callable[..., Settings], ticks: int
) -> None:
    changed = ChangedSettings(database, make_settings(), lambda _: None)
    task = asyncio.create_task(changed.run())

    async def waits() -> bool:
        return bool(changed._look_again._waiters)

    await eventually(waits, "it has looked once")
    changed.announced("")
    for _ in range(ticks):
        await asyncio.sleep(0)
    task.cancel()
    done, _ = await asyncio.wait({task}, timeout=30)
    task.cancel()
    assert done


async def test_work_that_returns_is_not_restarted() -> None:
    runs = 0

    async def work() -> None:
        nonlocal runs
        runs += 1

    async with Background() as owner:
        await owner.start("once", work)
    assert runs == 1


async def test_errors_that_nobody_foresaw_end_no_dispatcher(
    make_settings: Callable[..., Settings], rows: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Postgres raises an error of no known class at claims, renewals, settles and housekeeping, then stops doing so."""
    monkeypatch.setattr(background, "FIRST_PAUSE_SECONDS", 0.05)
    await rows.execute(
        "CREATE SEQUENCE faults; CREATE SEQUENCE other_faults;"
        "CREATE FUNCTION fail() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN"
        " IF nextval(TG_ARGV[0]::regclass) <= 6 THEN RAISE EXCEPTION 'nobody foresaw this'; END IF; RETURN NULL; END$$;"
        "CREATE TRIGGER fail AFTER UPDATE ON results FOR EACH STATEMENT EXECUTE FUNCTION fail('faults');"
        "CREATE TRIGGER fail AFTER DELETE ON idempotency_keys"
        " FOR EACH STATEMENT EXECUTE FUNCTION fail('other_faults')"
    )
    before = {task: restarts(task) for task in ("claims", "idempotency keys")}
    settings = make_settings(max_attempts=9)
    async with running_api(settings) as service, running_dispatcher(settings):
        sent = [await service.send(parameters={"max_tokens": 3}) for _ in range(5)]
        done = [await service.settled(id_) for id_ in sent]

        async def housekeeping_crashed() -> bool:
            return restarts("idempotency keys") > before["idempotency keys"]

        await eventually(housekeeping_crashed, "housekeeping crashed")
    assert {result["status"] for result in done} == {"completed"}
    assert restarts("claims") > before["claims"]


async def test_a_damaged_row_fails_alone(make_settings: Callable[..., Settings], rows: Any) -> None:
    settings = make_settings(max_attempts=1)
    async with running_api(settings) as service:
        damaged, *others = [await service.send(parameters={"max_tokens": 3}) for _ in range(5)]
        await rows.execute("UPDATE results SET parameters = '[]' WHERE id = $1", UUID(damaged))
        before = restarts("claims")
        async with running_dispatcher(settings):
            done = [await service.settled(id_) for id_ in others]

            async def code() -> Any:
                return await rows.fetchval("SELECT error_code FROM results WHERE id = $1", UUID(damaged))

            assert await eventually(code, "the damaged one has failed") == "internal_error"
    assert {result["status"] for result in done} == {"completed"}
    assert restarts("claims") == before


async def claims_of(store: QueueStore, rows: Any, n: int) -> list[Claim]:
    context = uuid7()
    await rows.execute("INSERT INTO contexts (id, content) VALUES ($1, 'x')", context)
    submissions = [submission(context_id=context) for _ in range(n)]
    await store.submit(submissions)
    return (await store.claim([("m", "s", None)] * n, lease_seconds=30, dispatcher="test")).claims


def submission(prompt: str | None = None, context_id: UUID | None = None, **fields: Any) -> Submission:
    id_ = uuid7()
    made = time_of(id_)
    return Submission(
        id_,
        context_id or uuid7(),
        "m",
        {},
        0,
        rank_of(made, 0, 60),
        made,
        prompt=None if prompt is None else Prompt(prompt),
        **fields,
    )


def settlement(claim: Claim, text: str = "fine", **fields: Any) -> Settlement:
    made = replace(SettledColumns(text, None, "stop", 1, 1), **fields)
    return Settlement(claim.id, claim.token, Status.COMPLETED, Outcome.COMPLETED, "s", made, size=len(text))


REFUSED = {
    "a number that does not fit": {"prompt_tokens": 2**31},
    "a text that is none": {"output": "\udcff"},
    "a document that Postgres refuses": {"outputs": [{"text": "\x00"}]},
}


@pytest.mark.parametrize("fault", REFUSED)
async def test_one_answer_that_cannot_be_stored_fails_alone(store: QueueStore, rows: Any, fault: str) -> None:
    claims = await claims_of(store, rows, 9)
    written: list[UUID] = []

    async def confirm(_tokens: Any) -> None:
        return None

    outbox = Outbox(store, asyncio.Lock(), confirm, written.extend)
    for place, claim in enumerate(claims):
        outbox.put(settlement(claim, **(REFUSED[fault] if place == 4 else {})))
    async with asyncio.timeout(30):
        await outbox.flush()
        assert len(written) == 8
        await outbox.flush()
    found = await rows.fetch("SELECT id, status, error_code, output FROM results")
    by_id = {row["id"]: (row["status"], row["error_code"], row["output"]) for row in found}
    assert by_id.pop(claims[4].id) == ("failed", "answer_not_storable", None)
    assert set(by_id.values()) == {("completed", None, "fine")}
    assert sorted(written) == sorted(claim.token for claim in claims)


async def test_what_postgres_cannot_hold_fails_with_a_reason_beside_a_hundred_that_settle(
    store: QueueStore, rows: Any
) -> None:
    """More than fits (54000: a jsonb beyond 256 MB, here an index), and characters it has not (22021, 22P05)."""
    await rows.execute("CREATE INDEX ON results (output)")
    claims = await claims_of(store, rows, 103)
    written: list[UUID] = []

    async def confirm(_tokens: Any) -> None:
        return None

    refused: dict[int, dict[str, Any]] = {
        20: {"output": random.Random(1).randbytes(20_000).hex()},
        50: {"finish_reason": "st\x00p"},
        80: {"outputs": [{"text": "\x00"}]},
    }
    outbox = Outbox(store, asyncio.Lock(), confirm, written.extend)
    for place, claim in enumerate(claims):
        outbox.put(settlement(claim, **refused.get(place, {})))
    async with asyncio.timeout(120):
        await outbox.flush()
        assert len(written) == 100
        await outbox.flush()
    assert sorted(written) == sorted(claim.token for claim in claims)
    found = await rows.fetch("SELECT id, status, error_code, attempt_count FROM results")
    ends = {row["id"]: (row["status"], row["error_code"], row["attempt_count"]) for row in found}
    assert ends.pop(claims[20].id) == ("failed", "answer_too_large", 1)
    assert [ends.pop(claims[n].id) for n in (50, 80)] == [("failed", "answer_not_storable", 1)] * 2
    assert set(ends.values()) == {("completed", None, 1)}
    assert [
        each.id for each in (await store.claim([("m", "s", None)], lease_seconds=30, dispatcher="test")).claims
    ] == []


async def test_an_end_that_can_never_be_stored_is_left_to_its_lease(store: QueueStore, rows: Any) -> None:
    (claim,) = await claims_of(store, rows, 1)
    await rows.execute("ALTER TABLE results ADD CONSTRAINT none CHECK (attempt_token IS NOT NULL) NOT VALID")
    written: list[UUID] = []

    async def confirm(_tokens: Any) -> None:
        return None

    outbox = Outbox(store, asyncio.Lock(), confirm, written.extend)
    outbox.put(Release(claim.id, claim.token, Outcome.RETRIED, "s", 0.0, True, "broken", "It broke."))
    for _ in range(2):
        await outbox.flush()
    assert written == [claim.token]


async def test_one_ticket_that_cannot_be_stored_fails_alone(store: QueueStore) -> None:
    submitter = Submitter(store.submit_rows, submission_size)
    made = [submission("fine") for _ in range(7)]
    made[3] = submission("fine", client_reference="\x00")
    answers = await asyncio.gather(
        *(submitter.submit(each.id, submission_row(each)) for each in made), return_exceptions=True
    )
    assert answers[:3] + answers[4:] == [True] * 6
    assert isinstance(answers[3], asyncpg.DataError)


def test_statements_are_bounded_by_rows_and_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bulk, "MAX_STATEMENT_BYTES", 10)
    assert list(statements_of([1, 2, 3], 2, lambda _: 1)) == [[1, 2], [3]]
    assert list(statements_of([4, 6, 1, 11, 9, 1], 9, lambda size: size)) == [[4, 6], [1], [11], [9, 1]]
    assert list(statements_of([], 9, lambda _: 1)) == []


async def test_large_tickets_take_several_statements(
    store: QueueStore, rows: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Postgres counts how many transactions stored the tickets."""
    monkeypatch.setattr(bulk, "MAX_STATEMENT_BYTES", 100_000)
    submitter = Submitter(store.submit_rows, submission_size)
    made = [submission("x" * 30_000) for _ in range(9)]
    answers = await asyncio.gather(*(submitter.submit(each.id, submission_row(each)) for each in made))
    assert answers == [True] * 9
    transactions = await rows.fetch("SELECT count(*) AS n FROM contexts GROUP BY xmin")
    assert max(row["n"] for row in transactions) == 3
