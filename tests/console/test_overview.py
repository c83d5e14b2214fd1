"""The overview's lines over an hour and a day."""

import asyncio
import re
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import httpx
from playwright.async_api import Browser, expect

from app.db.engine import Database
from app.queue.minutes import MinuteStore
from app.queue.store import QueueStore
from app.services.callers import Scope
from app.services.overview import Span
from app.services.submitted import Submitted, beginning
from tests.console.conftest import visiting
from tests.console.test_entrance import logged_in
from tests.keys.conftest import MakeKey, bearer
from tests.service import Service, eventually

HOSTILE = "<script>alert(1)</script>"


async def ended(rows: Any, owner: str, ago: str, tickets: int, model: str = "chat", error: str = "") -> None:
    await rows.execute(
        "INSERT INTO minute_counts"
        " SELECT id, date_trunc('minute', now() - $2::text::interval), $3, $4, $5::int, 0, $5::int * 10 FROM owners"
        " WHERE name = $1",
        owner,
        ago,
        model,
        error,
        tickets,
    )


async def test_owners_see_what_ended_of_theirs_and_admins_of_all(
    guarded: Service, make_key: MakeKey, rows: Any
) -> None:
    alice, bob, root = await make_key("alice"), await make_key("bob"), await make_key("root", scopes=tuple(Scope))
    await ended(rows, "alice", "2 minutes", 3)
    await ended(rows, "alice", "2 hours", 9_000)
    await ended(rows, "alice", "26 hours", 90_000)
    await ended(rows, "bob", "3 minutes", 5, HOSTILE, "<b>")
    seen = {}
    for name, key in (("alice", alice), ("bob", bob), ("root", root)):
        async with logged_in(guarded, key) as client:
            seen[name] = (await client.get("/console/")).text
            assert HOSTILE not in seen[name]
            assert "<b>" + "</a>" not in seen[name]
    for name, completed, failed, code in (("alice", 3, 0, False), ("bob", 0, 5, True), ("root", 3, 5, True)):
        assert f"<b>{completed}</b> completed in the last hour" in seen[name], name
        assert f">{failed}</b> failed in the last hour" in seen[name], name
        # No line where there is nothing to show.
        assert ('class="line of-bad"' in seen[name]) == bool(failed), name
        assert ("&lt;b&gt;</a> 5" in seen[name]) == code, name
    # 9,000 in a quarter of an hour.
    assert 'aria-label="Tickets a second: up to 10/s;' in seen["alice"]
    assert 'aria-label="Tokens a second: up to 100/s;' in seen["root"]
    assert "up to 10/s" not in seen["bob"]


async def test_the_lines_are_live_before_and_after_the_sums_are_made(
    service: Service, browser: Browser, store: QueueStore, rows: Any
) -> None:
    async with visiting(browser, service) as visit:
        page = await visit.go()
        counts = page.locator("#live_counts")
        await expect(counts).to_contain_text("0 completed in the last hour")
        await service.run(model="chat", max_tokens=2)
        await expect(counts).to_contain_text("1 completed in the last hour")
        await store.compact_usage()
        assert await rows.fetchval("SELECT count(*) FROM usage WHERE minute IS NOT NULL") == 0
        await service.run(model="chat", max_tokens=2)
        await expect(counts).to_contain_text("2 completed in the last hour")
        assert (visit.faults, visit.elsewhere) == ([], [])


async def test_what_comes_in_is_counted_before_it_ends(guarded: Service, make_key: MakeKey, rows: Any) -> None:
    alice, bob, root = await make_key("alice"), await make_key("bob"), await make_key("root", scopes=tuple(Scope))
    guarded.client.headers.update(bearer(alice))
    id_ = await guarded.send(model="chat")
    await rows.execute(
        "INSERT INTO results (id, context_id, model, parameters, owner_id, rank, created_at, available_at)"
        " SELECT uuidv7(-interval '20 minutes' + n * interval '1 ms'), context_id, model, parameters, owner_id, rank,"
        " created_at, now() + interval '1 day' FROM results, generate_series(1, 600) n WHERE id = $1",
        UUID(id_),
    )
    for key, peak in ((alice, True), (bob, False), (root, True)):
        async with logged_in(guarded, key) as client:

            async def counted(client: httpx.AsyncClient = client) -> str | None:
                # Back to the beginning of the hour not at once.
                text = (await client.get("/console/")).text
                return text if "; submitted" in text else None

            text = await eventually(counted, "what came in is counted")
            # 600 in a minute, or in two where the minute ends between them.
            assert bool(re.search(r'"Tickets a second: up to (10|[5-9]\S*)/s; submitted', text)) == peak
            assert ('class="line of-plain"' in text) == peak


async def test_submits_of_a_day_are_counted_step_by_step(api: Service, database: Database, rows: Any) -> None:
    step = timedelta(minutes=15)
    id_ = await api.send(model="chat")
    await rows.execute(
        "INSERT INTO results (id, context_id, model, parameters, owner_id, rank, created_at, available_at)"
        " SELECT uuidv7(-ago::interval), context_id, model, parameters, owner_id, rank, created_at, available_at"
        " FROM results, unnest(ARRAY['20 minutes', '5 hours', '5 hours', '30 hours']) ago WHERE id = $1",
        UUID(id_),
    )
    submitted = Submitted(MinuteStore(database), step, 96, most=4)

    async def counted() -> dict[datetime, int] | None:
        tickets, known = await submitted.get(None)
        return tickets if known else None

    assert await counted() is None
    tickets = await eventually(counted, "it is counted back to a day ago")
    assert sum(tickets.values()) == 4
    assert sum((await submitted.get(1))[0].values()) == 0
    # Each begins with a quarter of an hour, as those of the lines do.
    assert {began.timestamp() % step.total_seconds() for began in tickets} == {0}
    span = Span([], beginning(step, 96), step, 96)
    span.take_submitted(tickets, known=True)
    assert (sum(span.submitted), max(span.submitted)) == (4, 2)


async def test_tickets_that_no_dispatcher_takes_need_a_look(api: Service, rows: Any) -> None:
    await api.send(model="chat")

    async def said() -> bool:
        return "1 ticket waits for models that are ready, and none runs" in (await api.client.get("/console/")).text

    async def waits() -> bool:
        return "<b>1</b> waiting" in (await api.client.get("/console/")).text

    await eventually(waits, "it is counted")
    assert not await said()
    # One that another server may not run says nothing of dispatchers.
    await rows.execute("UPDATE results SET available_at = now() - interval '20 s', wish = 'server:elsewhere'")
    await asyncio.sleep(1)
    assert not await said()
    await rows.execute("UPDATE results SET wish = ''")
    await eventually(said, "it needs a look")


def test_the_last_step_of_a_line_is_taken_with_the_one_before() -> None:
    step = timedelta(minutes=1)
    began = datetime.now(UTC) - 2 * step - timedelta(seconds=30)
    rows = [
        {"began": began + place * step, "model": "m", "error_code": error, "tickets": tickets, "tokens": 0}
        for place, error, tickets in (
            (0, "", 60),
            (1, "", 120),
            (2, "", 60),
            (2, "x", 9),
            (7, "", 30),
            (1, "cancelled", 600),
        )
    ]
    span = Span(rows, began, step, 3)
    assert (span.completed, span.failed, span.cancelled) == ([60, 120, 90], [0, 0, 9], [0, 600, 0])
    first, second, last = span.a_second(span.completed)
    assert (first, second) == (1, 2)
    # 210 in a minute and a half.
    assert 210 / 91 < last <= 210 / 90
