"""The pages of chats with what is found by meaning, in a browser."""

from typing import Any

from playwright.async_api import expect

from tests.console.conftest import Visit
from tests.meaning.conftest import vectors
from tests.meaning.test_questions import PASTA, RICE, SHARES


async def test_similar_questions_stand_beside_the_answer_and_the_search_says_how_it_found(
    visit: Visit, rows: Any
) -> None:
    await visit.ask(f"<script>{RICE}</script>")
    first = visit.page.url.split("?")[0]
    await visit.ask(SHARES)
    await vectors(rows, 2)
    # Its own vector is made while the page is there.
    await visit.ask(PASTA)
    page = visit.page
    await expect(page.locator("aside h2")).to_have_text("Similar earlier questions")
    await expect(page.locator("aside section li")).to_have_count(1)
    await expect(page.locator("aside section a")).to_contain_text(RICE)
    await page.click("aside section a")
    await page.wait_for_url(f"{first}?at=*")
    await expect(page.locator(".turn .by-user")).to_contain_text(RICE)
    await page.click("text=New chat")
    await page.fill("input[name=text]", "rice")
    await page.click("button:has-text('Search')")
    await expect(page.locator("tbody >> nth=0")).to_contain_text("words")
    by_meaning = page.locator("tbody[data-fill]")
    await expect(by_meaning.locator("tr")).to_have_count(2)
    await expect(by_meaning).to_contain_text(PASTA)
    await expect(by_meaning.locator(".badge >> nth=0")).to_have_text("meaning")
    await page.fill("input[name=text]", "minutes needed to cook rice")
    await page.click("button:has-text('Search')")
    await expect(page.locator("tbody >> nth=0")).to_contain_text("No chat has these words.")
    await expect(by_meaning).to_contain_text(RICE)
    await expect(by_meaning).not_to_contain_text(SHARES)
    assert await page.locator("main script, main img, main [onerror]").count() == 0
