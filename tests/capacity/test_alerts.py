"""What is said of budgets: once for each level and period, whoever leads."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from standardwebhooks import Webhook

from app.capacity.alerts import Alerts
from app.capacity.observe import Observer
from app.capacity.plan import Budget, Pool
from app.config import Settings
from app.db.engine import Database
from app.queue.deliveries import DeliveryStore
from app.queue.hosts import LeadersHosts
from app.queue.leader import LeaderStore
from app.services.webhooks import secret_of
from tests.capacity.conftest import reserved
from tests.service import running_dispatcher
from tests.webhooks.receiver import receiving

POOL = Pool("p", ("tiny",), budget=Budget(total=10.0))


class Controller:
    """What a leader tells of what it sees."""

    def __init__(self, database: Database, token: int, url: str | None) -> None:
        self._observer = Observer(database, LeadersHosts(database, token))
        self._alerts = Alerts(database, token, url)

    async def look(self, pool: Pool = POOL, budget: Budget = Budget()) -> None:  # noqa: B008 - frozen
        seen = await self._observer.look([pool], frozenset())
        await self._alerts.tell(seen.now, [pool], budget, seen.spent, seen.hosts)


async def told(rows: Any) -> list[tuple[str, str, int]]:
    return [
        (row["pool"], row["span"], row["level"])
        for row in await rows.fetch("SELECT * FROM budget_alerts ORDER BY at, pool, span, level")
    ]


async def test_each_level_is_told_once_and_a_new_leader_does_not_tell_it_again(
    database: Database, rows: Any, make_settings: Callable[..., Settings]
) -> None:
    async def spend(dollars: float) -> None:
        """That much, by a host at a dollar an hour."""
        await rows.execute("UPDATE host_charges SET from_at = now() - $1 * interval '1 hour'", dollars)

    leaders = LeaderStore(database)
    first = await leaders.take("first", 60)
    assert first is not None
    await reserved(LeadersHosts(database, first.token), hourly_price=1.0)
    async with receiving() as receiver, running_dispatcher(make_settings(webhook_allow_private=True)):
        url = f"{receiver.url}/ok"
        controller = Controller(database, first.token, url)
        for dollars, levels in ((4.9, []), (5.1, [50]), (5.2, [50]), (8.1, [50, 80]), (8.2, [50, 80])):
            await spend(dollars)
            await controller.look()
            assert await told(rows) == [("p", "total", level) for level in levels]
        await rows.execute("UPDATE capacity_leader SET until = now()")
        second = await leaders.take("second", 60)
        assert second is not None
        controller = Controller(database, second.token, url)
        await controller.look()
        assert len(await told(rows)) == 2
        # What ending the host costs yet is kept back, so that it is spent before all of it is.
        await spend(9.8)
        await controller.look()
        hooks = await receiver.has(3)
    secret = await secret_of(DeliveryStore(database), 0)
    events = [Webhook(secret).verify(hook.body, hook.headers) for hook in hooks]
    assert {event["type"] for event in events} == {"budget.reached"}
    said = sorted((event["data"] for event in events), key=lambda data: data["level"])
    assert [(data["level"], round(data["spent"], 1)) for data in said] == [(50, 5.1), (80, 8.1), (100, 9.8)]
    assert [
        each.items() >= {"pool": "p", "span": "total", "limit": 10.0, "period": "all"}.items() for each in said
    ] == [True] * 3
    # A larger budget, and that over all pools, are others.
    await spend(9.8)
    await controller.look(replace(POOL, budget=Budget(total=19.0)), Budget(total=12.0))
    assert set(await told(rows)) == {
        ("p", "total", 50),
        ("p", "total", 80),
        ("p", "total", 100),
        ("", "total", 50),
        ("", "total", 80),
    }
    assert await rows.fetchval("SELECT count(*) FROM webhook_deliveries") == 6


async def test_a_period_is_over_and_the_next_is_told_anew(database: Database, rows: Any, leader: LeadersHosts) -> None:
    host = await reserved(leader, hourly_price=1.0)
    day = replace(POOL, budget=Budget(month=0.001))
    await rows.execute("UPDATE host_charges SET from_at = now() - interval '10 seconds' WHERE host_id = $1", host["id"])
    await Controller(database, 1, None).look(day)
    assert len(await told(rows)) == 3
    await rows.execute("UPDATE budget_alerts SET period = '2026-01'")
    await Controller(database, 1, None).look(day)
    assert len(await told(rows)) == 6
    # Nobody is told where nobody is named.
    assert await rows.fetchval("SELECT count(*) FROM webhook_deliveries") == 0
