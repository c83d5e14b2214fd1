"""Who gets to see the pages, and that nothing changes but by a form made for the browser that sends it."""

import re
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any
from uuid import uuid4

import httpx
import pytest
from fastapi.routing import iter_route_contexts
from playwright.async_api import Browser, expect

from app.config import Settings
from app.console.entrance import COOKIE, PageRoute
from app.console.navigation import ENTRIES
from app.main import create_app
from app.services.callers import Scope
from app.services.sessions import MOST_GUESSES, form_token
from tests.console.conftest import Visit, visiting
from tests.keys.conftest import MakeKey, bearer
from tests.openai.response_kit import emit
from tests.service import Service

HOSTILE = "<script>alert(1)</script>"
READS, SUBMITS, ADMINS, OPEN = Scope.READ, Scope.SUBMIT, Scope.ADMIN, None
PAGES: dict[tuple[str, str], Scope | None] = {
    ("GET", "/console"): READS,
    ("GET", "/console/"): READS,
    ("GET", "/console/tickets"): READS,
    ("GET", "/console/tickets/cancel"): SUBMITS,
    ("POST", "/console/tickets/cancel"): SUBMITS,
    ("GET", "/console/tickets/export"): READS,
    ("GET", "/console/tickets/retry"): SUBMITS,
    ("POST", "/console/tickets/retry"): SUBMITS,
    ("GET", "/console/tickets/{result_id}"): READS,
    ("POST", "/console/tickets/{result_id}/cancel"): SUBMITS,
    ("POST", "/console/tickets/{result_id}/retry"): SUBMITS,
    ("GET", "/console/tickets/{result_id}/change"): SUBMITS,
    ("POST", "/console/tickets/{result_id}/change"): SUBMITS,
    ("GET", "/console/chat"): READS,
    ("POST", "/console/chat"): SUBMITS,
    ("GET", "/console/chat/similar/{result_id}"): READS,
    ("POST", "/console/chat/meaning"): SUBMITS,
    ("GET", "/console/chat/{chat_id}"): READS,
    ("POST", "/console/chat/{chat_id}"): SUBMITS,
    ("POST", "/console/chat/{chat_id}/again"): SUBMITS,
    ("POST", "/console/chat/{chat_id}/stop"): SUBMITS,
    ("POST", "/console/chat/{chat_id}/rate"): SUBMITS,
    ("POST", "/console/chat/{chat_id}/rename"): SUBMITS,
    ("POST", "/console/chat/{chat_id}/delete"): SUBMITS,
    ("GET", "/console/instructions"): READS,
    ("POST", "/console/instructions"): SUBMITS,
    ("GET", "/console/instructions/{instructions_id}"): READS,
    ("POST", "/console/instructions/{instructions_id}"): SUBMITS,
    ("POST", "/console/instructions/{instructions_id}/delete"): SUBMITS,
    ("GET", "/console/compare"): READS,
    ("POST", "/console/compare"): SUBMITS,
    ("GET", "/console/compare/picks"): READS,
    ("GET", "/console/compare/{comparison_id}"): READS,
    ("POST", "/console/compare/{comparison_id}/pick"): SUBMITS,
    ("POST", "/console/compare/{comparison_id}/cancel"): SUBMITS,
    ("GET", "/console/batches"): READS,
    ("POST", "/console/batches"): SUBMITS,
    ("GET", "/console/batches/new"): SUBMITS,
    ("POST", "/console/batches/check"): SUBMITS,
    ("GET", "/console/batches/{batch_id}"): READS,
    ("POST", "/console/batches/{batch_id}/cancel"): SUBMITS,
    ("POST", "/console/batches/{batch_id}/retry"): SUBMITS,
    ("GET", "/console/batches/{batch_id}/files/{which}"): READS,
    ("GET", "/console/batches/{batch_id}/table.csv"): READS,
    ("GET", "/console/keys"): READS,
    ("POST", "/console/keys"): ADMINS,
    ("POST", "/console/keys/{key_id}/revoke"): ADMINS,
    ("GET", "/console/usage"): READS,
    ("GET", "/console/usage.csv"): READS,
    ("GET", "/console/models"): READS,
    ("GET", "/console/models/{model_name:path}"): READS,
    ("GET", "/console/servers"): ADMINS,
    ("POST", "/console/servers"): ADMINS,
    ("GET", "/console/servers/new"): ADMINS,
    ("GET", "/console/servers/{server_id}"): ADMINS,
    ("POST", "/console/servers/{server_id}/wanted"): ADMINS,
    ("POST", "/console/servers/{server_id}/remove"): ADMINS,
    ("POST", "/console/servers/{server_id}/models"): ADMINS,
    ("GET", "/console/hosts"): ADMINS,
    ("GET", "/console/hosts/{host_id}"): ADMINS,
    ("POST", "/console/hosts/{host_id}/drain"): ADMINS,
    ("POST", "/console/hosts/{host_id}/destroy"): ADMINS,
    ("POST", "/console/hosts/{host_id}/lock"): ADMINS,
    ("POST", "/console/hosts/{host_id}/unlock"): ADMINS,
    ("GET", "/console/webhooks"): READS,
    ("POST", "/console/webhooks/{delivery_id}/redeliver"): SUBMITS,
    ("GET", "/console/audit"): ADMINS,
    ("GET", "/console/logs"): ADMINS,
    ("GET", "/console/settings"): ADMINS,
    ("POST", "/console/settings/{setting}"): ADMINS,
    ("POST", "/console/settings/{setting}/reset"): ADMINS,
    ("GET", "/console/login"): OPEN,
    ("POST", "/console/login"): OPEN,
    ("POST", "/console/logout"): READS,
    ("GET", "/console/static/{name}"): OPEN,
    ("GET", "/console/{path:path}"): READS,
}


@asynccontextmanager
async def logged_in(service: Service, key: str) -> AsyncIterator[httpx.AsyncClient]:
    """A client with the cookie of a session."""
    async with httpx.AsyncClient(base_url=service.client.base_url, trust_env=False, timeout=60) as client:
        page = await client.get("/console/login")
        answer = await client.post("/console/login", data={"key": key, "form": form_of(page.text)})
        assert answer.status_code == 303, answer.text
        yield client


def form_of(html: str) -> str:
    found = re.search(r'name="form" value="(\w+)"', html)
    assert found is not None
    return found.group(1)


def concrete(path: str) -> str:
    for name, value in (
        ("name", "console.css"),
        ("path:path", "x/y"),
        ("which", "output"),
        ("model_name:path", "a"),
        ("setting", "LOG_LEVEL"),
    ):
        path = path.replace(f"{{{name}}}", value)
    return re.sub(r"\{\w+_id\}", lambda _: str(uuid4()), path)


def places() -> Iterator[tuple[str, str, Scope | None]]:
    for (method, path), scope in PAGES.items():
        yield method, concrete(path), scope


def test_every_page_is_in_the_table_of_this_test() -> None:
    known = {
        (method, each.path or "")
        for each in iter_route_contexts(create_app(Settings()).routes)
        if isinstance(each.original_route, PageRoute)
        for method in each.methods or ()
    }
    assert {each for each in known if each[0] != "HEAD"} == set(PAGES)


def test_the_head_leads_to_pages_each_by_a_key_of_its_own() -> None:
    for entry in ENTRIES:
        assert PAGES["GET", f"/console{entry.path}"] is entry.scope
    assert len({entry.key for entry in ENTRIES}) == len(ENTRIES)


async def test_nobody_sees_a_page_without_a_log_in(guarded: Service, make_key: MakeKey) -> None:
    key = await make_key(scopes=tuple(Scope))
    for headers in ({}, bearer(key), {"Cookie": f"{COOKIE}=guessed"}, {"Cookie": f"{COOKIE}={key}"}):
        for method, path, scope in places():
            if scope is OPEN:
                continue
            answer = await guarded.client.request(method, path, headers=headers)
            assert answer.status_code == 303, (method, path, answer.text)
            assert answer.headers["location"].startswith("/console/login?to=%2Fconsole"), path
    # A stream is not led anywhere.
    answer = await guarded.client.get("/console/", headers={"Accept": "text/event-stream"})
    assert answer.status_code == 401


async def test_a_key_gives_the_rights_that_it_has_and_forms_only_their_own_browser(
    guarded: Service, make_key: MakeKey, rows: Any
) -> None:
    reading, writing = await make_key("reader", scopes=(READS,)), await make_key("writer", scopes=tuple(Scope))
    async with logged_in(guarded, reading) as reader, logged_in(guarded, writing) as writer:
        token = writer.cookies[COOKIE]
        for method, path, scope in places():
            if path == "/console/logout" or scope is OPEN:
                continue
            form = form_token(reader.cookies[COOKIE])
            answer = await reader.request(method, path, data={"form": form} if method == "POST" else None)
            assert (answer.status_code == 403) == (scope is not READS), (method, path, answer.text)
            if method == "POST":
                for data in ({}, {"form": form}, {"form": token}, {"form": ""}):
                    answer = await writer.post(path, data=data)
                    assert (answer.status_code, "foreign_form" in answer.text) == (403, True), (path, data)
                json = await writer.post(path, json={"form": form_token(token)})
                assert json.status_code in (403, 415, 422), (path, json.text)
        page = await reader.get("/console/chat")
        assert (page.status_code, "textarea" in page.text) == (200, False)
    assert await rows.fetchval("SELECT count(*) FROM results") == 0


async def test_two_owners_see_only_their_own(guarded: Service, make_key: MakeKey) -> None:
    alice, bob = await make_key("alice"), await make_key("bob")
    guarded.client.headers.update(bearer(alice))
    result = await guarded.run(emit("the secret of alice"), "chat")
    async with logged_in(guarded, bob) as client:
        for path in ("/console/", "/console/tickets", "/console/tickets?text=secret"):
            page = await client.get(path)
            assert page.status_code == 200
            assert "secret of" not in page.text
        assert "<b>0</b> ticket" in (await client.get("/console/tickets")).text
        for method, path in (("GET", ""), ("POST", "/cancel"), ("POST", "/retry")):
            data = {"form": form_token(client.cookies[COOKIE])} if method == "POST" else None
            answer = await client.request(method, f"/console/tickets/{result['id']}{path}", data=data)
            assert answer.status_code == 404, path
        follows = {"form": form_token(client.cookies[COOKIE]), "model": "chat", "message": "x", "after": result["id"]}
        assert (await client.post("/console/chat", data=follows)).status_code == 404
    async with logged_in(guarded, alice) as client:
        assert "secret of alice" in (await client.get("/console/tickets")).text


async def test_a_session_ends_with_its_key_and_with_the_log_out(guarded: Service, make_key: MakeKey, rows: Any) -> None:
    key = await make_key()
    async with logged_in(guarded, key) as client, logged_in(guarded, key) as other:
        assert (await client.get("/console/")).status_code == 200
        assert key not in repr(await rows.fetch("SELECT * FROM console_sessions"))
        token = client.cookies[COOKIE]
        assert token not in repr(await rows.fetch("SELECT * FROM console_sessions"))
        out = await client.post("/console/logout", data={"form": form_token(token)})
        assert out.status_code == 303
        client.cookies.set(COOKIE, token)
        assert (await client.get("/console/")).status_code == 303
        assert (await other.get("/console/")).status_code == 200
        await rows.execute("UPDATE console_sessions SET expires_at = now() - interval '1 second'")
        assert (await other.get("/console/")).status_code == 303
    async with logged_in(guarded, key) as client:
        id_ = await rows.fetchval("SELECT id FROM api_keys")
        answer = await guarded.client.delete(f"/keys/{id_}", headers=bearer(await make_key("a", scopes=tuple(Scope))))
        assert answer.status_code < 300, answer.text
        assert (await client.get("/console/")).status_code == 303


async def test_guesses_are_counted_and_the_right_key_waits_too(guarded: Service, make_key: MakeKey) -> None:
    key = await make_key()
    async with httpx.AsyncClient(base_url=guarded.client.base_url, trust_env=False) as client:
        form = form_of((await client.get("/console/login")).text)
        for _ in range(MOST_GUESSES):
            answer = await client.post("/console/login", data={"key": "sk-" + "0" * 43, "form": form})
            assert (answer.status_code, "not known here" in answer.text) == (401, True)
        answer = await client.post("/console/login", data={"key": key, "form": form})
        assert (answer.status_code, answer.headers["retry-after"].isdigit()) == (429, True)
        assert "try again in" in answer.text


@pytest.mark.parametrize("to", ["https://elsewhere.example/", "//elsewhere.example/", "/console//x", "/docs", "\\\\x"])
async def test_a_log_in_leads_to_the_console_alone(guarded: Service, make_key: MakeKey, to: str) -> None:
    async with httpx.AsyncClient(base_url=guarded.client.base_url, trust_env=False) as client:
        form = form_of((await client.get("/console/login", params={"to": to})).text)
        answer = await client.post("/console/login", data={"key": await make_key(), "form": form, "to": to})
        assert (answer.status_code, answer.headers["location"]) == (303, "/console/")


async def test_every_page_forbids_what_it_does_not_need(service: Service) -> None:
    for path in (
        "/console/",
        "/console/tickets",
        "/console/chat",
        "/console/instructions",
        "/console/compare",
        "/console/compare/picks",
        "/console/keys",
        "/console/usage",
        "/console/webhooks",
        "/console/audit",
        "/console/logs",
        "/console/login",
        "/console/nowhere",
        "/console/static/x",
    ):
        answer = await service.client.get(path)
        policy = dict(each.split(maxsplit=1) for each in answer.headers["content-security-policy"].split("; "))
        assert policy["default-src"] == "'self'", path
        assert policy["frame-ancestors"] == "'none'", path
        assert "unsafe" not in answer.headers["content-security-policy"], path
        assert not re.search(r"<script(?![^>]*\bsrc=)|\son\w+=|\sstyle=|https?://", answer.text), path
        assert len(answer.content) < 100_000
    assert (await service.client.get("/console/nowhere")).status_code == 404
    cookie = (await service.client.get("/console/login")).headers.get("set-cookie", "HttpOnly; SameSite=strict")
    assert "HttpOnly" in cookie
    assert "SameSite=strict" in cookie


async def test_logging_in_with_a_browser_and_a_key_that_only_reads(
    guarded: Service, make_key: MakeKey, browser: Browser
) -> None:
    guarded.client.headers.update(bearer(await make_key("writer", owner="team")))
    result = await guarded.run(emit("Something to read."), "chat")
    key = await make_key("reader", owner="team", scopes=(READS,))
    async with visiting(browser, guarded) as visit:
        page = await visit.go(f"/console/tickets/{result['id']}")
        await page.fill("input[name=key]", "sk-wrong")
        await page.click("main >> button:has-text('Log in')")
        await expect(page.locator("[role=alert]")).to_contain_text("not known here")
        await page.fill("input[name=key]", key)
        await page.click("main >> button:has-text('Log in')")
        await page.wait_for_url(f"**/console/tickets/{result['id']}")
        await expect(page.locator("#answer")).to_contain_text("Something to read.")
        assert await page.locator("main form").count() == 0
        await page.click("button:has-text('Log out')")
        await page.wait_for_url("**/console/login")
        await page.go_back()
        await expect(page.locator("input[name=key]")).to_be_visible()


async def test_a_link_from_elsewhere_finds_the_session(guarded: Service, make_key: MakeKey) -> None:
    """The browser leaves the cookie out of the first request, and brings it to the second, which our page asks for."""
    answer = await guarded.client.get("/console/tickets", headers={"Sec-Fetch-Site": "cross-site"})
    assert (answer.status_code, 'http-equiv="refresh"' in answer.text) == (200, True)
    answer = await guarded.client.get("/console/tickets", headers={"Sec-Fetch-Site": "same-origin"})
    assert answer.status_code == 303


async def test_a_session_that_ended_says_so_and_leads_back(guarded: Service) -> None:
    client = guarded.client
    headers = {"Referer": f"{client.base_url}/console/chat?at=1", "Sec-Fetch-Site": "same-origin"}
    answer = await client.post("/console/chat", headers=headers)
    assert answer.headers["location"] == "/console/login?to=%2Fconsole%2Fchat%3Fat%3D1&ended=yes"
    assert "Your session has ended" in (await client.get(answer.headers["location"])).text
    # Without HTTPS a browser says less.
    del headers["Sec-Fetch-Site"]
    assert (await client.post("/console/chat", headers=headers)).headers["location"].endswith("at%3D1&ended=yes")
    for others in ({}, {"Referer": "https://example.org/console/", "Sec-Fetch-Site": "cross-site"}):
        answer = await client.get("/console/tickets", headers=others)
        assert answer.headers["location"] == "/console/login?to=%2Fconsole%2Ftickets"
    assert "Your session has ended" not in (await client.get(answer.headers["location"])).text


async def test_what_was_typed_stands_in_its_form_again_after_the_session_ended(
    guarded: Service, make_key: MakeKey, browser: Browser, rows: Any
) -> None:
    key = await make_key()
    async with visiting(browser, guarded) as visit:
        page = await visit.go("/console/login?to=/console/chat")
        message, temperature = page.locator("textarea[name=message]"), page.locator("input[name=temperature]")
        log_in = page.locator("main >> button:has-text('Log in')")
        await page.fill("input[name=key]", key)
        await log_in.click()
        await message.fill(f"Long in the making. {HOSTILE}")
        await page.click("summary:has-text('Instructions')")
        await temperature.fill("0.25")
        await rows.execute("DELETE FROM console_sessions")
        await page.click("button:has-text('Send')")
        await expect(page.locator("[role=alert]")).to_contain_text("what you typed then stands in its form again")
        await page.fill("input[name=key]", "sk-wrong")
        await log_in.click()
        await expect(page.locator("[role=alert]")).to_contain_text("not known here")
        await page.fill("input[name=key]", key)
        await log_in.click()
        await expect(message).to_have_value(f"Long in the making. {HOSTILE}")
        await expect(temperature).to_have_value("0.25")
        # Once.
        await page.reload()
        await expect(message).to_have_value("")


async def test_a_page_that_refuses_a_form_stands_at_the_address_of_the_form(
    guarded: Service, make_key: MakeKey, browser: Browser, rows: Any
) -> None:
    key = await make_key(scopes=tuple(Scope))
    settings = "/console/settings?text=share"
    async with visiting(browser, guarded) as visit:
        page = await visit.go("/console/login?to=/console/settings")
        await page.fill("input[name=key]", key)
        await page.click("main >> button:has-text('Log in')")
        await page.wait_for_url("**/console/settings")
        await visit.go(settings)
        row = page.locator("tr#INTERACTIVE_SHARE")
        await row.locator("input[name=value]").fill("half")
        await row.locator("button:has-text('Change')").click()
        await expect(page.locator("main [role=alert]")).to_contain_text("INTERACTIVE_SHARE stays as it was")
        assert page.url == visit.base + settings + "#INTERACTIVE_SHARE"
        await rows.execute("DELETE FROM console_sessions")
        await row.locator("button:has-text('Change')").click()
        await page.fill("input[name=key]", key)
        await page.click("main >> button:has-text('Log in')")
        await expect(page.locator("h1")).to_have_text("Settings")
        await page.reload()
        await expect(page.locator("h1")).to_have_text("Settings")


async def test_a_form_that_is_sent_already_is_not_sent_twice(visit: Visit) -> None:
    page = await visit.go("/console/instructions")
    await page.fill("form.ask input[name=name]", "Brief")
    await page.fill("form.ask textarea", "Be brief.")
    twice = """form => {
        const prevented = [];
        addEventListener("submit", event => { prevented.push(event.defaultPrevented); event.preventDefault(); });
        form.requestSubmit();
        form.requestSubmit();
        return prevented;
    }"""
    assert await page.eval_on_selector("form.ask", twice) == [False, True]
