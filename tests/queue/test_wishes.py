"""Tickets that wish for servers are queues of their own, and slow no other one."""

from collections import Counter
from datetime import UTC, datetime, timedelta
from typing import Any

from app.db.ids import uuid7
from app.queue.bulk import MAX_STATEMENT_BYTES
from app.queue.statements.claim import CLAIM
from app.queue.store import QueueStore
from app.queue.ticket import Claims, Submission
from tests.queue.test_plans import check, nodes, plan

# The arguments of a claim for them.
TWENTY_SLOTS = (
    *(["m"] * 20, ["s"] * 20, 30.0, "d", [], [], [], [], MAX_STATEMENT_BYTES, [None] * 20),
    *([], ["s"], ["one"], ["x"], [None] * 20),
)
NAMED = [("s", "one", "triton"), ("t", "two", "openai"), ("u", "three", "openai")]


async def submitted(store: QueueStore, rows: Any, *wishes: str, owner_id: int = 0) -> None:
    """A ticket for each, one after the other."""
    context = uuid7()
    await rows.execute("INSERT INTO contexts (id, content, owner_id) VALUES ($1, 'p', $2)", context, owner_id)
    now = datetime.now(UTC) - timedelta(seconds=60)
    await store.submit(
        [
            Submission(uuid7(), context, "m", {}, 0, now + timedelta(seconds=n), now, wish=wish, owner_id=owner_id)
            for n, wish in enumerate(wishes)
        ]
    )


async def claimed(store: QueueStore, *servers: str) -> Claims:
    wanted = [("m", server, None) for server in servers]
    return await store.claim(wanted, lease_seconds=30.0, dispatcher="d", named=NAMED)


async def placed(rows: Any) -> Counter[tuple[str, str]]:
    found = await rows.fetch("SELECT wish, server FROM results WHERE attempt_token IS NOT NULL")
    return Counter((row["wish"], row["server"]) for row in found)


async def test_a_wish_is_met_by_the_servers_it_is_for(store: QueueStore, rows: Any) -> None:
    wishes = ["server:one", "server:two", "kinds:openai", "kinds:tgi", "kinds:openai,triton", "server:on", ""]
    await submitted(store, rows, *wishes)
    for _ in range(4):
        await claimed(store, "s", "s", "t", "t", "u", "u")
    found = await placed(rows)
    assert found.total() == 5
    assert {wish for wish, _ in found} == {*wishes} - {"kinds:tgi", "server:on"}
    assert {server for wish, server in found if wish == "server:one"} == {"s"}
    assert {server for wish, server in found if wish == "server:two"} == {"t"}
    assert {server for wish, server in found if wish == "kinds:openai"} <= {"t", "u"}


async def test_a_slot_that_two_want_goes_to_the_one_that_came_first(store: QueueStore, rows: Any) -> None:
    await submitted(store, rows, "kinds:openai", "", "server:two", "kinds:openai")
    order = [(await claimed(store, "t")).claims for _ in range(5)]
    assert [len(claims) for claims in order] == [1, 1, 1, 1, 0]
    ids = [row["id"] for row in await rows.fetch("SELECT id FROM results ORDER BY rank")]
    assert [claims[0].id for claims in order[:4]] == ids


async def test_slots_are_shared_by_all_who_may_have_them(store: QueueStore, rows: Any) -> None:
    await submitted(store, rows, *["server:one"] * 5, *[""] * 5, *["kinds:openai"] * 5)
    total: Counter[tuple[str, str]] = Counter()
    for _ in range(15):
        claims = (await claimed(store, "s", "s", "t")).claims
        assert len(claims) <= 3
        total += Counter(claim.server for claim in claims)
    assert total == {"s": total["s"], "t": total["t"]}
    assert total.total() == 15


async def test_owners_take_turns_within_a_wish(store: QueueStore, rows: Any) -> None:
    for owner in (1, 2):
        await rows.execute("INSERT INTO owners (id, name) VALUES ($1, $2)", owner, f"o{owner}")
    await submitted(store, rows, *["server:one"] * 6, owner_id=1)
    await submitted(store, rows, *["server:one"] * 6, owner_id=2)
    claims = (await claimed(store, "s", "s", "s", "s")).claims
    assert Counter(claim.owner_id for claim in claims) == {1: 2, 2: 2}


async def test_an_empty_queue_is_not_told_where_tickets_with_wishes_wait(store: QueueStore, rows: Any) -> None:
    """Those who claim would pass the model over until they hear of new tickets, although a server may get free."""
    await submitted(store, rows, "server:two")
    answer = await claimed(store, "s", "s")
    assert (answer.claims, answer.granted) == ([], {})
    assert len((await claimed(store, "t")).claims) == 1
    assert (await claimed(store, "s")).granted == {}
    await rows.execute("DELETE FROM results")
    assert (await claimed(store, "s")).granted == {"m": 1}


async def test_many_that_wait_for_a_server_are_not_read_by_others(store: QueueStore, rows: Any) -> None:
    await submitted(store, rows, "")
    await rows.execute(
        "INSERT INTO results (id, context_id, model, parameters, wish, rank)"
        " SELECT uuidv7(), (SELECT id FROM contexts LIMIT 1), 'm', '{}', 'server:gone', '-infinity'"
        " FROM generate_series(1, 5000)"
    )
    await rows.execute("ANALYZE results")
    check(await plan(rows, CLAIM, *TWENTY_SLOTS), "results_claim", 20)
    assert len((await claimed(store, "s", "t")).claims) == 1


async def test_wishes_that_no_server_meets_are_looked_at_once(store: QueueStore, rows: Any) -> None:
    """Not once for each slot."""
    await submitted(store, rows, "", *(f"server:gone{n}" for n in range(50)))
    await rows.execute("ANALYZE results")
    scans = [node for node in nodes(await plan(rows, CLAIM, *TWENTY_SLOTS)) if node.get("Alias", "")[:1] == "v"]
    assert scans
    assert sum(node["Actual Loops"] for node in scans) <= 100
