"""What was used: counted once for each result, whoever settles, compacts and dies meanwhile."""

import asyncio
import random
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import asyncpg
import pytest

from app.background import Background
from app.config import Settings
from app.db.engine import Database, open_database
from app.db.ids import uuid7
from app.db.tables.contexts import Prompt
from app.db.tables.results import SettledColumns
from app.dispatch.janitor import housekeeping
from app.errors import DatabaseUnavailable
from app.openai.conversation_items import items_of_turn
from app.queue.audit import AuditStore
from app.queue.events import EventStore
from app.queue.hosts import HostStore
from app.queue.slots import SlotStore
from app.queue.store import QueueStore
from app.queue.ticket import Claim, Outcome, Settlement, Status, Submission
from app.queue.unkept import UnkeptStore
from app.queue.words import WordStore
from app.services.conversations import Conversations
from tests.api.test_bad_input import check_problem
from tests.keys.conftest import MakeKey, bearer
from tests.service import Service, eventually, running_api, running_dispatcher

COUNTS = ("requests", "failures", "prompt_tokens", "completion_tokens", "gpu_seconds", "cost")


async def use(
    rows: Any, owner: str, *, days_ago: int = 0, model: str = "tiny", key: str | None = None, cost: float | None = None
) -> None:
    """A row as settling appends it: 10 requests, 2 of them failed."""
    await rows.execute(
        "INSERT INTO usage SELECT (now() AT TIME ZONE 'UTC')::date - $2::int, o.id, k.id, $3, 10, 2, 100, 50, 1.5, $5"
        " FROM owners o LEFT JOIN api_keys k ON k.owner_id = o.id AND k.name = $4 WHERE o.name = $1",
        owner,
        days_ago,
        model,
        key,
        cost,
    )


async def report(service: Service, key: str, query: str = "") -> Any:
    answer = await service.client.get(f"/usage?{query}", headers=bearer(key))
    assert answer.status_code == 200, answer.text
    return answer.json()


async def test_usage_is_grouped_and_summed(guarded: Service, make_key: MakeKey, rows: Any) -> None:
    alice, laptop = await make_key("alice"), await make_key("laptop", owner="alice")
    await make_key("bob")
    for fields in (
        {"key": "alice", "cost": 0.25},
        {"key": "laptop"},
        {"key": "laptop", "days_ago": 1, "model": "slow"},
        {"key": "alice", "days_ago": 29},
        {"key": "alice", "days_ago": 30},
    ):
        await use(rows, "alice", **fields)
    await use(rows, "bob")
    today = datetime.now(UTC).date()

    by_day = await report(guarded, laptop)
    assert [group["day"] for group in by_day["groups"]] == [str(today - timedelta(days=n)) for n in (29, 1, 0)]
    assert by_day["groups"][-1] == {
        "day": str(today),
        "requests": 20,
        "failures": 4,
        "prompt_tokens": 200,
        "completion_tokens": 100,
        "gpu_seconds": 3.0,
        "cost": 0.25,
    }
    assert [group["cost"] for group in by_day["groups"]] == [None, None, 0.25]
    assert (by_day["first_day"], by_day["last_day"]) == (str(today - timedelta(days=29)), str(today))
    assert by_day["total"]["requests"] == 40

    by_model = await report(guarded, alice, "group_by=model")
    assert {group["model"]: group["requests"] for group in by_model["groups"]} == {"tiny": 30, "slow": 10}
    by_key = await report(guarded, alice, f"group_by=key&from={today - timedelta(days=40)}&to={today}")
    assert {group["key_name"]: group["requests"] for group in by_key["groups"]} == {"alice": 30, "laptop": 20}
    assert {group["key_hint"] for group in by_key["groups"]} == {f"sk-…{key[-4:]}" for key in (alice, laptop)}
    one_day = await report(guarded, alice, f"from={today - timedelta(days=1)}&to={today - timedelta(days=1)}")
    assert one_day["total"]["requests"] == 10
    nothing = await report(guarded, alice, "from=2001-01-01&to=2001-12-31")
    assert (nothing["groups"], nothing["total"]) == (
        [],
        dict.fromkeys(COUNTS[:4], 0) | {"gpu_seconds": 0, "cost": None},
    )


async def test_usage_of_others_is_for_admins(guarded: Service, make_key: MakeKey, admin: str, rows: Any) -> None:
    alice = await make_key("alice")
    await use(rows, "alice")
    await use(rows, "local")
    assert (await report(guarded, admin))["total"]["requests"] == 0
    assert (await report(guarded, admin, "owner=alice"))["total"]["requests"] == 10
    assert (await report(guarded, admin, "owner=local"))["total"]["requests"] == 10
    assert (await report(guarded, admin, "owner=all"))["total"]["requests"] == 20
    for owner in ("all", "root", "alice"):
        answer = await guarded.client.get(f"/usage?owner={owner}", headers=bearer(alice))
        check_problem(answer, 403, "scope_missing", "admin")
    answer = await guarded.client.get("/usage?owner=carol", headers=bearer(admin))
    check_problem(answer, 404, "owner_not_found", "carol")


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ("group_by=server", "group_by"),
        ("from=yesterday", "from"),
        ("to=2026-13-01", "to"),
        ("from=2026-02-02&to=2026-02-01", "from"),
        ("owner=", "owner"),
        ("owner=%00", "owner"),
    ],
)
async def test_a_bad_question_is_refused(api: Service, query: str, field: str) -> None:
    problem = check_problem(await api.client.get(f"/usage?{query}"), 422, "invalid_request")
    assert problem["errors"][0]["field"] == field


async def test_extreme_days_are_answered(api: Service) -> None:
    for query in ("to=0001-01-01", "from=0001-01-01", "from=9999-12-31&to=9999-12-31", "to=9999-12-31"):
        assert (await api.client.get(f"/usage?{query}")).status_code == 200, query


async def test_each_result_is_counted_once_under_its_key(
    make_settings: Callable[..., Settings], make_key: MakeKey
) -> None:
    key = await make_key(tokens_per_day=10**6)
    settings = make_settings()
    async with running_api(settings) as service, running_dispatcher(settings):
        service.client.headers.update(bearer(key))
        done = [await service.run(max_tokens=5, ignore_eos=True) for _ in range(3)]
        failed = await service.run("word " * 400)
        cancelled = await service.send(model="slow", parameters={"max_tokens": 3000, "ignore_eos": True})
        await service.client.post(f"/results/{cancelled}/cancel")
        stopped = await service.settled(cancelled)
        (group,) = (await report(service, key, "group_by=key"))["groups"]
        everything = [*done, failed, stopped]
        assert (group["key_name"], group["requests"], group["failures"]) == ("alice", 5, 2)
        for name in ("prompt_tokens", "completion_tokens"):
            assert group[name] == sum(each["usage"][name] or 0 for each in everything)
        assert group["gpu_seconds"] > 0

        async def seen_by_the_limit() -> bool:
            answer = await service.client.get("/results/")
            used = 10**6 - int(answer.headers["x-ratelimit-remaining-tokens"])
            return bool(used == group["prompt_tokens"] + group["completion_tokens"])

        await eventually(seen_by_the_limit, "the tokens count against the limit")


async def sums(rows: Any) -> dict[tuple[Any, ...], tuple[Any, ...]]:
    found = await rows.fetch(
        "SELECT day, owner_id, key_id, model, sum(requests), sum(failures), sum(prompt_tokens), sum(completion_tokens),"
        " round(sum(gpu_seconds)::numeric, 6), round(sum(cost)::numeric, 6) FROM usage GROUP BY 1, 2, 3, 4"
    )
    return {tuple(row)[:4]: tuple(row)[4:] for row in found}


async def test_compacting_leaves_one_row_of_each_kind_and_every_sum(rows: Any, store: QueueStore) -> None:
    draw = random.Random(7)
    for _ in range(400):
        cost = draw.choice([None, draw.random()])
        key = draw.choice([None, UUID(int=1), UUID(int=2)])
        await rows.execute(
            "INSERT INTO usage VALUES ((now() AT TIME ZONE 'UTC')::date - $1::int, $2, $3, $4, $5, 1, 2, 3, $6, $7)",
            draw.randrange(3),
            draw.randrange(3),
            key,
            draw.choice("ab"),
            draw.randrange(9),
            draw.random(),
            cost,
        )
    before = await sums(rows)
    await store.compact_usage()
    assert await sums(rows) == before
    assert await rows.fetchval("SELECT count(*) FROM usage") == len(before)


async def test_the_dispatcher_compacts(
    rows: Any, store: QueueStore, database: Database, make_settings: Callable[..., Settings]
) -> None:
    for _ in range(3):
        await use(rows, "local")
    work = dict(
        housekeeping(
            store,
            SlotStore(database),
            UnkeptStore(database),
            Conversations(database, make_settings(), items_of_turn),
            AuditStore(database),
            EventStore(database),
            HostStore(database),
            WordStore(database),
            make_settings(),
        )
    )
    async with Background() as background:
        background.start("usage", work["usage"])

        async def one_row() -> bool:
            return await rows.fetchval("SELECT count(*) FROM usage") == 1

        await eventually(one_row, "the rows are merged")


# What ended, by the minute, is what was used: the sums of before and the rows that are not summed yet.
MINUTES_AGREE = """
SELECT (SELECT coalesce(sum(tickets), 0) FROM minute_counts)
     + (SELECT coalesce(sum(requests), 0) FROM usage WHERE minute IS NOT NULL)
     = (SELECT coalesce(sum(requests), 0) FROM usage)
"""


async def settle_some(store: QueueStore, owner_id: int, batches: int, draw: random.Random) -> int:
    """Submits, claims and settles; returns how many results."""
    done = 0
    for _ in range(batches):
        size = draw.randint(1, 5)
        now = datetime.now(UTC)
        model = f"m{owner_id}"
        await store.submit(
            [
                Submission(uuid7(), uuid7(), model, {}, 0, now, now, owner_id=owner_id, prompt=Prompt("x"))
                for _ in range(size)
            ]
        )
        claims: list[Claim] = []
        while len(claims) < size:
            claims += (await store.claim([(model, "s", None)] * size, lease_seconds=60, dispatcher="d")).claims
        settled = await store.settle(
            [
                Settlement(
                    each.id,
                    each.token,
                    Status.COMPLETED,
                    Outcome.COMPLETED,
                    "s",
                    SettledColumns("t", None, "stop", 3, 5),
                    gpu_seconds=0.5,
                    cost=0.25,
                )
                for each in claims
            ]
        )
        done += len(settled)
    return done


async def test_nothing_is_lost_or_counted_twice_while_compactors_race_and_die(
    make_settings: Callable[..., Settings], store: QueueStore, rows: Any
) -> None:
    draw, killed, seen = random.Random(3), 0, [0]
    stopping = asyncio.Event()

    async def compact() -> None:
        async with open_database(make_settings(database_pool_size=2)) as database:
            compactor = QueueStore(database)
            while not stopping.is_set():
                with suppress(DatabaseUnavailable):
                    await compactor.compact_usage()
                await asyncio.sleep(draw.random() * 0.01)

    async def kill(connection: Any) -> None:
        nonlocal killed
        while not stopping.is_set():
            killed += await connection.fetchval(
                "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE datname = current_database()"
                " AND state = 'active' AND query LIKE '%scattered%' AND pid <> pg_backend_pid()"
            )
            await asyncio.sleep(draw.random() * 0.02)

    async def watch() -> None:
        while not stopping.is_set():
            row = await rows.fetchrow("SELECT coalesce(sum(requests), 0) AS n, sum(prompt_tokens) AS t FROM usage")
            assert row["n"] >= seen[-1]
            assert row["n"] * 3 == (row["t"] or 0)
            assert await rows.fetchval(MINUTES_AGREE)
            seen.append(row["n"])
            await asyncio.sleep(0.002)

    connection = await asyncpg.connect(make_settings().database_url)
    others = [asyncio.create_task(each) for each in (compact(), compact(), compact(), kill(connection), watch())]
    try:
        done = sum(await asyncio.gather(*(settle_some(store, owner, 60, random.Random(owner)) for owner in (1, 2, 3))))

        async def some_die() -> bool:
            nonlocal done
            done += await settle_some(store, 1, 10, draw)
            return killed > 0

        await eventually(some_die, "a compactor dies at work")
    finally:
        stopping.set()
        await asyncio.gather(*others)
        await connection.close()
    await store.compact_usage()
    total = await rows.fetchrow(
        "SELECT sum(requests)::int AS requests, sum(completion_tokens)::int AS tokens, sum(gpu_seconds) AS seconds,"
        " sum(cost) AS cost, count(*) AS rows FROM usage"
    )
    assert total["requests"] == done
    assert total["tokens"] == 5 * total["requests"]
    assert (total["seconds"], total["cost"]) == (0.5 * total["requests"], 0.25 * total["requests"])
    assert total["rows"] == 3
    minutes = await rows.fetchrow("SELECT sum(tickets) AS tickets, sum(completion_tokens) AS tokens FROM minute_counts")
    assert tuple(minutes) == (done, 5 * done)
    assert len(set(seen)) > 10
