"""What tickets cost and what hosts cost besides are what the ledger says, to the cent."""

from datetime import UTC, date, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest

from app.db.engine import Database
from app.db.ids import uuid7
from app.db.tables.contexts import Prompt
from app.db.tables.results import SettledColumns
from app.queue.hosts import LeadersHosts
from app.queue.pools import LeadersPools
from app.queue.store import QueueStore
from app.queue.ticket import Claim, Outcome, Release, Settlement, Status, Submission
from tests.capacity.conftest import PRICE, reserved
from tests.operations.scrape import scrape
from tests.service import Service

DAY = timedelta(days=1)
CENT = 0.01


async def claimed(store: QueueStore, rows: Any, model: str, ago: timedelta = timedelta()) -> Claim:
    """A ticket whose run began so long ago."""
    id_, now = uuid7(), datetime.now(UTC)
    await store.submit([Submission(id_, uuid7(), model, {}, 0, now, now, prompt=Prompt("x"))])
    (claim,) = (await store.claim([(model, "s", None)], lease_seconds=600, dispatcher="d")).claims
    await rows.execute(
        "UPDATE results SET attempt_started_at = attempt_started_at - $2::interval WHERE id = $1", id_, ago
    )
    return claim


async def settle(store: QueueStore, claim: Claim, hours: float, price: float | None, host: UUID | None) -> UUID:
    """It used so many hours of the host."""
    answer = SettledColumns("t", None, "stop", 3, 5)
    end = Settlement(
        *(claim.id, claim.token, Status.COMPLETED, Outcome.COMPLETED, "s", answer),
        gpu_seconds=hours * 3600,
        cost=None if price is None else hours * price,
        host_id=host,
    )
    assert await store.settle([end]) == {claim.id}
    return claim.id


async def charge(rows: Any, host: UUID, began: timedelta, ended: timedelta | None = None) -> None:
    """Its charge as if it had begun and ended so long ago."""
    await rows.execute(
        "UPDATE host_charges SET from_at = now() - $2::interval, until_at = now() - $3::interval WHERE host_id = $1",
        *(host, began, ended),
    )


async def ledger(rows: Any, first: date, last: date) -> float:
    """Dollars of all hosts from the start of the first day to the end of the last, added up second by second."""
    begin = datetime.combine(first, datetime.min.time(), UTC)
    end = datetime.combine(last + DAY, datetime.min.time(), UTC)
    dollars = 0.0
    for row in await rows.fetch(
        "SELECT from_at, coalesce(until_at, now()) AS until_at, hourly_price FROM host_charges"
    ):
        span = min(row["until_at"], end) - max(row["from_at"], begin)
        dollars += max(span, timedelta()) / timedelta(hours=1) * row["hourly_price"]
    return dollars


async def usage(api: Service, first: date, last: date, group_by: str, owner: str = "&owner=all") -> Any:
    answer = await api.client.get(f"/usage?group_by={group_by}&from={first}&to={last}{owner}")
    assert answer.status_code == 200, answer.text
    return answer.json()


async def adds_up(api: Service, rows: Any, first: date, last: date, others: float = 0.0) -> dict[str, Any]:
    """The report's total, once every grouping sums to what the ledger says and `others` for servers without a host."""
    expected = await ledger(rows, first, last)
    for group_by in ("model", "key", "owner", "day"):
        report = await usage(api, first, last, group_by)
        total, groups = report["total"], report["groups"]
        assert total["host_cost"] + total["overhead"] == pytest.approx(expected, abs=CENT / 2), (group_by, first, last)
        assert (total["cost"] or 0.0) - total["host_cost"] == pytest.approx(others, abs=1e-6)
        for name in ("cost", "host_cost", "requests"):
            assert sum(group[name] or 0 for group in groups) == pytest.approx(total[name] or 0, abs=1e-6)
        if group_by == "day":
            assert sum(group["overhead"] for group in groups) == pytest.approx(total["overhead"], abs=1e-6)
    return {day["day"]: day for day in groups} | {"total": total}


async def test_usage_is_the_ledger_in_any_span_across_midnight_and_a_month_and_while_a_host_runs(
    api: Service, rows: Any, store: QueueStore, leader: LeadersHosts
) -> None:
    running, gone, idle = [(await reserved(leader, hourly_price=price))["id"] for price in (PRICE, 2.0, 0.1)]
    # A month's end is among the days, whichever day it is.
    await charge(rows, running, 40 * DAY)
    await charge(rows, gone, 3 * DAY, 2 * DAY + timedelta(minutes=7))
    await charge(rows, idle, 50 * DAY, 49 * DAY)
    # Half of the host for 39 days, a run that was given back, one without a host, and one on a server without a price.
    long = await settle(store, await claimed(store, rows, "long", 39 * DAY), 39 * 12, PRICE, running)
    back = await claimed(store, rows, "tiny", timedelta(minutes=30))
    await store.release([Release(back.id, back.token, Outcome.RETRIED, "s", 0, False, None, None, 900, 0.125, running)])
    await settle(store, await claimed(store, rows, "tiny", timedelta(minutes=10)), 0.1, PRICE, running)
    await settle(store, await claimed(store, rows, "tiny"), 1.0, 7.0, None)
    await settle(store, await claimed(store, rows, "tiny"), 1.0, None, None)
    today = datetime.now(UTC).date()

    days = await adds_up(api, rows, today - 60 * DAY, today, others=7.0)
    assert days["total"]["cost"] == pytest.approx(39 * 12 * PRICE + 0.125 + 0.1 * PRICE + 7.0)
    whole = days[str(today - 20 * DAY)]
    assert (whole["cost"], whole["overhead"]) == (pytest.approx(12 * PRICE), pytest.approx(12 * PRICE))
    assert (whole["requests"], whole["gpu_seconds"]) == (0, pytest.approx(12 * 3600))
    empty = days[str(today - 50 * DAY)]
    assert (empty["cost"], empty["requests"]) == (None, 0)
    assert empty["overhead"] > 0
    month = today.replace(day=1)
    for first, last in (
        *((month - DAY, month - DAY), (month, month), (month - DAY, month), (month, today)),
        *((today - DAY, today - DAY), (today - 3 * DAY, today - 2 * DAY), (today - 45 * DAY, month - DAY)),
    ):
        await adds_up(api, rows, first, last, others=7.0 if first <= today <= last else 0.0)
    await adds_up(api, rows, today, today, others=7.0)
    await adds_up(api, rows, today + DAY, today + 2 * DAY)
    await adds_up(api, rows, date.min, date.max - DAY, others=7.0)

    assert (await api.client.get(f"/results/{long}")).json()["cost"] == pytest.approx(39 * 12 * PRICE)
    # What nobody used is nobody's.
    own = await usage(api, today - 60 * DAY, today, "day", owner="")
    assert own["total"]["cost"] == days["total"]["cost"]
    assert "overhead" not in own["total"]


async def test_what_dispatchers_counted_twice_costs_once(
    api: Service, rows: Any, store: QueueStore, leader: LeadersHosts
) -> None:
    host = (await reserved(leader))["id"]
    begin = datetime(2026, 3, 5, 10, tzinfo=UTC)
    await rows.execute("UPDATE host_charges SET from_at = $1, until_at = $2", begin, begin + timedelta(hours=1))
    # Two that did not see each other's requests had the host for half an hour and for all of it.
    for model, hours in (("a", 0.5), ("b", 1.0)):
        await settle(store, await claimed(store, rows, model), hours, PRICE, host)
    await store.compact_usage()
    await rows.execute("UPDATE usage SET day = $1", begin.date())
    span = (begin.date(), begin.date() + DAY)
    total = (await adds_up(api, rows, *span))["total"]
    assert (total["host_cost"], total["overhead"]) == (pytest.approx(PRICE), pytest.approx(0, abs=1e-6))
    report = await usage(api, *span, "model")
    assert [group["cost"] for group in report["groups"]] == [pytest.approx(PRICE / 3), pytest.approx(2 * PRICE / 3)]


async def test_the_metrics_are_the_ledger(api: Service, rows: Any, leader: LeadersHosts, database: Database) -> None:
    gone, _ = [(await reserved(leader))["id"] for _ in range(2)]
    await leader.end(gone, "it was idle")
    await charge(rows, gone, timedelta(days=400, hours=3), timedelta(days=400))
    pool = {"name": "p", "models": ["tiny"], "settings": {"budget": {"day": 5.0}}}
    await LeadersPools(database, 1).put([pool], {"day": 8.0, "hour": None})
    samples = await scrape(api.client)
    assert samples["tickets_hosts"] == {(("pool", "p"), ("state", "wanted")): 1}
    assert samples["tickets_host_dollars_per_hour"] == {(("pool", "p"),): PRICE}
    assert samples["tickets_budget_dollars"] == {
        (("pool", "p"), ("span", "day")): 5,
        (("pool", ""), ("span", "day")): 8,
    }
    dollars = {dict(labels)["span"]: value for labels, value in samples["tickets_host_dollars"].items()}
    assert dollars["total"] == pytest.approx(3 * PRICE, abs=0.01)
    assert 0 <= dollars["hour"] <= dollars["day"] <= dollars["month"] < 0.01
