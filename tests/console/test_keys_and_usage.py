"""Keys are made, shown once and revoked; what was used is summed, for those who may see it."""

import csv
import io
from collections.abc import AsyncIterator
from typing import Any

import pytest_asyncio
from playwright.async_api import Browser, expect

from app.console.entrance import COOKIE
from app.services.callers import Scope
from app.services.sessions import form_token
from tests.console.conftest import Visit, visiting
from tests.console.test_entrance import logged_in
from tests.keys.conftest import MakeKey, bearer
from tests.keys.test_usage import use
from tests.service import Service, eventually

HOSTILE = "<script>alert(1)</script>"


@pytest_asyncio.fixture
async def local(api: Service, browser: Browser) -> AsyncIterator[Visit]:
    """A browser without a key, on the service's own machine."""
    async with visiting(browser, api) as at:
        yield at
        assert at.elsewhere == []


async def log_in(visit: Visit, key: str) -> None:
    page = await visit.go("/console/login")
    await page.fill("input[name=key]", key)
    await page.click("main >> button:has-text('Log in')")
    await page.wait_for_url("**/console/")


async def test_a_key_is_shown_once_and_ends_with_its_sessions(local: Visit, browser: Browser, rows: Any) -> None:
    page = await local.go("/console/keys")
    await page.click("summary:has-text('Make a key')")
    await page.fill("input[name=name]", HOSTILE)
    await page.click("summary:has-text('Owner, limits')")
    await page.fill("input[name=requests_per_minute]", "60")
    await page.fill("input[name=dollars_per_month]", "many")
    await page.click("button:has-text('Make the key')")
    await expect(page.locator("#fault-dollars_per_month")).to_contain_text("valid number")
    assert await page.get_attribute("input[name=dollars_per_month]", "aria-invalid") == "true"
    assert "dollars_per_month" not in await page.inner_text("main")
    assert await page.input_value("input[name=name]") == HOSTILE
    assert await rows.fetchval("SELECT count(*) FROM api_keys") == 0
    await page.fill("input[name=dollars_per_month]", "12.5")
    id_ = await page.input_value("input[name=id]")
    await page.click("button:has-text('Make the key')")
    key = await page.inner_text("#new-key")
    await page.click("summary:has-text('How to use it')")
    await expect(page.locator("pre").first).to_have_text(f"export OPENAI_BASE_URL={local.base}/v1 OPENAI_API_KEY={key}")
    await expect(page.locator("tbody th")).to_contain_text(HOSTILE)
    await expect(page.locator("tbody tr")).to_contain_text("Dollars a month: 12.50")
    assert await page.locator("main script").count() == 0
    # Loaded again it is the page of keys.
    await page.reload()
    await expect(page.locator("tbody tr")).to_contain_text("Dollars a month: 12.50")
    assert key not in await page.content()
    # A form that is sent again makes no second key, and the first is not shown.
    await page.click("summary:has-text('Make a key')")
    await page.fill("input[name=name]", HOSTILE)
    await page.eval_on_selector("input[name=id]", "(field, id) => { field.value = id; }", id_)
    await page.click("button:has-text('Make the key')")
    await expect(page.locator("[role=alert]")).to_contain_text("made then")
    assert key not in await page.content()
    assert await rows.fetchval("SELECT count(*) FROM api_keys") == 1
    await local.go("/console/keys")
    assert key not in await page.content()

    async with visiting(browser, local.service) as other:
        await log_in(other, key)
        await page.click("tbody summary:has-text('Revoke')")
        await page.click("button:has-text('Revoke for good')")
        await expect(page.locator("tbody .badge")).to_have_text("revoked")

        async def is_out() -> bool:
            return await (await other.go("/console/")).locator("input[name=key]").count() == 1

        await eventually(is_out, "the session of the key ends")
        assert other.faults == []
    # The two refusals, which the browser notes.
    assert [each for each in local.faults if "422" not in each and "409" not in each] == []


async def test_owners_see_their_own_keys_and_usage_and_admins_all(
    guarded: Service, make_key: MakeKey, rows: Any
) -> None:
    alice = await make_key("alice", scopes=(Scope.READ, Scope.SUBMIT), tokens_per_day=1000)
    bob = await make_key("bob", scopes=(Scope.READ,))
    root = await make_key("root", scopes=tuple(Scope))
    await use(rows, "alice", key="alice", cost=0.25)
    await use(rows, "bob", key="bob", model="slow")
    async with logged_in(guarded, alice) as client:
        page = (await client.get("/console/keys")).text
        assert ("alice" in page, "bob" in page, "Make a key" in page, "Revoke" in page) == (True, False, False, False)
        page = (await client.get("/console/usage")).text
        assert ("<b>10</b> tickets" in page, "150 of 1,000 tokens" in page, "slow" in page) == (True, True, False)
        for owner in ("bob", "all"):
            assert (await client.get("/console/usage", params={"owner": owner})).status_code == 403
            assert (await client.get("/console/usage.csv", params={"owner": owner})).status_code == 403
        page = (await client.get("/console/usage?by=owner")).text
        assert "bob" not in page
    async with logged_in(guarded, bob) as client:
        assert "slow" in (await client.get("/console/usage")).text
        assert "$0.25" not in (await client.get("/console/usage")).text
    async with logged_in(guarded, root) as client:
        page = (await client.get("/console/usage?by=owner")).text
        assert ("<b>20</b> tickets" in page, ">alice</a>" in page, ">bob</a>" in page) == (True, True, True)
        assert "$0.25" in page
        assert "<b>10</b> tickets" in (await client.get("/console/usage?owner=bob")).text
        data = {"form": form_token(client.cookies[COOKIE]), "name": "x", "scopes": "read"}
        assert (await client.post("/console/keys", data=data)).status_code == 422


async def test_what_keys_have_used_of_their_limits_stands_beside_them(
    guarded: Service, make_key: MakeKey, rows: Any
) -> None:
    root = await make_key("root", scopes=tuple(Scope))
    nightly = await make_key("nightly", owner="alice", tokens_per_day=100, dollars_per_month=1.0, pending_limit=7)
    await make_key("idle", owner="alice", requests_per_minute=60)
    await use(rows, "alice", key="nightly", cost=0.25)
    refused = await guarded.client.post(
        "/v1/completions", json={"model": "chat", "prompt": "x"}, headers=bearer(nightly)
    )
    assert refused.status_code == 429
    async with logged_in(guarded, root) as client:
        page = " ".join((await client.get("/console/keys")).text.split())
    # Spent is what a reader looks for who is refused.
    assert 'Tokens a day: 100 <span class="bad">(150 used)</span>' in page
    for unspent in ("a month: 1.00 {}$0.2500", "tickets: 7 {}0", "minute: 60 {}0"):
        assert unspent.format('<span class="note">(') in page, unspent


async def test_the_csv_is_the_table_and_no_cell_of_it_is_a_formula(
    guarded: Service, make_key: MakeKey, rows: Any
) -> None:
    root = await make_key("root", scopes=tuple(Scope))
    await make_key("=cmd()", person='say "hi", you')
    await use(rows, "=cmd()", key="=cmd()", cost=0.5)
    await use(rows, "root", days_ago=40)
    async with logged_in(guarded, root) as client:
        answer = await client.get("/console/usage.csv?by=key")
        (row,) = csv.DictReader(io.StringIO(answer.text))
        found = (row["key_name"], row["key_person"], row["requests"], row["cost"])
        assert found == ("'=cmd()", 'say "hi", you', "10", "0.5")
        assert answer.headers["content-disposition"].startswith("attachment")
        answer = await client.get("/console/usage.csv?by=day&from=2000-01-01&to=2009-12-31")
        assert len(answer.text.splitlines()) == 1
        # Of many days, a bar is a month.
        page = (await client.get("/console/usage?from=2020-01-01")).text
        assert "Tickets a month" in page
        assert len(page) < 100_000
        for query in ("from=x", "by=hour", "from=2026-02-01&to=2026-01-01", "from=0001-01-01", "to=2026-13-01"):
            assert (await client.get(f"/console/usage?{query}")).status_code == 422, query
