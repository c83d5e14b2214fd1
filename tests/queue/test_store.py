"""The queue's statements on a real Postgres."""

import asyncio
import random
import tracemalloc
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import pytest

from app.config import Settings
from app.db.engine import open_database
from app.db.ids import uuid7
from app.db.tables.contexts import Prompt
from app.db.tables.results import SettledColumns
from app.errors import DatabaseUnavailable
from app.queue.bulk import MAX_STATEMENT_BYTES
from app.queue.store import QueueStore
from app.queue.ticket import Claim, Outcome, Release, Settlement, Status, Submission
from app.tasks.generate import largest_answer

LEASE = 30.0
DONE = SettledColumns("text", None, "stop", 3, 5)


@pytest.fixture
async def submit(rows: Any, store: QueueStore) -> Callable[..., Awaitable[UUID]]:
    context = uuid7()
    await rows.execute("INSERT INTO contexts (id, content) VALUES ($1, 'prompt')", context)

    async def submit(model: str = "m", rank: datetime | None = None, **fields: Any) -> UUID:
        now = datetime.now(UTC)
        submission = Submission(uuid7(), context, model, {"max_tokens": 5}, 0, rank or now, now, **fields)
        assert await store.submit([submission]) == {submission.id}
        return submission.id

    return submit


def completed(claim: Claim) -> Settlement:
    return Settlement(claim.id, claim.token, Status.COMPLETED, Outcome.COMPLETED, "s", DONE)


def failed(claim: Claim) -> Settlement:
    return Settlement(
        claim.id, claim.token, Status.FAILED, Outcome.FAILED, "s", SettledColumns(), "broken", "It broke."
    )


def retried(claim: Claim, delay: float = 0.0, spent: bool = True) -> Release:
    return Release(claim.id, claim.token, Outcome.RETRIED, "s", delay, spent, "broken", "It broke.")


async def claim(store: QueueStore, n: int = 1, model: str = "m", lease: float = LEASE) -> list[Claim]:
    return (await store.claim([(model, "s", None)] * n, lease_seconds=lease, dispatcher="test")).claims


async def test_a_ticket_for_a_missing_context_is_left_out(store: QueueStore, rows: Any) -> None:
    now = datetime.now(UTC)
    assert await store.submit([Submission(uuid7(), uuid4(), "m", {}, 0, now, now)]) == set()
    assert await rows.fetchval("SELECT count(*) FROM results") == 0


async def test_a_claim_carries_what_a_run_needs(store: QueueStore, submit: Any) -> None:
    id_ = await submit(expires_at=datetime.now(UTC) + timedelta(seconds=60))
    (found,) = await claim(store)
    assert (found.id, found.model, found.prompt, found.parameters) == (id_, "m", Prompt("prompt"), {"max_tokens": 5})
    assert (found.attempt, found.cancel_requested, found.last_error) == (1, False, None)
    assert found.expires_in == pytest.approx(60, abs=5)
    assert await claim(store) == []


async def test_old_contexts_are_looked_at_a_few_at_a_time(store: QueueStore, rows: Any, submit: Any) -> None:
    await submit()
    in_use = await rows.fetchval("SELECT id FROM contexts")
    unused = uuid7()
    await rows.execute("INSERT INTO contexts (id, content) VALUES ($1, 'prompt')", unused)
    assert await store.remove_contexts(UUID(int=0), uuid7(), 1) == ([in_use], 0)
    assert await store.remove_contexts(in_use, unused, 1) == ([], 0)
    assert await store.remove_contexts(in_use, uuid7(), 1) == ([unused], 1)
    assert await rows.fetchval("SELECT id FROM contexts") == in_use


async def test_claims_follow_the_rank_within_a_model(store: QueueStore, submit: Any) -> None:
    base = datetime.now(UTC)
    second = await submit(rank=base)
    first = await submit(rank=base - timedelta(hours=1))
    third = await submit(rank=base)
    other = await submit(model="other", rank=base - timedelta(hours=2))
    assert [found.id for found in await claim(store, 10)] == [first, second, third]
    assert [found.id for found in await claim(store, 10, "other")] == [other]


async def test_one_statement_claims_of_each_model_what_is_wanted(store: QueueStore, submit: Any) -> None:
    for model in ("a", "b", "c"):
        for _ in range(4):
            await submit(model=model)
    slots = [
        (model, server, None)
        for model, server in (("a", "one"), *[("nobody", "one")] * 5, ("b", "one"), ("b", "two"), ("b", "one"))
    ]
    found = (await store.claim(slots, lease_seconds=LEASE, dispatcher="test")).claims
    assert sorted((each.model, each.server) for each in found) == [
        ("a", "one"),
        ("b", "one"),
        ("b", "one"),
        ("b", "two"),
    ]


async def test_no_result_is_claimed_twice_by_many_at_once(store: QueueStore, submit: Any) -> None:
    ids = {await submit() for _ in range(60)}
    found = await asyncio.gather(*(claim(store, 7) for _ in range(20)))
    claimed = [each.id for batch in found for each in batch]
    assert len(claimed) == len(set(claimed)) == 60
    assert set(claimed) == ids


async def test_a_settle_is_final_and_recorded(store: QueueStore, submit: Any, rows: Any) -> None:
    id_ = await submit()
    (found,) = await claim(store)
    assert await store.settle([completed(found)]) == {id_}
    assert await store.settle([failed(found)]) == set()
    assert await store.release([retried(found)]) == set()
    await store.cancel(id_)
    row = await rows.fetchrow("SELECT * FROM results")
    assert (row["status"], row["output"], row["finish_reason"]) == ("completed", "text", "stop")
    assert (row["prompt_tokens"], row["completion_tokens"], row["error_code"]) == (3, 5, None)
    assert row["cancel_requested_at"] is None
    ledger = await rows.fetch("SELECT * FROM attempts")
    assert [(each["number"], each["outcome"], each["server"]) for each in ledger] == [(1, "completed", "s")]


async def test_a_settle_of_many_settles_each_under_its_own_token(store: QueueStore, submit: Any) -> None:
    for _ in range(5):
        await submit()
    found = await claim(store, 5)
    stale = Settlement(found[0].id, uuid4(), Status.COMPLETED, Outcome.COMPLETED, "s", DONE)
    settled = await store.settle([stale, *(completed(each) for each in found[1:])])
    assert settled == {each.id for each in found[1:]}


PROMPTS: dict[str, Callable[[int], Prompt]] = {
    "text": lambda size: Prompt("x" * size),
    "chat": lambda size: Prompt(messages=[{"role": "user", "content": "x" * size}]),
    "tensors": lambda size: Prompt(inputs=[{"name": "t", "data": ["x" * size]}]),
}


def size_of(prompt: Prompt) -> int:
    text = str(prompt)
    return text.count("x", text.index("xx"))


@pytest.mark.parametrize("prompt", PROMPTS.values(), ids=PROMPTS)
async def test_a_claim_is_bounded_by_bytes_and_takes_one_at_least(
    store: QueueStore, rows: Any, prompt: Callable[[int], Prompt]
) -> None:
    base = datetime.now(UTC)
    sizes = [900_000, 50_000, 40_000, 60_000, 10_000]
    models = ["a", "a", "b", "a", "b"]
    made = [
        Submission(
            uuid7(), uuid7(), model, {"max_tokens": 5}, 0, base + timedelta(seconds=n), base, prompt=prompt(size)
        )
        for n, (size, model) in enumerate(zip(sizes, models, strict=True))
    ]
    await store.submit(made)
    slots = [("a", "s", None)] * 3 + [("b", "s", None)] * 3

    async def claimed() -> tuple[list[int], int]:
        found = await store.claim(slots, lease_seconds=LEASE, dispatcher="test", most_bytes=100_000)
        assert not found.raced
        for each in found.claims:
            assert size_of(each.prompt) < each.prompt_bytes < size_of(each.prompt) + 200
        return [size_of(each.prompt) for each in found.claims], found.left_out

    assert await claimed() == ([900_000], 4)
    assert await claimed() == ([50_000, 40_000], 2)
    assert await claimed() == ([60_000, 10_000], 0)
    assert await rows.fetchval("SELECT max(attempt_count) FROM results") == 1


@pytest.mark.parametrize(
    "parameters",
    [
        {"max_tokens": 100},
        {"n": 3, "max_tokens": 100},
        {"max_tokens": 7, "logprobs": 0},
        {"n": 2, "max_tokens": 2**31 - 1, "logprobs": 1000},
        {"task": "embed"},
    ],
)
async def test_postgres_expects_the_answer_that_the_submit_expected(
    store: QueueStore, rows: Any, parameters: dict[str, Any]
) -> None:
    now = datetime.now(UTC)
    await store.submit([Submission(uuid7(), uuid7(), "m", parameters, 0, now, now, prompt=Prompt("x"))])
    (found,) = await claim(store)
    assert found.answer_bytes == largest_answer(parameters)


async def test_a_claim_of_large_prompts_reads_only_what_it_takes(store: QueueStore, rows: Any) -> None:
    """200 prompts of 4 MB would be 800 MB."""
    await rows.execute(
        "INSERT INTO contexts (id, content) SELECT uuidv7(), repeat('x', 4000000) FROM generate_series(1, 200)"
    )
    await rows.execute(
        "INSERT INTO results (id, context_id, model, parameters) SELECT uuidv7(), id, 'm', '{}' FROM contexts"
    )
    await claim(store, 0)
    tracemalloc.start()
    try:
        found = await claim(store, 200)
        assert tracemalloc.get_traced_memory()[1] < 100_000_000
    finally:
        tracemalloc.stop()
    assert len(found) == MAX_STATEMENT_BYTES // 4_000_100


async def test_a_stale_token_changes_no_row(store: QueueStore, submit: Any, rows: Any) -> None:
    id_ = await submit()
    (first,) = await claim(store, lease=0.0)
    (second,) = await claim(store)
    assert (first.id, second.id, second.attempt) == (id_, id_, 2)
    assert await store.renew([(id_, first.token, "s")], lease_seconds=LEASE) == {}
    assert await store.settle([failed(first)]) == set()
    assert await store.release([retried(first)]) == set()
    assert set(await store.renew([(id_, second.token, "s")], lease_seconds=LEASE)) == {second.token}
    assert await store.settle([completed(second)]) == {id_}
    ledger = await rows.fetch("SELECT number, outcome FROM attempts ORDER BY number")
    assert [tuple(row) for row in ledger] == [(1, "lease_lost"), (2, "completed")]


async def test_a_claim_still_held_is_not_claimed_again_by_its_holder(store: QueueStore, submit: Any) -> None:
    """After an outage longer than the lease, the work goes on instead of starting anew."""
    await submit()
    (held,) = await claim(store, lease=0.0)
    again = await store.claim([("m", "s", None)], lease_seconds=LEASE, dispatcher="test", holding=[held.token])
    assert again.claims == []
    assert held.token in await store.renew([(held.id, held.token, None)], lease_seconds=LEASE)
    assert await store.settle([completed(held)]) == {held.id}


async def test_log_probabilities_without_bound_are_stored_as_null(store: QueueStore, submit: Any, rows: Any) -> None:
    await submit()
    (found,) = await claim(store)
    logprobs = [{"5": {"logprob": float("-inf")}}]
    made = SettledColumns("x", [{"index": 0, "text": "x", "logprobs": logprobs}], "stop", 1, 1)
    end = Settlement(found.id, found.token, Status.COMPLETED, Outcome.COMPLETED, "s", made)
    assert await store.settle([end]) == {found.id}
    assert await rows.fetchval("SELECT outputs -> 0 -> 'logprobs' -> 0 -> '5' ->> 'logprob' FROM results") is None


async def test_a_postgres_that_refuses_writes_is_one_error(database_url: str, submit: Any) -> None:
    """As a server does that was demoted in a failover."""
    await submit()
    connection = await asyncpg.connect(database_url)
    await connection.execute(f"ALTER DATABASE {database_url.rsplit('/', 1)[1]} SET default_transaction_read_only = on")
    await connection.close()
    async with open_database(Settings(database_url=database_url)) as read_only:
        with pytest.raises(DatabaseUnavailable):
            await claim(QueueStore(read_only))


async def test_a_release_waits_its_delay_and_keeps_the_error(store: QueueStore, submit: Any, rows: Any) -> None:
    id_ = await submit()
    (found,) = await claim(store)
    assert await store.release([retried(found, delay=60)]) == {id_}
    assert await claim(store) == []
    await rows.execute("UPDATE results SET available_at = now()")
    (again,) = await claim(store)
    assert (again.attempt, again.last_error) == (2, ("broken", "It broke."))


async def test_a_wait_spends_no_attempt(store: QueueStore, submit: Any, rows: Any) -> None:
    await submit()
    for _ in range(3):
        (found,) = await claim(store)
        assert found.attempt == 1
        await store.release([retried(found, spent=False)])
    assert await rows.fetchval("SELECT count(*) FROM attempts") == 0


async def test_renewal_tells_of_cancels_and_expiry(store: QueueStore, submit: Any, rows: Any) -> None:
    cancelled, expired, plain = [await submit() for _ in range(3)]
    held = {each.id: each for each in await claim(store, 3)}
    await store.cancel(cancelled)
    await rows.execute("UPDATE results SET expires_at = now() - interval '1 s' WHERE id = $1", expired)
    state = await store.renew([(c.id, c.token, None) for c in held.values()], lease_seconds=LEASE)
    seen = {id_: state[claimed.token] for id_, claimed in held.items()}
    assert (seen[cancelled].cancel_requested, seen[cancelled].expired) == (True, False)
    assert (seen[expired].cancel_requested, seen[expired].expired) == (False, True)
    assert (seen[plain].cancel_requested, seen[plain].expired) == (False, False)
    assert await store.cancelling() == [cancelled]


async def test_a_cancel_of_a_claim_whose_dispatcher_is_gone_is_final_at_once(
    store: QueueStore, submit: Any, rows: Any
) -> None:
    id_ = await submit()
    await claim(store, lease=0.0)
    await store.cancel(id_)
    row = await rows.fetchrow("SELECT status, error_code FROM results")
    assert tuple(row) == ("failed", "cancelled")
    assert await rows.fetchval("SELECT outcome FROM attempts") == "lease_lost"


async def test_the_sweep_ends_what_nobody_runs(store: QueueStore, submit: Any, rows: Any) -> None:
    past = datetime.now(UTC) - timedelta(seconds=1)
    queued = await submit(expires_at=past)
    abandoned, live, untouched = await submit(), await submit(), await submit()
    held = await claim(store, 3)
    assert held[0].id == queued
    await rows.execute("UPDATE results SET attempt_token = NULL, attempt_started_at = NULL WHERE id = $1", queued)
    for id_ in (abandoned, live):
        await store.cancel(id_)
    await rows.execute("UPDATE results SET available_at = now() WHERE id = ANY($1)", [queued, abandoned])
    assert await store.sweep() == 2
    assert await store.sweep() == 0
    states = dict(await rows.fetch("SELECT id, coalesce(error_code, status) FROM results"))
    assert states == {queued: "expired", abandoned: "cancelled", live: "pending", untouched: "pending"}


async def test_submit_settle_and_cancel_notify(store: QueueStore, submit: Any, database_url: str) -> None:
    heard: list[tuple[str, str]] = []
    listening = await asyncpg.connect(database_url)
    for channel in ("results_queued", "results_settled", "results_cancel"):
        await listening.add_listener(channel, lambda _c, _p, channel, payload: heard.append((channel, payload)))
    first, second = await submit(), await submit()
    found = await claim(store, 2)
    await store.cancel(second)
    await store.settle([completed(each) for each in found])
    await listening.fetchval("SELECT 1")
    await listening.close()
    assert ("results_queued", "m") in heard
    assert ("results_cancel", str(second)) in heard
    settled = [payload for channel, payload in heard if channel == "results_settled"]
    assert sorted(",".join(settled).split(",")) == sorted([str(first), str(second)])


async def test_postgres_out_of_reach_is_one_error() -> None:
    settings = Settings(database_url="postgresql://a:b@127.0.0.1:1/c")
    async with open_database(settings) as closed:
        store = QueueStore(closed)
        with pytest.raises(DatabaseUnavailable):
            await claim(store)
        with pytest.raises(DatabaseUnavailable):
            async with closed.reading():
                pass


@pytest.mark.parametrize("seed", range(8))
async def test_terminal_is_final_under_random_interleavings(
    store: QueueStore, submit: Any, rows: Any, seed: int
) -> None:
    """Claims, settles, releases, cancels, expiry and sweeps in random order, several at once, stale tokens included."""
    draw = random.Random(seed)
    ids = [await submit(expires_at=datetime.now(UTC) + timedelta(days=1)) for _ in range(8)]
    held: list[Claim] = []
    final: dict[UUID, tuple[Any, ...]] = {}
    confirmed: dict[UUID, int] = dict.fromkeys(ids, 0)

    async def act() -> None:
        match draw.choice(["claim", "claim", "settle", "settle", "release", "cancel", "expire", "sweep", "lose"]):
            case "claim":
                held.extend(await claim(store, draw.randint(1, 4)))
            case "settle" if held:
                batch = {each.id: each for each in draw.choices(held, k=3)}
                ends = [draw.choice([completed, failed])(each) for each in batch.values()]
                for id_ in await store.settle(ends):
                    confirmed[id_] += 1
            case "release" if held:
                await store.release([retried(draw.choice(held), spent=draw.random() < 0.5)])
            case "cancel" if draw.random() < 0.3:
                await store.cancel(draw.choice(ids))
            case "expire" if draw.random() < 0.3:
                await rows.execute(
                    "UPDATE results SET expires_at = now() - interval '1 s' WHERE id = $1 AND status = 'pending'",
                    draw.choice(ids),
                )
            case "sweep":
                await store.sweep()
            case "lose":
                await rows.execute(
                    "UPDATE results SET available_at = now() WHERE id = $1 AND status = 'pending'", draw.choice(ids)
                )

    for _ in range(60):
        await asyncio.gather(act(), *(claim_or_settle(store, held, confirmed, draw) for _ in range(2)))
        for row in await rows.fetch("SELECT id, status, output, error_code, completed_at FROM results"):
            now = tuple(row)
            if row["id"] in final:
                assert final[row["id"]] == now
            elif row["status"] != "pending":
                final[row["id"]] = now
    assert all(count <= 1 for count in confirmed.values())
    assert len(final) > 0


async def claim_or_settle(
    store: QueueStore, held: list[Claim], confirmed: dict[UUID, int], draw: random.Random
) -> None:
    if draw.random() < 0.5 or not held:
        held.extend(await claim(store, 2))
    else:
        for id_ in await store.settle([completed(draw.choice(held))]):
            confirmed[id_] += 1
