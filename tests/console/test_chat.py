"""Chats in a browser: answers grow, go on, branch, stop and are found again; a chat is its tickets."""

import json
import re
from typing import Any
from uuid import UUID, uuid4

from playwright.async_api import Browser, expect

from app.services.callers import Scope
from app.services.chats import path
from app.services.sessions import form_token
from tests.console.conftest import Visit, visiting
from tests.console.test_entrance import COOKIE, logged_in
from tests.console.test_pages import HOSTILE
from tests.keys.conftest import MakeKey, bearer
from tests.openai.response_kit import CALL, WEATHER, emit
from tests.service import Service

WEATHER_OF_CHATS = {name: value for name, value in WEATHER.items() if name != "type"}
IDS = [UUID(int=number) for number in range(1, 8)]


def test_a_way_through_a_chat_leads_to_where_it_went_on_last() -> None:
    a, b, c, d, e, f, g = IDS
    tree = [(a, None), (b, a), (c, a), (d, b), (e, b), (f, None), (g, c)]
    assert [turn.id for turn in path(tree, None)] == [a, c, g]
    assert [turn.id for turn in path(tree, b)] == [a, b, e]
    assert [(turn.id, list(turn.siblings)) for turn in path(tree, f)] == [(f, [a, f])]
    assert [turn.id for turn in path(tree, uuid4())] == [a, c, g]
    assert path([], None) == []
    # What follows a ticket that is gone is a beginning; a circle, which only metadata of the API can draw, has an end.
    assert [turn.after for turn in path([(b, a)], None)] == [None]
    assert [turn.id for turn in path([(a, b), (b, a), (c, c)], a)] == [b, a]


async def test_an_answer_grows_goes_on_elsewhere_and_branches(visit: Visit, browser: Browser) -> None:
    question = HOSTILE + emit("one two three " + HOSTILE + " eight nine ten", "slow=120")
    await visit.ask(question)
    page = visit.page
    growing = page.locator("#leaf [data-growing]")
    await expect(growing).to_contain_text("one")
    assert "ten" not in await growing.inner_text()
    address = page.url
    # The tab is closed, and another browser goes on.
    await page.goto("about:blank")
    async with visiting(browser, visit.service) as other:
        page = await other.go(address.removeprefix(other.base))
        await expect(page.locator("#leaf strong")).to_have_text("bold")
        assert await page.locator("main script, main img, main [onerror], main a[href^=javascript]").count() == 0
        await page.locator("textarea[name=message]").last.fill(emit("A second answer."))
        await page.keyboard.press("Control+Enter")
        await expect(page.locator("#leaf .by-assistant")).to_contain_text("A second answer.")
        assert await page.locator(".turn").count() == 2
        await page.locator("#leaf >> text=Answer again").click()
        await expect(page.locator("#leaf .siblings")).to_contain_text("2 of 2")
        await expect(page.locator("#leaf .by-assistant")).to_contain_text("A second answer.")
        await page.click("#leaf .edit summary")
        await page.fill("#leaf textarea[name=message]", emit("A third one."))
        await page.click("#leaf >> text=Send as another version")
        await expect(page.locator("#leaf .siblings")).to_contain_text("3 of 3")
        await expect(page.locator("#leaf .by-assistant")).to_contain_text("A third one.")
        await page.click("#leaf .siblings >> text=Previous")
        await expect(page.locator("#leaf .by-assistant")).to_contain_text("A second answer.")
        await page.click("text=New chat")
        await page.fill("input[name=text]", "SECOND answer.")
        await page.click("button:has-text('Search')")
        await expect(page.locator("td.text")).to_contain_text("A second answer.")
        assert (other.faults, other.elsewhere) == ([], [])


async def test_a_stop_reaches_the_engine_and_what_was_written_stays(visit: Visit) -> None:
    id_ = await visit.ask(emit("one two three four five six seven eight", "slow=300"))
    page = visit.page
    await expect(page.locator("#leaf [data-growing]")).to_contain_text("one")
    await page.click("#leaf >> text=Stop")
    await expect(page.locator("#leaf")).to_contain_text("It was stopped on request.")
    await expect(page.locator("#leaf .by-assistant")).to_contain_text("one")
    result = await visit.service.settled(id_)
    assert result["cancellation"]["engine_stopped_at"] is not None
    await page.locator("textarea[name=message]").last.fill(emit("And on."))
    await page.locator("main form button:text-is('Send')").click()
    await expect(page.locator("#leaf .by-assistant")).to_contain_text("And on.")


async def test_a_search_finds_chats_by_what_was_said_and_by_their_titles(
    guarded: Service, make_key: MakeKey, rows: Any
) -> None:
    async with logged_in(guarded, await make_key("alice")) as client:
        form = {"form": form_token(client.cookies[COOKIE]), "model": "chat", "message": "the oldest[[sim:hang]]"}
        await client.post("/console/chat", data=form)
        await rows.execute("UPDATE chats SET used_at = now() - interval '1 day', title = 'Herons'")
        await rows.execute(
            "INSERT INTO chats (id, owner_id, title, used_at)"
            " SELECT uuidv7(), (SELECT owner_id FROM chats LIMIT 1), 'Other', now() - n * interval '1 minute'"
            " FROM generate_series(1, 300) n"
        )
        said = (await client.get("/console/chat?text=OLDEST+the")).text
        assert re.search(r'\?at=[^"]+">Herons</a>', said)
        assert "the oldest" in said
        titled = (await client.get("/console/chat?text=herons")).text
        assert re.search(r'/console/chat/[0-9a-f-]{36}">Herons</a>', titled)
        for text in ("herons+oldest", "old", "%21"):
            assert "No chat has these words." in (await client.get(f"/console/chat?text={text}")).text
    async with logged_in(guarded, await make_key("bob")) as client:
        assert "No chat has these words." in (await client.get("/console/chat?text=oldest")).text


async def test_calls_of_tools_are_shown_and_answered(visit: Visit) -> None:
    page = await visit.go("/console/chat")
    await page.fill("textarea[name=message]", emit("Let me look. " + CALL))
    await page.click("summary")
    await page.fill("textarea[name=tools]", "[{")
    await page.click("button:text-is('Send')")
    await expect(page.locator("[role=alert]")).to_contain_text("tools: is no JSON")
    assert visit.faults.pop().startswith("Failed to load resource: the server responded with a status of 422")
    await page.fill("textarea[name=tools]", json.dumps([{"type": "function", "function": WEATHER_OF_CHATS}]))
    await page.click("button:text-is('Send')")
    await expect(page.locator("#leaf .call b")).to_have_text("weather")
    await expect(page.locator("#leaf .call code")).to_contain_text("Paris")
    await page.fill("textarea[name=result]", "<b>Rain</b>" + emit("It rains."))
    await page.locator("main form button:text-is('Send')").click()
    await expect(page.locator("#leaf .by-assistant")).to_contain_text("It rains.")
    await expect(page.locator("#leaf .by-user")).to_contain_text("<b>Rain</b>")
    assert await page.locator(".turn").count() == 2


async def test_chats_belong_to_their_owner_and_nothing_wrong_changes_them(guarded: Service, make_key: MakeKey) -> None:
    alice, bob = await make_key("alice"), await make_key("bob")
    reader = await make_key("reader", owner="alice", scopes=(Scope.READ,))
    async with logged_in(guarded, alice) as client:
        form = {"form": form_token(client.cookies[COOKIE]), "model": "chat"}
        for data, said in (
            ({"message": " "}, "write what you want to ask"),
            ({"message": "Kept.", "max_tokens": "x"}, "is no whole number"),
            ({"message": "Kept.", "after": "x"}, "after: is an id, a UUID"),
            ({"message": "Kept.", "model": "nothing"}, "nothing"),
        ):
            refused = await client.post("/console/chat", data=form | data)
            assert refused.status_code in (404, 422), refused.text
            assert said in refused.text
        assert "Kept." in (await client.post("/console/chat", data=form | {"message": "Kept.", "after": "x"})).text
        assert "No chat" not in (await client.get("/console/chat")).text
        assert "None yet." in (await client.get("/console/chat")).text
        asked = form | {"message": "<b>of alice</b>[[sim:hang]]", "system": "Be <i>brief</i>."}
        made = await client.post("/console/chat", data=asked)
        address, turn = made.headers["location"].split("#")[0].split("?at=")
        shown = await client.get(address)
        assert "&lt;b&gt;of alice" in shown.text
        assert "Be &lt;i&gt;brief" in shown.text
        pending = await client.post(address, data=form | {"message": "Kept.", "after": turn, "at": turn})
        assert (pending.status_code, "still being written" in pending.text, "Kept." in pending.text) == (
            409,
            True,
            True,
        )
        assert (await client.post(f"{address}/delete", data=form)).status_code == 409
        assert (await client.post(f"{address}/again", data=form | {"turn": str(uuid4())})).status_code == 422
        assert (await client.post(f"{address}/rename", data=form | {"title": "<u>Mine"})).status_code == 303
        assert "&lt;u&gt;Mine" in (await client.get("/console/chat")).text
    async with logged_in(guarded, reader) as client:
        for page in (address, "/console/chat"):
            shown = await client.get(page)
            assert (shown.status_code, "textarea" in shown.text) == (200, False)
            assert '<button class="danger"' not in shown.text
    async with logged_in(guarded, bob) as client:
        form = {"form": form_token(client.cookies[COOKIE]), "model": "chat", "message": "x"}
        assert (await client.get(address)).status_code == 404
        for action in ("", "/again", "/stop", "/rename", "/delete"):
            data = form | {"turn": turn, "after": turn, "title": "x"}
            assert (await client.post(f"{address}{action}", data=data)).status_code == 404, action
        assert "of alice" not in (await client.get("/console/chat?text=alice")).text
    async with logged_in(guarded, alice) as client:
        form = {"form": form_token(client.cookies[COOKIE])}
        assert (await client.post(f"{address}/stop", data=form | {"turn": turn})).status_code == 303
        guarded.client.headers.update(bearer(alice))
        await guarded.settled(turn)
        assert (await client.post(f"{address}/delete", data=form)).status_code == 303
        assert (await client.get(address)).status_code == 404
        assert (await client.get(f"/console/tickets/{turn}")).status_code == 404
