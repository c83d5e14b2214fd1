"""Batches in a real browser: a file is dropped, checked, sent, watched, and what failed of it tried again."""

import csv
import io
import json
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from playwright.async_api import Browser, expect

from app.config import Settings
from app.console.entrance import COOKIE
from app.dispatch import batch_files
from app.openai.ids import uuid_of
from app.services.sessions import form_token
from tests.console.conftest import PATIENCE, Visit, visiting
from tests.console.test_entrance import form_of, logged_in
from tests.keys.conftest import MakeKey
from tests.openai.batch_kit import CHATS, line
from tests.openai.response_kit import emit
from tests.service import Service, eventually, running_api

HOSTILE = "<script>alert(1)</script>"
NEW = "/console/batches/new"


def chat(name: str, text: str, **body: Any) -> dict[str, Any]:
    return line(name, {"model": "chat", "messages": [{"role": "user", "content": text}], **body}, CHATS)


def jsonl(*lines: dict[str, Any]) -> bytes:
    return b"".join(json.dumps(each).encode() + b"\n" for each in lines)


def sent(name: str, content: bytes) -> dict[str, Any]:
    return {"file": (name, content, "application/octet-stream")}


async def test_a_dropped_file_is_checked_sent_watched_and_its_failures_tried_again(visit: Visit, rows: Any) -> None:
    page = await visit.go("/console/batches")
    await page.click("text=New batch")
    # Until a file is checked.
    await expect(page.locator("button:has-text('Send the batch')")).to_be_disabled()
    bad = jsonl(chat("a", "x"), {"custom_id": HOSTILE, "method": "POST", "url": CHATS}, chat("a", "y"))
    await page.evaluate(
        """(text) => {
            const data = new DataTransfer();
            data.items.add(new File([text], "requests.jsonl"));
            document.querySelector(".zone").dispatchEvent(new DragEvent("drop", {dataTransfer: data, bubbles: true}));
        }""",
        bad.decode(),
    )
    report = page.locator("#report")
    await expect(report).to_contain_text("2 problems: nothing was stored")
    await expect(report.locator("tbody tr").first).to_contain_text("body: is required")
    await expect(report.locator("tbody tr").nth(1)).to_contain_text("line 1 and again on line 3")
    assert await page.is_disabled("button:has-text('Send the batch')")
    assert await rows.fetchval("SELECT count(*) FROM files") == 0

    good = jsonl(
        chat("one", emit("first")),
        chat(HOSTILE, f"[[sim:error=broken {HOSTILE}]]"),
        chat("three", emit("one two three four five", "slow=100")),
    )
    await page.set_input_files("input[type=file]", {"name": f"{HOSTILE}.jsonl", "mimeType": "x/y", "buffer": good})
    await expect(report).to_contain_text("3 requests to /v1/chat/completions: chat 3.")
    assert await rows.fetchval("SELECT count(*) FROM files") == 0
    await page.click("button:has-text('Send the batch')")
    await page.wait_for_url(lambda url: "/new" not in url)
    head = page.locator("#live_head")
    await expect(head).to_contain_text("2 of 3 succeeded, 1 failed")
    await expect(head.locator(".badge")).to_have_text("completed, not all of it")
    await expect(page.locator("#live_errors tbody tr")).to_contain_text(f"broken {HOSTILE}")
    assert await page.locator("main script").count() == 0
    async with page.expect_download() as download:
        await page.click("text=Answers (.jsonl)")
    answers = (await (await download.value).path()).read_text().splitlines()
    assert [json.loads(each)["custom_id"] for each in answers] == ["one", "three"]

    await page.click("button:has-text('Retry 1 failed')")
    await expect(head).to_contain_text("0 of 1 succeeded, 1 failed")
    await expect(page.locator("#live_errors")).to_contain_text(HOSTILE)
    await page.click("text=another batch")
    await expect(head).to_contain_text("2 of 3 succeeded")
    await visit.go()
    await page.click(f"text=1 of 1 requests of batch {HOSTILE}.retry.jsonl failed.")
    await expect(head).to_contain_text("0 of 1 succeeded")
    await page.click("nav >> text=Batches")
    await expect(page.locator("#live_batches tr")).to_have_count(2)
    # Before its script has run, no page hears a key.
    await page.wait_for_load_state()
    await page.keyboard.press("j")
    await page.keyboard.press("Enter")
    await expect(head).to_contain_text("0 of 1 succeeded")


async def test_failures_are_told_by_their_reason_and_one_kind_of_them_is_run_again(
    visit: Visit, service: Service
) -> None:
    said = {2: "no room", 3: "no room", 7: "odd byte", 23: "no room"}
    lines = [chat(f"row-{n}", f"[[sim:error={said[n]}]]" if n in said else emit("done")) for n in range(1, 25)]
    lines[4] = chat("row-5", "word " * 6000)
    file = (
        await service.client.post("/v1/files", data={"purpose": "batch"}, files=sent("reviews.jsonl", jsonl(*lines)))
    ).json()
    body = {"input_file_id": file["id"], "endpoint": CHATS, "completion_window": "24h"}
    batch = (await service.client.post("/v1/batches", json=body)).json()
    first = f"/console/batches/{uuid_of('batch', batch['id'])}"
    page = await visit.go(first)
    head, errors = page.locator("#live_head"), page.locator("#live_errors")
    # What fails for no known reason is tried again, after a pause.
    await expect(head).to_contain_text("19 of 24 succeeded, 5 failed", timeout=3 * PATIENCE)
    await expect(page.locator("button:has-text('Retry only request_refused')")).to_be_visible()
    reasons = [" ".join((await row.inner_text()).split()) for row in await errors.locator("tbody tr").all()]
    assert [reason.split()[:2] for reason in reasons] == [
        ["3", "request_refused"],
        ["1", "prompt_too_long"],
        ["1", "request_refused"],
    ]
    assert [reason.partition(" line ")[2] for reason in reasons] == ["2, row-2", "5, row-5", "7, row-7"]
    assert ("no room" in reasons[0], "odd byte" in reasons[2]) == (True, True)
    async with page.expect_download() as download:
        await page.click("text=All as a table")
    assert (await download.value).suggested_filename == "reviews.csv"
    table = csv.DictReader(io.StringIO((await (await download.value).path()).read_text(), newline=""))
    assert [row["client_reference"] for row in table] == [f"row-{n}" for n in range(1, 25)]

    await errors.locator("text=prompt_too_long").first.click()
    await expect(page.locator("#live_count")).to_contain_text("1 ticket")
    await expect(page.locator("#live_rows tr")).to_contain_text("row-5")
    await page.go_back()
    await page.click("button:has-text('Retry only request_refused')")
    await expect(head).to_contain_text("0 of 4 succeeded, 4 failed", timeout=3 * PATIENCE)
    # One kind of failures needs no button of its own.
    await expect(page.locator("button:has-text('Retry')")).to_have_text("Retry the 4 failed")
    await page.click("text=another batch")
    await expect(head).to_contain_text("completed, 0 of 4 succeeded.")
    await expect(page.locator("button:has-text('Retry the 5 failed once more')")).to_be_visible()
    # Somebody saw to the first one.
    attention = (await visit.go()).locator("#live_attention")
    await expect(attention).to_contain_text("4 of 4 requests of batch reviews.retry.jsonl failed.")
    assert "reviews.jsonl" not in await attention.inner_text()
    form = {"form": form_of((await service.client.get(first)).text), "error": "nothing_such"}
    refused = await service.client.post(f"{first}/retry", data=form)
    assert (refused.status_code, "no line of it failed with nothing_such" in refused.text) == (409, True)


async def test_on_a_phone_nothing_of_the_form_stands_out(service: Service, browser: Browser) -> None:
    async with visiting(browser, service, viewport={"width": 390, "height": 800}) as visit:
        page = await visit.go(NEW)
        edges = """() => [...document.querySelectorAll("form.drop *")].filter(each => each.checkVisibility())
            .map(each => each.getBoundingClientRect().right)"""
        zone = await page.eval_on_selector(".zone", "zone => zone.getBoundingClientRect().right")
        assert max(await page.evaluate(edges)) <= zone


async def test_what_is_answered_so_far_can_be_downloaded(
    visit: Visit, service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch_files, "LEAST_LINES", 1)
    lines = jsonl(chat("hangs", "[[sim:hang]]"), chat("quick", emit("done")))
    file = (await service.client.post("/v1/files", data={"purpose": "batch"}, files=sent("a.jsonl", lines))).json()
    body = {"input_file_id": file["id"], "endpoint": CHATS, "completion_window": "24h"}
    batch = (await service.client.post("/v1/batches", json=body)).json()
    page = await visit.go(f"/console/batches/{uuid_of('batch', batch['id'])}")
    head = page.locator("#live_head")
    await expect(head).to_contain_text("Answers so far")
    assert "Errors" not in await head.inner_text()

    async def downloaded(button: str) -> list[str]:
        async with page.expect_download() as download:
            await page.click(f"text={button} (.jsonl)")
        texts = (await (await download.value).path()).read_text().splitlines()
        return [json.loads(each)["custom_id"] for each in texts]

    assert await downloaded("Answers so far") == ["quick"]
    missing = await service.client.get(f"{page.url}/files/errors")
    assert (missing.status_code, "or not yet" in missing.text) == (404, True)
    await page.click("button:has-text('Cancel')")
    await expect(head.locator(".badge")).to_have_text("cancelled")
    assert await downloaded("Answers") == ["quick"]
    table = await visit.context.request.get(visit.base + str(await page.get_attribute("a:has-text('.csv')", "href")))
    rows = csv.DictReader(io.StringIO(await table.text(), newline=""))
    assert {row["client_reference"]: row["output"] for row in rows} == {"quick": "done", "hangs": ""}
    assert await downloaded("Errors") == ["hangs"]


async def test_a_table_and_a_template_become_prompts_that_are_shown_first(visit: Visit, rows: Any) -> None:
    page = await visit.go(NEW)
    table = "word,to\n" + "".join(f'"{emit(f"word {number}")}",<i>French</i>\n' for number in range(4))
    await page.set_input_files(
        "input[type=file]", {"name": "words.csv", "mimeType": "text/csv", "buffer": table.encode()}
    )
    report = page.locator("#report")
    await expect(report).to_contain_text("the columns are {word}, {to}")
    await page.select_option("select[name=model]", "chat")
    await page.fill("textarea[name=template]", "To {to}: {wrd}")
    await page.locator("textarea[name=template]").blur()
    await expect(report).to_contain_text("{wrd} is no column")
    await page.fill("textarea[name=template]", "To {to}: {word}")
    await page.locator("textarea[name=template]").blur()
    await expect(report.locator("article")).to_have_count(3)
    await expect(report.locator("article").first).to_contain_text("To <i>French</i>: ")
    assert await rows.fetchval("SELECT count(*) FROM files") == 0
    await page.click("button:has-text('Send the batch')")
    await expect(page.locator("#live_head")).to_contain_text("4 of 4 succeeded")
    await expect(page.locator("#live_head")).to_contain_text("words.jsonl")
    await page.click("text=Its tickets")
    await expect(page.locator("#live_rows")).to_contain_text("word 3")


async def test_a_plain_form_does_it_too(make_settings: Callable[..., Settings], rows: Any) -> None:
    async with running_api(make_settings(max_file_bytes=2000)) as api:
        client = api.client
        data = {"form": form_of((await client.get(NEW)).text), "model": "chat", "template": "Say {a}"}

        async def counts() -> list[int]:
            return [await rows.fetchval(f"SELECT count(*) FROM {name}") for name in ("files", "batches")]

        for path, files, status, said in (
            ("", {}, 422, "choose a file"),
            ("", sent("", b""), 422, "choose a file"),
            ("", sent("x.jsonl", b""), 422, "is empty"),
            ("", sent("x.jsonl", b"\n \n"), 422, "no lines"),
            ("", sent("x.jsonl", b"\xff\xfe\x00"), 422, "is not JSON"),
            ("", sent("x.jsonl", jsonl(chat("a", "x", model="nothing"))), 422, "model_not_found"),
            ("", sent("x.XLSX", b"PK"), 422, "is a workbook"),
            ("", sent("x.csv", b"a\n1,2\n"), 422, "has 2 cells"),
            ("", sent("x.csv", b"b\n1\n"), 422, "{a} is no column"),
            ("", sent("x.jsonl", b"x" * 3000), 413, "larger than 2,000 bytes"),
            ("", sent("x.jsonl", b"x" * 300_000), 413, "MAX_FILE_BYTES"),
            ("/check", sent("x.jsonl", b"{"), 200, "is not JSON"),
            ("/check", sent("x.csv", b"a\n1\n"), 200, "Nothing is wrong"),
        ):
            answer = await client.post(f"/console/batches{path}", data=data, files=files)
            assert (answer.status_code, said in answer.text) == (status, True), (path, said, answer.text)
        assert await counts() == [0, 0]
        answer = await client.post("/console/batches", data=data, files=sent("x.csv", b"a\n1\n2\n"))
        assert (answer.status_code, await counts()) == (303, [1, 1])
        page = await client.get(answer.headers["location"])
        assert "x.jsonl" in page.text

        async def begun() -> bool:
            return "0</b> of 2 succeeded" in (await client.get(answer.headers["location"])).text

        # Nothing runs it here: it is cancelled as a whole.
        await eventually(begun, "the batch is loaded")
        assert "None of them runs yet" in (await client.get(answer.headers["location"])).text
        form = {"form": data["form"]}
        assert (await client.post(f"{answer.headers['location']}/retry", data=form)).status_code == 409
        assert (await client.post(f"{answer.headers['location']}/cancel", data=form)).status_code == 303
        stopped = (await client.get(answer.headers["location"])).text
        assert ("cancelling" in stopped, "None of them runs yet" in stopped) == (True, False)
        missing = await client.get(f"{answer.headers['location']}/files/output")
        assert (missing.status_code, "has no file of this kind" in missing.text) == (404, True)


async def test_batches_are_their_owners_and_a_key_that_reads_gets_no_buttons(
    guarded: Service, make_key: MakeKey
) -> None:
    alice, bob = await make_key("alice"), await make_key("bob")
    reader = await make_key("reader", owner="alice", scopes=("read",))
    async with logged_in(guarded, alice) as client:
        content = jsonl(chat("a", emit("secret of alice")), chat("b", "[[sim:error=secret]]"))
        answer = await client.post("/console/batches", data=own_form(client), files=sent("secret.jsonl", content))
        place = answer.headers["location"]

        async def ended() -> bool:
            return "Retry 1 failed" in (await client.get(place)).text

        await eventually(ended, "the batch ends")
        assert "secret of alice" in (await client.get(f"{place}/files/output")).text
    async with logged_in(guarded, bob) as client:
        assert "secret" not in (await client.get("/console/batches")).text
        for path in (place, f"{place}/files/input", f"{place}/files/output", f"{place}/files/errors"):
            assert (await client.get(path)).status_code == 404, path
        for what in ("cancel", "retry"):
            assert (await client.post(f"{place}/{what}", data=own_form(client))).status_code == 404, what
    async with logged_in(guarded, reader) as client:
        for path in ("/console/batches", place):
            page = await client.get(path)
            assert "secret.jsonl" in page.text
            assert not {"New batch", "Retry", "<button class"} & set(_shown(page.text)), path


def own_form(client: httpx.AsyncClient) -> dict[str, str]:
    return {"form": form_token(client.cookies[COOKIE])}


def _shown(text: str) -> list[str]:
    main = text.partition("<main")[2].partition("</main>")[0]
    return [word for word in ("New batch", "Retry", "<button class", "<form") if word in main]
