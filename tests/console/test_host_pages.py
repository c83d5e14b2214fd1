"""Hosts in a real browser: pools and what they spend, a host's life as a line, and what admins ask of it."""

from typing import Any

from playwright.async_api import Browser, expect

from app.console.host_pages import life_bar, stages_of
from app.db.engine import Database
from app.queue.hosts import LeadersHosts
from app.queue.leader import LeaderStore
from app.queue.pools import LeadersPools
from tests.capacity.test_ledger import reserved
from tests.console.conftest import visiting
from tests.console.test_entrance import logged_in
from tests.keys.conftest import MakeKey
from tests.service import Service

HOSTILE = "<script>alert(1)</script>"
A_MINUTE_EACH = """
UPDATE host_events SET at = at - interval '60 seconds' * (5 - place)
FROM (SELECT id AS event, row_number() OVER (ORDER BY id) AS place FROM host_events WHERE host_id = $1) placed
WHERE id = event
"""
# 3.50 dollars since midnight.
SPENT_TODAY = """
UPDATE host_charges SET from_at = midnight,
    hourly_price = 3.5 * 3600 / greatest(1, extract(epoch FROM now() - midnight))
FROM (SELECT date_trunc('day', now() AT TIME ZONE 'UTC') AT TIME ZONE 'UTC' AS midnight) today WHERE host_id = $1
"""


async def leader_of(database: Database) -> tuple[LeadersHosts, LeadersPools]:
    taken = await LeaderStore(database).take("first", 60)
    assert taken is not None
    return LeadersHosts(database, taken.token), LeadersPools(database, taken.token)


async def test_without_a_pool_it_says_how_to_make_one(api: Service) -> None:
    page = (await api.client.get("/console/hosts")).text
    assert "No pool of hosts is configured: write one below <code>pools:</code>" in page
    assert "No host was ever rented" in page


async def test_hosts_are_seen_locked_drained_and_destroyed(
    api: Service, browser: Browser, database: Database, rows: Any
) -> None:
    hosts, pools = await leader_of(database)
    settings = {"max_hosts": 3, "budget": {"day": 4.0, "total": None}}
    await pools.put([{"name": "p", "models": ["sleeper"], "settings": settings}], {"day": 3.6})
    demand = {"model": "sleeper", "waiting": 7, "running": 2, "oldest": 61.0}
    rent = {"action": "rent", "reason": f"7 tickets wait {HOSTILE}"}
    why = {"model": "sleeper", "message": "a host is being made"}
    await pools.planned({"p": {"demand": [demand], "actions": [rent], "waiting": [why], "market": {"error": "no"}}})
    failed, host = await reserved(hosts, label="first"), await reserved(hosts, label="second")
    await hosts.fail(failed["id"], f"SSH never answered {HOSTILE}")
    await hosts.end(failed["id"], "gone")
    for state in ("creating", "booting", "loading", "ready"):
        await hosts.move(host["id"], state, f"it is {state}")
    await rows.execute(A_MINUTE_EACH, host["id"])
    await rows.execute(SPENT_TODAY, host["id"])
    async with visiting(browser, api) as visit:
        page = await visit.go("/console/hosts")
        pool = page.locator("[aria-label='Pool p']")
        await expect(pool).to_contain_text("today: $3.50 of $4.00")
        assert await pool.locator("rect.of-warn").count() == 1
        together = page.locator("[aria-label='Budgets of all pools']")
        await expect(together).to_contain_text("all pools today: $3.50 of $3.60")
        await expect(pool).to_contain_text("sleeper: 7 waiting for up to 1 min 1 s, 2 running")
        await expect(pool).to_contain_text(f"rent: 7 tickets wait {HOSTILE}")
        await expect(page.locator("#live_hosts tr").nth(1)).to_contain_text(f"SSH never answered {HOSTILE}")
        assert await page.locator("main script").count() == 0
        await visit.go()
        await expect(page.locator("#live_counts")).to_contain_text("for 1 rented host")
        await expect(page.locator("[aria-label='Budgets of p']")).to_contain_text("p today: $3.50 of $4.00")
        await expect(page.locator("text=All pools together have spent $3.50 of the $3.60 of this day.")).to_be_visible()
        await page.click("text=p has spent $3.50 of the $4.00 of this day.")
        await page.wait_for_url("**/console/hosts")
        await page.keyboard.press("j")
        await page.keyboard.press("Enter")
        head = page.locator("#live_head")
        await expect(head.locator(".stages")).to_contain_text("booting 1 min 0 s")
        assert await head.locator("rect").evaluate_all("all => all.map(each => each.className.baseVal)") == [
            *("of-dim", "of-dim", "of-dim", "of-plain", "of-good")
        ]
        await page.click("button:has-text('Lock')")
        await expect(head).to_contain_text("locked")
        await page.click("button:has-text('Unlock')")
        await expect(head).not_to_contain_text("locked")
        await page.click("button:has-text('Drain')")
        await expect(head).to_contain_text("asked to drain it")
        # What the controller does is seen as it happens.
        await hosts.move(host["id"], "draining", "an admin asked for it")
        await expect(head.locator(".badge")).to_have_text("draining")
        await page.click("summary")
        await page.click("button:has-text('Destroy')")
        await expect(page.locator("#live_actions form")).to_have_count(0)
        assert visit.faults == []
    assert await rows.fetchval("SELECT asked FROM hosts WHERE id = $1", host["id"]) == "destroy"


async def test_hosts_are_for_admins(guarded: Service, make_key: MakeKey) -> None:
    async with logged_in(guarded, await make_key()) as client:
        assert (await client.get("/console/hosts")).status_code == 403
        assert "/console/hosts" not in (await client.get("/console/")).text


def test_a_life_of_no_time_is_drawn() -> None:
    assert "rect" not in life_bar(stages_of([], None))
