"""The pages in a real browser, as somebody uses them who reads nothing before."""

import asyncio
from uuid import uuid4

from playwright.async_api import Browser, expect

from app.console.render import markdown
from tests.console.conftest import Visit, visiting
from tests.openai.response_kit import emit
from tests.service import Service, eventually

HOSTILE = "<script>alert(1)</script><img src=x onerror=alert(2)> [a](javascript:alert(3)) **bold**"


async def test_the_answer_of_a_ticket_grows_and_a_chat_goes_on_from_it(visit: Visit) -> None:
    messages = [{"role": "user", "content": emit("one two three **four** five six seven eight nine ten", "slow=150")}]
    body = {"messages": messages, "entries": [{"model": "chat"}], "stream": True}
    made = (await visit.service.client.post("/comparisons/", json=body)).json()
    id_ = made["entries"][0]["result_id"]
    page = await visit.go(f"/console/tickets/{id_}")
    growing = page.locator("#answer [data-growing]")
    await expect(growing).to_contain_text("one")
    assert "ten" not in await growing.inner_text()
    await expect(page.locator("#live_head .badge")).to_have_text("running")
    await expect(page.locator("#live_head .badge")).to_have_text("completed")
    await expect(page.locator("#answer strong")).to_have_text("four")
    await expect(page.locator("#live_attempts tr")).to_contain_text("completed")
    await page.fill("textarea[name=message]", emit("And on."))
    await page.click("button:has-text('Send')")
    await page.wait_for_url("**/console/chat/*")
    await expect(page.locator("#leaf .by-assistant")).to_contain_text("And on.")
    # The chat so far, with the answer to it, and the next question.
    assert await page.locator(".said").count() == 4
    await expect(page.locator(".said").nth(1)).to_contain_text("one two three")
    await page.click("#leaf >> text=Ticket")
    await page.click("text=its chat")
    await page.wait_for_url("**/console/chat/*")


async def test_what_people_and_models_write_stays_text(visit: Visit) -> None:
    reference = f"<i>{uuid4().hex[:6]}</i>"
    context = await visit.service.context(HOSTILE + emit(HOSTILE), metadata={"<b>": HOSTILE})
    result = await visit.service.send(context, "chat", client_reference=reference)
    await visit.service.settled(result)
    for path in (f"/console/tickets/{result}", "/console/tickets?text=onerror", "/console/"):
        page = await visit.go(path)
        assert await page.locator("main script, main img, main [onerror], main a[href^=javascript]").count() == 0, path
    page = await visit.go(f"/console/tickets/{result}")
    await expect(page.locator("#answer strong")).to_have_text("bold")
    page = await visit.go("/console/tickets?text=%3Cscript%3E")
    assert await page.input_value("input[name=text]") == "<script>"


async def test_the_list_is_live_and_its_filters_combine_in_the_address(visit: Visit) -> None:
    page = await visit.go("/console/tickets")
    await expect(page.locator("#live_rows")).to_contain_text("No ticket matches")
    for number in range(3):
        await visit.service.settled(await visit.service.send(model="chat", prompt=emit(f"answer {number}")))
    await expect(page.locator("#live_rows a")).to_have_count(3)
    failed = await visit.service.send(model="chat", prompt="[[sim:error=broken on purpose]]", priority=3)
    await visit.service.settled(failed)
    await expect(page.locator("#live_rows a")).to_have_count(4)
    await page.fill("input[name=text]", "ANSWER 1")
    await page.select_option("select[name=state]", "completed")
    await page.click("button:has-text('Search')")
    await expect(page.locator("#live_rows a")).to_have_count(1)
    assert "state=completed" in page.url
    await expect(page.locator("#live_count")).to_contain_text("1 ticket with all these words")
    for query, found in (("state=failed", 1), ("text=100%25", 0), ("error=nothing", 0), (f"text={failed}", 0)):
        await visit.go(f"/console/tickets?{query}")
        await expect(page.locator("#live_rows a.nothing, #live_rows time")).to_have_count(found)


async def test_a_cancel_from_the_list_reaches_the_engine(visit: Visit) -> None:
    ids = [await visit.service.send(model="chat", prompt="[[sim:hang]]") for _ in range(3)]

    async def running() -> bool:
        return all([(await visit.service.result(id_))["phase"] == "running" for id_ in ids])

    await eventually(running, "all run")
    page = await visit.go("/console/tickets?model=chat")
    await page.click("text=Cancel what of them is not final")
    await expect(page.locator("main")).to_contain_text("3 tickets match: model = chat")
    # Not in the number that was said.
    later = await visit.service.send(model="chat", prompt="[[sim:hang]]")
    await page.click("button:has-text('Cancel them')")
    await expect(page.locator("main [role=status]")).to_have_text("3 tickets were cancelled.")
    await expect(page).to_have_url(f"{visit.base}/console/tickets?model=chat")
    await expect(page.locator("#live_rows .badge.is-cancelled")).to_have_count(3)
    for result in await asyncio.gather(*(visit.service.settled(id_) for id_ in ids)):
        assert result["error"]["code"] == "cancelled"
        assert result["cancellation"]["engine_stopped_at"] is not None
    assert (await visit.service.result(later))["status"] == "pending"
    # What was cancelled did not fail.
    for state, found in (("cancelled", 3), ("failed", 0)):
        await visit.go(f"/console/tickets?state={state}")
        await expect(page.locator("#live_count")).to_contain_text(f"{found} tickets")
        await expect(page.locator("#live_rows time")).to_have_count(found)
    await visit.go()
    await expect(page.locator("#live_counts")).to_contain_text("0 failed in the last hour")
    await expect(page.locator("#live_counts")).to_contain_text("3 cancelled in the last hour")
    await expect(page.locator("#live_errors")).to_have_text("None.")


async def test_a_ticket_is_cancelled_and_run_again(visit: Visit) -> None:
    page = await visit.go(f"/console/tickets/{await visit.ask('[[sim:hang]]')}")
    await page.click("button:has-text('Cancel')")
    await expect(page.locator("#live_head")).to_contain_text("cancelled")
    first = page.url
    await page.click("button:has-text('Run it again')")
    await page.wait_for_url(lambda url: url != first)
    await page.click("button:has-text('Cancel')")
    await expect(page.locator("#live_head")).to_contain_text("cancelled")


async def test_what_is_wrong_with_a_question_is_said_and_nothing_typed_is_lost(visit: Visit) -> None:
    page = await visit.go("/console/chat")
    await page.fill("textarea[name=message]", "Hello there")
    await page.click("summary")
    await page.fill("input[name=max_tokens]", "many")
    await page.click("button:has-text('Send')")
    await expect(page.locator("[role=alert]")).to_contain_text("max_tokens: 'many' is no whole number")
    assert await page.input_value("textarea[name=message]") == "Hello there"
    assert visit.faults.pop().startswith("Failed to load resource: the server responded with a status of 422")


async def test_the_overview_tells_what_waits_and_what_needs_a_look(api: Service, browser: Browser) -> None:
    async with visiting(browser, api) as visit:
        page = await visit.go()
        await expect(page.locator("#live_models")).to_contain_text("chat")
        await api.send(model="chat")
        await expect(page.locator("#live_counts li").first).to_contain_text("1 waiting")
        await page.click("#live_counts a >> nth=0")
        await expect(page.locator("#live_rows .badge")).to_have_text("queued")
        assert visit.faults == []


async def test_the_keyboard_alone_is_enough(visit: Visit) -> None:
    ids = [await visit.service.send(model="chat", prompt=emit(str(number))) for number in range(2)]
    await asyncio.gather(*(visit.service.settled(id_) for id_ in ids))
    page = await visit.go()
    await page.keyboard.press("g")
    await page.keyboard.press("t")
    await page.wait_for_url("**/console/tickets")
    await page.keyboard.press("/")
    await expect(page.locator("input[name=text]")).to_be_focused()
    await page.keyboard.press("Tab")
    await page.keyboard.press("?")
    await page.locator("main").focus()
    await page.keyboard.press("j")
    await page.keyboard.press("j")
    await page.keyboard.press("Enter")
    await page.wait_for_url(f"**/console/tickets/{ids[0]}")
    await page.locator("main").focus()
    await page.keyboard.press("?")
    await expect(page.locator("dialog#keys")).to_be_visible()
    await page.keyboard.press("Escape")
    await expect(page.locator("dialog#keys")).to_be_hidden()


async def test_times_are_those_of_the_readers_zone(service: Service, browser: Browser) -> None:
    await service.settled(await service.send(model="chat"))
    async with visiting(browser, service, timezone_id="Asia/Kolkata", locale="en-GB") as visit:
        page = await visit.go("/console/tickets")
        shown = page.locator("#live_rows time").first
        title = await shown.get_attribute("title")
        assert title is not None
        assert "GMT+5:30" in title
        assert "UTC" not in await shown.inner_text()


async def test_times_that_are_filled_in_are_those_of_the_readers_zone(service: Service, browser: Browser) -> None:
    async with visiting(browser, service, timezone_id="Asia/Kolkata", locale="en-GB") as visit:
        page = await visit.go("/console/tickets?after=2026-01-31T20:00&before=2026-02-01T02:00%2B02:00")
        since, until = page.get_by_label("Since"), page.get_by_label("Until")
        await expect(since).to_have_value("2026-02-01T01:30")
        await expect(until).to_have_value("2026-02-01T05:30")
        await since.fill("2026-02-01T02:45")
        await page.get_by_role("button", name="Search").click()
        await page.wait_for_url("**after=2026-01-31T21%3A15&**")
        assert "before=2026-02-01T00%3A00" in page.url
        await expect(since).to_have_value("2026-02-01T02:45")


def test_answers_that_would_take_long_to_make_are_shown_without_markdown() -> None:
    table = "|a|b|\n|-|-|\n" + "|x|y|\n" * 1000
    assert markdown(table).count("<td>") == 2000
    # A row of two characters has 2,000 cells here.
    wide = f"|{'a|' * 2000}\n|{'-|' * 2000}\n" + "|a\n" * 2000
    assert len(markdown(wide)) < 2 * len(wide)
    long = "**<b>**" * 10_000
    assert markdown(long) == f'<div class="text">{"**&lt;b&gt;**" * 10_000}</div>'
