"""All tickets that match: found by metadata, exported whole, and run again, after their number was said."""

import csv
import io
import json

from playwright.async_api import expect

from tests.console.conftest import Visit
from tests.console.test_entrance import form_of, logged_in
from tests.keys.conftest import MakeKey, bearer
from tests.openai.response_kit import emit
from tests.service import Service

LONG = "=1+1 " + "long answer " * 40


async def test_what_matches_is_exported_and_run_again(visit: Visit) -> None:
    service = visit.service
    for name, answer in (("a", LONG), ("b", "other")):
        context = await service.context(emit(answer), metadata={"source": {"name": name}, "<b>": "<i>"})
        await service.settled(await service.send(context, "chat", client_reference=f"<b>{name}</b>"))
    page = await visit.go("/console/tickets")
    assert await page.locator("datalist#references option").all_text_contents() == ["<b>a</b>", "<b>b</b>"]
    await page.click("summary:has-text('More')")
    await page.fill("input[name=meta]", "source.name = a")
    await page.click("button:has-text('Search')")
    await expect(page.locator("#live_rows a")).to_have_count(1)
    await expect(page.locator("#live_count")).to_contain_text("1 ticket, of all that ended")
    await page.click("text=Export them")
    await expect(page.locator("main p").first).to_contain_text("1 ticket matches: meta = source.name = a. All of them")
    async with page.expect_download() as download:
        await page.click("text=JSON Lines")
    (line,) = (await (await download.value).path()).read_text().splitlines()
    assert (json.loads(line)["output"], json.loads(line)["metadata"]["source"]) == (LONG, {"name": "a"})
    async with page.expect_download() as download:
        await page.click("text=CSV")
    (row,) = csv.DictReader(io.StringIO((await (await download.value).path()).read_text(), newline=""))
    assert (row["output"], json.loads(row["metadata"])["<b>"], row["status"]) == (f"'{LONG}", "<i>", "completed")
    await page.click("text=Back")
    await page.click("text=Run them again")
    await page.click("button:has-text('Run them again')")
    await expect(page.locator("#live_rows .badge.is-completed")).to_have_count(2)
    answer = await service.client.get("/console/tickets?meta=nothing")
    assert (answer.status_code, "is a path and a value" in answer.text) == (422, True)


async def test_a_form_sent_twice_runs_them_once_and_strangers_get_nothing(guarded: Service, make_key: MakeKey) -> None:
    alice, bob = await make_key("alice"), await make_key("bob")
    guarded.client.headers.update(bearer(alice))
    await guarded.run(emit("secret of alice"), "chat")
    async with logged_in(guarded, alice) as client:
        text = (await client.get("/console/tickets/retry")).text
        data = {"form": form_of(text), "once": text.partition('name="once" value="')[2][:32]}
        for _ in range(2):
            assert (await client.post("/console/tickets/retry?state=completed", data=data)).status_code == 303
            # Those that it made match as well now.
            await guarded.settled((await guarded.client.get("/results/")).json()[0]["id"])
        assert len((await guarded.client.get("/results/")).json()) == 2
    async with logged_in(guarded, bob) as client:
        for kind in ("jsonl", "csv"):
            assert "secret" not in (await client.get(f"/console/tickets/export?kind={kind}")).text
