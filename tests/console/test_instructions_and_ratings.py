"""Named instructions, whose children follow them, and ratings of answers, which SQL finds."""

import re
from typing import Any

import httpx
from playwright.async_api import expect

from app.services.callers import Scope
from app.services.sessions import form_token
from tests.console.conftest import Visit
from tests.console.test_entrance import COOKIE, logged_in
from tests.keys.conftest import MakeKey
from tests.openai.response_kit import emit
from tests.service import Service

ADMIN = tuple(Scope)


async def name(visit: Visit, title: str, text: str, parent: str = "") -> None:
    page = await visit.go("/console/instructions")
    await page.fill("input[name=name]", title)
    await page.fill("textarea[name=text]", text)
    if parent:
        await page.select_option("select[name=parent]", label=parent)
    await page.click("button:has-text('Save')")
    await expect(page.locator("h1")).to_have_text(title)


async def test_a_chat_follows_its_instructions_and_its_answers_are_rated(visit: Visit, rows: Any) -> None:
    await name(visit, "<i>House</i>", "Be <b>polite</b>.")
    await name(visit, "Support", "Answer for the support.", "<i>House</i>")
    page = visit.page
    await expect(page.locator(".said")).to_have_text("Be <b>polite</b>.\n\nAnswer for the support.")
    await page.click("text=Begin a chat")
    await page.fill("textarea[name=message]", emit("First."))
    await page.click("button:text-is('Send')")
    await expect(page.locator(".by-system")).to_contain_text("Answer for the support.")
    await expect(page.locator("#leaf .by-assistant")).to_contain_text("First.")
    chat = page.url
    await visit.go("/console/instructions")
    await page.click("text=<i>House</i>")
    await page.fill("textarea[name=text]", "Be brief.")
    await page.click("button:has-text('Save')")
    await page.goto(chat)
    await page.locator("textarea[name=message]").last.fill(emit("Second."))
    await page.keyboard.press("Control+Enter")
    await expect(page.locator("#leaf .by-assistant")).to_contain_text("Second.")
    context = await rows.fetchval("SELECT context_id FROM results ORDER BY id DESC LIMIT 1")
    said = (await visit.service.client.get(f"/contexts/{context}")).json()["content"]
    assert "Be brief.\n\nAnswer for the support." in said
    assert "polite" not in said
    await page.click("#leaf >> button:text-is('Bad')")
    await page.fill("#leaf input[name=comment]", "<b>Wrong</b>")
    # The badge and what was typed stand there before it is kept, too.
    async with page.expect_navigation():
        await page.keyboard.press("Enter")
    await expect(page.locator("#leaf .rating .badge")).to_have_text("bad")
    assert await page.input_value("#leaf input[name=comment]") == "<b>Wrong</b>"
    row = await rows.fetchrow("SELECT * FROM answer_ratings")
    assert (row["rating"], row["comment"], row["model"], row["output"]) == (-1, "<b>Wrong</b>", "chat", "Second.")
    assert row["prompt"].startswith("[[sim")
    await page.click("#leaf >> text=Take back")
    await expect(page.locator("#leaf >> button:text-is('Good')")).to_be_visible()
    assert await rows.fetchval("SELECT count(*) FROM ratings") == 0


async def test_instructions_are_shared_by_admins_and_changed_by_their_owner(
    guarded: Service, make_key: MakeKey
) -> None:
    alice, bob = await make_key("alice", scopes=ADMIN), await make_key("bob")
    async with logged_in(guarded, alice) as mine, logged_in(guarded, bob) as theirs:

        async def post(client: httpx.AsyncClient, path: str, **data: str) -> httpx.Response:
            form = {"form": form_token(client.cookies[COOKIE])}
            return await client.post(f"/console/instructions{path}", data=form | data)

        async def made(client: httpx.AsyncClient, **data: str) -> str:
            answer = await post(client, "", **data)
            assert answer.status_code == 303, answer.text
            return answer.headers["location"].rsplit("/", 1)[1]

        own = await made(mine, name="Mine", text="Secret of alice.")
        shared = await made(mine, name="All", text="Said to all.", shared="on")
        child = await made(theirs, name="Child", text="Of bob.", parent=shared)
        page = (await theirs.get("/console/instructions")).text
        assert ("Said to all." in page, "Secret of" in page, ">shared by others<" in page) == (True, False, True)
        assert re.search(r"Said to all\.\s+Of bob\.", (await theirs.get(f"/console/instructions/{child}")).text)
        for path in (f"/{own}", f"/{own}/delete"):
            assert (await post(theirs, path, name="x", text="x")).status_code == 404
        for path in (f"/{shared}", f"/{shared}/delete"):
            assert (await post(theirs, path, name="x", text="x")).status_code == 404
        assert (await post(theirs, f"/{child}", name="Child", text="x", shared="on")).status_code == 403
        assert (await post(theirs, "", name="Child", text="x")).status_code == 422
        assert (await post(theirs, "", name="Other", text="x", parent=own)).status_code == 422
        assert "instructions_in_use" in (await post(mine, f"/{shared}/delete")).text
        assert (await post(mine, f"/{shared}", name="All", text="x")).status_code == 409
        assert (await post(mine, f"/{own}", name="Mine", text="x", parent=own)).status_code == 422
        deep = own
        for number in range(7):
            deep = await made(mine, name=f"Deep {number}", text="x", parent=deep)
        assert (await post(mine, "", name="Deeper", text="x", parent=deep)).status_code == 422
        assert (await post(mine, f"/{own}", name="Mine", text="x", parent=deep)).status_code == 422
        form = {"form": form_token(theirs.cookies[COOKIE]), "model": "chat", "message": "x", "instructions": own}
        assert (await theirs.post("/console/chat", data=form)).status_code == 404
        refused = await theirs.post("/console/chat", data=form | {"instructions": child, "system": "Too."})
        assert (refused.status_code, "not both" in refused.text) == (422, True)
        assert (await post(theirs, f"/{child}/delete")).status_code == 303
        assert (await post(mine, f"/{shared}/delete")).status_code == 303
