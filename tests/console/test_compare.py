"""Comparing in a browser: answers that grow side by side, and which was the better."""

from typing import Any

from playwright.async_api import Browser, Page, expect

from app.services.callers import Scope
from app.services.sessions import form_token
from tests.console.conftest import Visit, visiting
from tests.console.test_entrance import COOKIE, logged_in
from tests.console.test_pages import HOSTILE
from tests.keys.conftest import MakeKey, bearer
from tests.openai.response_kit import emit
from tests.service import Service, eventually


async def compare(page: Page, message: str) -> str:
    """Two columns of the model `chat`, through the form; returns the comparison's id."""
    await page.fill("textarea[name=message]", message)
    await page.locator("select[name=model]").nth(1).select_option("chat")
    await page.click("main button:has-text('Compare')")
    await page.wait_for_url("**/console/compare/*")
    return page.url.rsplit("/", 1)[1]


async def test_answers_grow_side_by_side_and_the_better_is_picked_with_the_keyboard(
    visit: Visit, browser: Browser
) -> None:
    page = await visit.go()
    await page.keyboard.press("g")
    await page.keyboard.press("m")
    await page.wait_for_url("**/console/compare")
    await page.click("text=Add a column")
    await page.locator("select[name=model]").nth(2).select_option("")
    await page.locator("input[name=temperature]").nth(1).fill("0.5")
    await compare(page, HOSTILE + emit("one two three " + HOSTILE + " eight nine ten", "slow=120"))
    growing = page.locator(".column [data-growing]")
    await expect(growing).to_have_count(2)
    for place in range(2):
        await expect(growing.nth(place)).to_contain_text("one")
        assert "ten" not in await growing.nth(place).inner_text()
    await expect(page.locator("#columns-1-head")).to_contain_text("temperature 0.5")
    await expect(page.locator("#live_head .badge")).to_have_text("completed", timeout=15_000)
    for place in range(2):
        await expect(page.locator(f"#columns-{place}-answer strong")).to_have_text("bold")
        await expect(page.locator(f"#columns-{place}-head [data-speed]")).not_to_have_text("–")
    assert await page.locator("main script, main img, main [onerror], main a[href^=javascript]").count() == 0
    await page.locator("#columns-1-foot button").focus()
    await page.keyboard.press("Enter")
    await expect(page.locator("#columns-1-head")).to_contain_text("your pick")
    assert [row["model"] for row in (await visit.service.client.get("/picks/")).json()] == ["chat"]
    async with visiting(browser, visit.service) as other:
        await other.go("/console/compare/picks")
        await expect(other.page.locator("#live-state")).to_have_text("live")
        await expect(other.page.locator("#live_newest td").nth(1)).to_have_text("chat")
        await page.click("text=None is better")
        await expect(other.page.locator("#live_newest td").nth(1)).to_have_text("none")
        assert other.faults == []
    await expect(page.locator("#live_pick")).to_contain_text("You found none better")
    await page.click("text=Take the pick back")
    await expect(page.locator("#live_pick")).not_to_contain_text("You found")
    await page.click("text=Again, with changes")
    assert (await page.input_value("textarea[name=message]")).startswith("<script>")
    assert await page.locator("input[name=temperature]").nth(1).input_value() == "0.5"


async def test_a_stop_reaches_the_engine(visit: Visit) -> None:
    page = await visit.go("/console/compare")
    id_ = await compare(page, "[[sim:hang]]")
    await expect(page.locator(".column .badge.is-running")).to_have_count(2)
    await page.click("text=Stop all")
    await expect(page.locator(".column .badge.is-cancelled")).to_have_count(2)
    entries = (await visit.service.client.get(f"/comparisons/{id_}")).json()["entries"]
    for entry in entries:
        result = await visit.service.settled(entry["result_id"])
        assert result["cancellation"]["engine_stopped_at"] is not None


async def test_owners_see_their_own_and_readers_no_buttons(guarded: Service, make_key: MakeKey) -> None:
    alice, bob = await make_key("alice"), await make_key("bob")
    reader = await make_key("reader", owner="alice", scopes=(Scope.READ,))
    body = {"content": emit("of alice"), "entries": [{"model": "chat"}] * 2}
    made = await guarded.client.post("/comparisons/", json=body, headers=bearer(alice))
    path = f"/console/compare/{made.json()['id']}"

    async def ended() -> Any:
        return (
            await guarded.client.get(
                path.removeprefix("/console").replace("compare", "comparisons"), headers=bearer(alice)
            )
        ).json()["status"] == "completed"

    await eventually(ended, "the end of the comparison")
    async with logged_in(guarded, alice) as client:
        page = await client.get(path)
        assert ("of alice" in page.text, "This one is better" in page.text) == (True, True)
        form = {"form": form_token(client.cookies[COOKIE])}
        for data in ({"result": "x"}, {"result": made.json()["id"]}):
            assert (await client.post(f"{path}/pick", data=form | data)).status_code == 422
        refused = await client.post("/console/compare", data=form | {"message": "Kept.", "model": ["chat", ""]})
        assert (refused.status_code, "choose at least two" in refused.text, "Kept." in refused.text) == (
            422,
            True,
            True,
        )
    async with logged_in(guarded, reader) as client:
        for each in (path, "/console/compare", "/console/compare/picks"):
            page = await client.get(each)
            assert page.status_code == 200, page.text
            assert page.text.count("<form") == 2, each  # the log-out, and the list of keys
    async with logged_in(guarded, bob) as client:
        form = {"form": form_token(client.cookies[COOKIE])}
        for each in (path, f"/console/compare?again={made.json()['id']}"):
            assert (await client.get(each)).status_code == 404
        for each in ("pick", "cancel"):
            assert (await client.post(f"{path}/{each}", data=form)).status_code == 404
        assert "[[sim" not in (await client.get("/console/compare")).text
