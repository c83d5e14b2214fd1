"""The leader's lease, what it writes about hosts, and what they cost, on a real Postgres."""

import asyncio
from typing import Any
from uuid import UUID

import pytest

from app.capacity.left_running import left_running
from app.db.engine import Database
from app.db.ids import uuid7
from app.dispatch.janitor import remove_hosts
from app.queue.demand import DemandStore
from app.queue.hosts import HostStore, LeadersHosts
from app.queue.leader import LeaderStore, NotLeading
from app.queue.ledger import Limit, Overspent
from app.queue.pools import LeadersPools, PoolStore
from tests.capacity.conftest import PRICE, reserved


async def began_ago(rows: Any, host: UUID, interval: str) -> None:
    await rows.execute(
        "UPDATE host_charges SET from_at = from_at - $2::text::interval WHERE host_id = $1", host, interval
    )


async def test_there_is_one_leader_and_what_a_stale_one_writes_changes_nothing(database: Database, rows: Any) -> None:
    store = LeaderStore(database)
    first = await store.take("first", 60)
    assert first is not None
    assert await store.take("second", 60) is None
    host = await reserved(LeadersHosts(database, first.token))
    # As a process that was frozen for a minute.
    await rows.execute("UPDATE capacity_leader SET until = now()")
    assert not await store.renew(first.token, 60)
    second = await store.take("second", 60)
    assert second is not None
    assert (second.service, second.token) == (first.service, first.token + 1)
    stale = LeadersHosts(database, first.token)
    for write in (
        stale.move(host["id"], "creating"),
        stale.end(host["id"], "gone"),
        stale.fail(host["id"], "it failed"),
        reserved(stale),
        LeadersPools(database, first.token).put([], {}),
    ):
        with pytest.raises(NotLeading):
            await write
    (left,) = await HostStore(database).live()
    assert (left["id"], left["state"]) == (host["id"], "wanted")


async def test_a_host_costs_from_before_it_is_asked_for_until_it_is_known_to_be_gone(
    database: Database, rows: Any, leader: LeadersHosts
) -> None:
    store = HostStore(database)
    host = await reserved(leader)
    await began_ago(rows, host["id"], "2 hours")
    (row,) = await store.live()
    assert row["cost"] == pytest.approx(2 * PRICE, rel=1e-3)
    await leader.charge(host["id"], 0.01)
    await leader.charge(host["id"], 0.01)
    spent = (await store.spent())["p"]
    assert spent["rate"] == 0.01
    assert spent["total"] == pytest.approx(2 * PRICE, rel=1e-3)
    # Not more than the running hour and day have had.
    assert 0 < spent["hour"] <= PRICE + 1e-6
    assert spent["hour"] <= spent["day"] <= spent["month"] <= spent["total"] + 1e-9
    await leader.fail(host["id"], "SSH never answered")
    await leader.end(host["id"], "the provider no longer has it")
    ended = await store.find(host["id"])
    assert ended is not None
    assert (ended["state"], ended["failed_in"]) == ("failed", "wanted")
    assert ended["cost"] == pytest.approx(2 * PRICE, rel=1e-3)
    assert (await store.spent())["p"]["rate"] == 0
    (failure,) = await store.failures(3600)
    assert (failure["machine"], failure["failure"]) == ("m1", "SSH never answered")
    assert [event["state"] for event in await store.events(host["id"])] == ["wanted", "failed"]
    await leader.move(host["id"], "ready")
    assert (await store.find(host["id"]) or {})["state"] == "failed"


async def test_what_was_never_made_costs_nothing(database: Database, rows: Any, leader: LeadersHosts) -> None:
    host = await reserved(leader)
    await began_ago(rows, host["id"], "1 hour")
    await leader.end(host["id"], "the offer was gone", charged=False)
    assert (await HostStore(database).spent())["p"]["total"] == 0


async def test_demand_is_what_no_server_runs(database: Database, rows: Any) -> None:
    context = uuid7()
    await rows.execute("INSERT INTO contexts (id, content) VALUES ($1, 'p')", context)
    insert = """
    INSERT INTO results (id, context_id, model, parameters, priority, wish, expires_at, available_at)
    SELECT uuidv7(), $1, $2, $3, 0, $4, now() + $5::text::interval, now() + $6::text::interval
    FROM generate_series(1, $7)
    """
    asked = {"max_tokens": 100}
    await rows.set_type_codec(
        "jsonb", schema="pg_catalog", encoder=lambda value: str(value).replace("'", '"'), decoder=str
    )
    await rows.execute(insert, context, "tiny", asked, "", None, "0", 5)
    await rows.execute(insert, context, "tiny", asked, "", "90 seconds", "0", 2)
    # In backoff, or for a server that is none of the hosts.
    await rows.execute(insert, context, "tiny", asked, "", None, "1 hour", 1)
    await rows.execute(insert, context, "tiny", asked, "server:mine", None, "0", 9)
    await rows.execute("INSERT INTO usage VALUES (now()::date, 0, NULL, 'tiny', 11, 1, 0, 300, 1, NULL)")
    tiny, other = await DemandStore(database).read(["tiny", "other"])
    assert (tiny.waiting, tiny.running, tiny.tokens) == (8, 0, 30.0)
    # Behind five that came before them, and before the one that came after.
    assert max(place for _, place in tiny.deadlines) == 7
    assert all(70 < seconds <= 90 for seconds, _ in tiny.deadlines)
    assert (tiny.arrived, tiny.last + tiny.before) == (17, 17)
    assert (other.waiting, other.tokens, other.deadlines) == (0, 0.0, ())


async def test_before_a_deadline_other_owners_have_as_many_turns_as_their_weights_give_them(
    database: Database, rows: Any
) -> None:
    context = uuid7()
    await rows.execute("INSERT INTO contexts (id, content) VALUES ($1, 'p')", context)
    await rows.execute("INSERT INTO owners (id, name, weight) VALUES (7, 'heavy', 3)")
    for owner, wish, expires, count in ((0, "", None, 4), (7, "", "90 seconds", 6), (7, "kinds:triton", "9 hours", 9)):
        await rows.execute(
            """INSERT INTO results (id, context_id, model, parameters, owner_id, wish, expires_at)
            SELECT uuidv7(), $1, 'tiny', '{}', $2, $3, now() + $4::text::interval FROM generate_series(1, $5)""",
            *(context, owner, wish, expires, count),
        )
    (tiny,) = await DemandStore(database).read(["tiny"])
    # The six are done in two turns, the nine of the other wish, a queue of its own, in three.
    assert [tickets for _, tickets in tiny.deadlines] == [2 + 6 + 6, 3 + 6 + 9]
    assert [round(seconds, -2) for seconds, _ in tiny.deadlines] == [100, 9 * 3600]


async def test_spells_in_which_a_pool_was_not_asked(database: Database, rows: Any) -> None:
    context = uuid7()
    await rows.execute("INSERT INTO contexts (id, content) VALUES ($1, 'p')", context)
    for model, ago in (("a", 900), ("b", 890), ("other", 700), ("a", 500), ("b", 100), ("a", 70)):
        await rows.execute(
            """INSERT INTO results (id, context_id, model, parameters, created_at)
            SELECT uuidv7(-ago), $1, $2, '{}', now() - ago FROM make_interval(secs => $3::float8) AS ago""",
            *(context, model, float(ago)),
        )
    quiet = await DemandStore(database).quiet({"a": "p", "b": "p", "other": "q"})
    assert {pool: [round(each) for each in spells] for pool, spells in quiet.items()} == {"p": [390, 400]}


async def test_a_host_can_do_what_it_did_with_its_slots_taken(
    database: Database, rows: Any, leader: LeadersHosts
) -> None:
    host = await reserved(leader)
    server = await rows.fetchval(
        "INSERT INTO servers (id, name, kind, address, concurrency) "
        "VALUES (uuidv7(), 's', 'triton', 's:1', 10) RETURNING id"
    )
    await leader.move(host["id"], "ready", server_id=server, address="s:1")
    await rows.execute(
        "INSERT INTO server_slots (server, model, number) SELECT 's:1', 'tiny', n FROM generate_series(1, 10) AS n"
    )

    async def works(slots: int, tokens: int) -> None:
        """For ten seconds."""
        await rows.execute("UPDATE hosts SET full_at = full_at - interval '10 s'")
        await rows.execute(
            """UPDATE server_slots SET token = CASE WHEN number <= $1 THEN uuidv7() END, until = now() + interval '1 h',
                attempts = attempts + 1, completion_tokens = completion_tokens + $2 / 10""",
            *(slots, tokens),
        )
        await leader.count_work()

    await works(2, 500)
    await works(9, 500)
    await works(10, 8000)
    await works(9, 8000)
    await works(8, 1000)
    measured = await HostStore(database).measured(10, 14)
    assert measured[0]["tokens_per_second"] == pytest.approx(800, rel=0.05)
    assert (await HostStore(database).measured(60, 14))[0]["tokens_per_second"] is None


async def test_pools_follow_their_definitions(database: Database, leader: LeadersHosts) -> None:
    taken = await LeaderStore(database).read()
    assert taken["leads"]
    pools = LeadersPools(database, 1)
    await pools.put(
        [{"name": "a", "models": ["x", "y"], "settings": {"max": 2}}, {"name": "b", "models": ["z"], "settings": {}}],
        {"day": 5.0},
    )
    await pools.planned({"a": {"actions": []}})
    await pools.put([{"name": "a", "models": ["x"], "settings": {"max": 3}}], {"day": 6.0, "hour": None})
    assert (await LeaderStore(database).read())["budget"] == {"day": 6.0, "hour": None}
    (pool,) = await PoolStore(database).list()
    assert (pool["name"], pool["models"], pool["settings"], pool["plan"]) == ("a", ["x"], {"max": 3}, {"actions": []})


@pytest.mark.parametrize("pool", ["p", ""])
async def test_nothing_is_reserved_beyond_a_budget_whatever_was_planned(
    database: Database, rows: Any, leader: LeadersHosts, pool: str
) -> None:
    others = [Limit("other", "total", 1.0)]
    first = await reserved(leader, limits=[*others, Limit(pool, "total", 1.0)], keep_seconds=600)
    # 0.83 are spent, 0.08 are kept for the end of that host, and as much would be for that of another.
    await began_ago(rows, first["id"], "100 minutes")
    with pytest.raises(Overspent, match=f"{pool or 'all pools'} is \\$0.95 .total., of which \\$0.83"):
        await reserved(leader, limits=[*others, Limit(pool, "total", 0.95)], keep_seconds=600)
    assert await rows.fetchval("SELECT count(*) FROM hosts") == 1
    await reserved(leader, limits=[Limit(pool, "total", 1.05)], keep_seconds=600)
    # What was spent last month is spent in all, and not in this hour, day or month.
    await rows.execute(
        "UPDATE host_charges SET from_at = m - interval '2 days', until_at = m - interval '1 day'"
        " FROM (SELECT date_trunc('month', now() AT TIME ZONE 'UTC') AT TIME ZONE 'UTC' AS m) month"
    )
    with pytest.raises(Overspent):
        await reserved(leader, limits=[Limit(pool, "total", 24.0)], keep_seconds=600)
    await reserved(leader, limits=[Limit(pool, span, 0.1) for span in ("hour", "day", "month")], keep_seconds=600)
    for span in ("hour", "day", "month"):
        with pytest.raises(Overspent, match=span):
            await reserved(leader, limits=[Limit(pool, span, 1e-6)], keep_seconds=600)
    # One that exists in any case is charged.
    await reserved(leader)
    assert await rows.fetchval("SELECT count(*) FROM host_charges") == 4


async def test_reservations_at_the_same_time_do_not_share_what_is_left(
    database: Database, rows: Any, leader: LeadersHosts
) -> None:
    tries = [reserved(leader, limits=[Limit("", "total", 0.2)], keep_seconds=600) for _ in range(5)]
    ended = await asyncio.gather(*tries, return_exceptions=True)
    assert sum(isinstance(each, Overspent) for each in ended) == 3, ended
    assert await rows.fetchval("SELECT count(*) FROM host_charges") == 2


async def test_old_hosts_go_and_what_they_cost_stays(database: Database, rows: Any, leader: LeadersHosts) -> None:
    store = HostStore(database)
    old, recent, billing, alive = [(await reserved(leader))["id"] for _ in range(4)]
    for host in (old, recent, billing):
        await began_ago(rows, host, "200 days")
        await leader.end(host, "it was idle")
    await rows.execute("UPDATE hosts SET ended_at = ended_at - interval '91 days' WHERE id = ANY ($1)", [old, billing])
    # A provider that showed it again after its end.
    await leader.charge(billing, PRICE)
    before = (await store.spent())["p"]["total"]
    await remove_hosts(store, 90)
    assert await rows.fetchval("SELECT array_agg(id ORDER BY id) FROM hosts") == [recent, billing, alive]
    assert await store.events(old) == []
    assert (await store.spent())["p"]["total"] == pytest.approx(before, abs=1e-4)
    assert await rows.fetchval("SELECT count(*) FROM host_charges WHERE host_id = $1", old) == 1


async def test_a_host_that_is_only_stopped_costs_its_storage_until_its_machine_is_rented_again(
    database: Database, rows: Any, leader: LeadersHosts
) -> None:
    rate = "SELECT coalesce(sum(hourly_price), 0) FROM host_charges WHERE until_at IS NULL"
    for storage, kept in ((0.02, 0.02), (0.0, 0.0)):
        host = await reserved(leader, machine=f"i-{storage}", storage_price=storage, provider="ec2")
        await leader.end(host["id"], "it was idle", keeps_storage=True)
        assert await rows.fetchval(rate) == kept
        await reserved(leader, machine="another", provider="ec2", hourly_price=0.0)
        assert await rows.fetchval(rate) == kept
        again = await reserved(leader, machine=f"i-{storage}", provider="ec2")
        assert await rows.fetchval(rate) == PRICE
        await leader.end(again["id"], "it was idle")


async def test_who_stops_the_controller_is_told_what_goes_on_costing_and_what_ends_it(
    database: Database, leader: LeadersHosts
) -> None:
    store = HostStore(database)
    assert left_running(await store.live()) == ""
    made, asked, other = [await reserved(leader, provider=each) for each in ("vast", "vast", "ec2")]
    await leader.known_as(made["id"], "7835610")
    said = left_running(await store.live()).splitlines()
    assert said[0] == "3 hosts go on and cost $1.500 an hour while no controller runs:"
    assert made["label"] in said[1]
    assert "`make destroy-instance CONTRACT_ID=7835610` ends it" in said[1]
    assert asked["label"] in said[2]
    assert "`make list-instances`" in said[2]
    assert f"`make hosts DESTROY={other['label']}`" in said[3]
