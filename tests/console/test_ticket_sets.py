"""All tickets that match: found by metadata, exported whole, and run again, after their number was said."""

import csv
import io
import json
import re
from collections.abc import Callable
from typing import Any
from uuid import UUID

import pytest
from playwright.async_api import expect

from app.config import Settings
from app.queue import words
from app.services import ticket_words
from tests.console.conftest import Visit
from tests.console.test_entrance import form_of, logged_in
from tests.keys.conftest import MakeKey, bearer
from tests.openai.response_kit import emit
from tests.service import Service, eventually, running_api

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
    await expect(page.locator("#live_count")).to_contain_text("1 ticket")
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
    await expect(page.locator("main [role=status]")).to_contain_text("1 ticket was made")
    await expect(page.locator("#live_rows .badge.is-completed")).to_have_count(2)
    # What was typed stays, with what is wrong about it.
    answer = await service.client.get("/console/tickets?meta=nothing&text=heron")
    assert (answer.status_code, "is a path and a value" in answer.text) == (422, True)
    assert 'value="nothing"' in answer.text
    assert 'value="heron"' in answer.text
    for path in ("/export", "/cancel", "/retry"):
        assert (await service.client.get(f"/console/tickets{path}?meta=nothing")).status_code == 422
    assert (
        await service.client.get("/console/tickets?batch=batch_01a228f9e52e73e8908499a021d8a3fa")
    ).status_code == 200


async def test_numbers_are_not_said_to_be_exact_before_all_was_looked_at(
    service: Service, rows: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A search that may take its time looks at all.
    monkeypatch.setattr(ticket_words, "MAX_SECONDS", 30.0)
    for _ in range(3):
        await service.settled(await service.send(model="chat", prompt="Seen."))
    # As after a minute in which dispatchers indexed nothing.
    await rows.execute("UPDATE ticket_words_progress SET completed_at = '-infinity'")
    await rows.execute("DELETE FROM ticket_words")

    async def said(query: str) -> str:
        text = (await service.client.get(f"/console/tickets?{query}")).text
        return text.partition('id="live_count">')[2].partition("<b>")[0].strip()

    assert await said("text=seen") == ""
    small = words.REST.replace(f"LIMIT {words.UNREAD}", "LIMIT 2").replace(f"< {words.UNREAD}", "< 2")
    monkeypatch.setattr(words, "REST", small)
    assert (await said("text=seen"), await said("state=running")) == ("at least", "")


async def test_what_a_limit_stops_can_be_gone_on_with(
    make_settings: Callable[..., Settings], make_key: MakeKey, rows: Any
) -> None:
    key = await make_key("alice", pending_limit=40)
    async with running_api(make_settings(auth_required=True)) as service:
        service.client.headers.update(bearer(key))
        id_ = await service.send(model="chat")
        await rows.execute(
            "INSERT INTO results (id, context_id, model, parameters, owner_id, rank, created_at, available_at,"
            " started_at, completed_at, status, output, finish_reason, prompt_tokens, completion_tokens, attempt_count,"
            " dispatcher, server) SELECT uuidv7(-n * interval '1 s'), context_id, model, parameters, owner_id, rank,"
            " now(), now(), now(), now(), 'completed', 'x', 'stop', 1, 1, 1, 'd', 's' FROM results,"
            " generate_series(1, 60) n WHERE id = $1",
            UUID(id_),
        )
        async with logged_in(service, key) as client:
            text = (await client.get("/console/tickets/retry?state=completed")).text
            data = {"form": form_of(text), "once": text.partition('name="once" value="')[2][:32]}
            stopped = await client.post("/console/tickets/retry?state=completed", data=data)
            assert stopped.status_code == 429
            assert "32 of them were run again before this: This key may have 40 tickets pending" in stopped.text
            await rows.execute("UPDATE api_keys SET pending_limit = 100")

            async def all_made() -> bool:
                answer = await client.post("/console/tickets/retry?state=completed", data=data)
                return answer.headers.get("location", "").endswith("?again=60")

            await eventually(all_made, "the limit is read anew")
        assert await rows.fetchval("SELECT count(DISTINCT retry_of) FROM results") == 60
        assert await rows.fetchval("SELECT count(*) FROM results WHERE retry_of IS NOT NULL") == 60


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


async def test_tickets_are_found_by_the_key_they_were_sent_with(guarded: Service, make_key: MakeKey) -> None:
    nightly, product = await make_key("nightly", owner="team"), await make_key("product", owner="team")
    await make_key("of a stranger")
    for key, answer in ((nightly, "by night"), (product, "by day")):
        guarded.client.headers.update(bearer(key))
        await guarded.run(emit(answer), "chat")
    async with logged_in(guarded, product) as client:
        page = (await client.get("/console/tickets")).text
        offered = {name: id_ for id_, name in re.findall(r'<option value="([\w-]+)">(\w+) …', page)}
        assert set(offered) == {"nightly", "product"}
        for name, text, other in (("nightly", "by night", "by day"), ("product", "by day", "by night")):
            found = (await client.get("/console/tickets", params={"key": offered[name]})).text
            assert (text in found, other in found) == (True, False)
            assert f'<option value="{offered[name]}" selected>{name} …' in found
        refused = await client.get("/console/tickets", params={"key": "nightly"})
        assert (refused.status_code, "is the id of a key" in refused.text) == (422, True)
