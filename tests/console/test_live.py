"""What keeps a page current: made once for all who look at it, and told to each as its own."""

import asyncio
from collections.abc import Callable
from contextlib import AsyncExitStack, aclosing, asynccontextmanager, suppress
from typing import Any

import httpx
import pytest
from playwright.async_api import Browser, expect
from pydantic_core import from_json

from app.config import Settings
from app.console.entrance import COOKIE
from app.services.callers import Scope
from app.services.pulse import MOST_AT_ONCE, Pulse
from app.services.sessions import form_token
from tests.console.conftest import visiting
from tests.console.test_entrance import logged_in
from tests.keys.conftest import MakeKey
from tests.postgres_server import RunningPostgres, refusing_connections
from tests.service import Service, eventually, running_api


class Making:
    """Counts the versions of a page, which can be held up."""

    def __init__(self) -> None:
        self.begun = 0
        self.going_on = asyncio.Event()
        self.going_on.set()

    async def __call__(self) -> int:
        self.begun += 1
        number = self.begun
        await self.going_on.wait()
        return number


async def test_a_page_is_made_once_for_all_who_look_at_it() -> None:
    pulse, making = Pulse(), Making()
    async with aclosing(pulse.versions("page", making)) as one, aclosing(pulse.versions("page", making)) as other:
        first, second = await asyncio.gather(anext(one), anext(other))
        assert (first, second, making.begun) == (1, 1, 1)
        pulse.announced("")
        assert await asyncio.gather(anext(one), anext(other)) == [2, 2]
    before = making.begun
    pulse.announced("")
    # Nobody looks any longer; the next one who does has it made anew.
    async with aclosing(pulse.versions("page", making)) as one:
        assert await anext(one) == before + 1


async def test_whoever_comes_is_told_of_nothing_that_was_begun_before() -> None:
    pulse, making = Pulse(), Making()
    making.going_on.clear()
    async with aclosing(pulse.versions("page", making)) as one, aclosing(pulse.versions("page", making)) as late:
        waits = asyncio.ensure_future(anext(one))

        async def begun() -> int:
            return making.begun

        await eventually(begun, "the first version is begun")
        comes = asyncio.ensure_future(anext(late))
        await asyncio.sleep(0)
        making.going_on.set()
        assert await comes == 2
        # Or both, where the second one was made before anybody was told of the first.
        assert await waits in (1, 2)


async def test_what_fails_is_told_to_all_and_tried_again_for_the_next() -> None:
    pulse, fails = Pulse(), True

    async def make() -> str:
        if fails:
            raise LookupError("away")
        return "made"

    async def look() -> Any:
        async with aclosing(pulse.versions("page", make)) as versions:
            return await anext(versions)

    answers = await asyncio.gather(look(), look(), return_exceptions=True)
    assert [type(answer) for answer in answers] == [LookupError, LookupError]
    fails = False
    assert await look() == "made"


async def test_few_pages_are_made_at_the_same_time() -> None:
    pulse, making = Pulse(), Making()
    making.going_on.clear()
    feeds = [pulse.versions(number, making) for number in range(MOST_AT_ONCE + 3)]
    asked = [asyncio.ensure_future(anext(feed)) for feed in feeds]

    async def begun() -> bool:
        return making.begun == MOST_AT_ONCE

    await eventually(begun, "some are begun")
    for _ in range(10):
        await asyncio.sleep(0)
    assert making.begun == MOST_AT_ONCE
    making.going_on.set()
    await asyncio.gather(*asked)
    for feed in feeds:
        await feed.aclose()


@asynccontextmanager
async def following(client: httpx.AsyncClient, path: str) -> Any:
    """The events of a page as a browser gets them: their names and what they tell."""
    async with client.stream("GET", path, headers={"Accept": "text/event-stream"}) as answer:
        assert answer.status_code == 200, path

        async def events() -> Any:
            name = ""
            async for line in answer.aiter_lines():
                if line.startswith("event: "):
                    name = line.removeprefix("event: ")
                elif line.startswith("data: "):
                    yield name, from_json(line.removeprefix("data: "))

        async with aclosing(events()) as told:
            yield told


async def part_of(told: Any, part: str) -> str:
    async for name, data in told:
        if name == "part" and data["part"] == part:
            return str(data["html"])
    raise AssertionError("the stream ended")


async def test_each_browser_gets_forms_of_its_own_and_who_logs_out_nothing_more(
    guarded: Service, make_key: MakeKey
) -> None:
    root = await make_key("root", scopes=tuple(Scope))
    async with logged_in(guarded, root) as one, logged_in(guarded, root) as other:
        (server,) = (await one.get("/servers/", headers={"Authorization": f"Bearer {root}"})).json()
        path = f"/console/servers/{server['id']}"
        tokens = [form_token(client.cookies[COOKIE]) for client in (one, other)]
        async with following(one, path) as told, following(other, path) as told_too:
            pages = [await part_of(each, "live_actions") for each in (told, told_too)]
            for page, mine, theirs in zip(pages, tokens, reversed(tokens), strict=True):
                assert (f'value="{mine}"' in page, theirs in page) == (True, False)
            gone = await other.post("/console/logout", data={"form": tokens[1]})
            assert gone.status_code == 303
            data = {"form": tokens[0], "state": "draining"}
            assert (await one.post(f"{path}/wanted", data=data)).status_code == 303
            assert "Activate" in await part_of(told, "live_actions")
            # Nothing of what came after its log-out, and its browser comes again to be told so.
            assert "Activate" not in str([data async for name, data in told_too if name == "part"])
        assert (await other.get(path, headers={"Accept": "text/event-stream"})).status_code == 401


async def test_a_page_of_an_api_that_stops_is_not_told_that_it_ended(make_settings: Callable[..., Settings]) -> None:
    told: list[str] = []
    async with AsyncExitStack() as stack:
        async with running_api(make_settings()) as running:
            address = running.client.base_url
            browser = await stack.enter_async_context(
                httpx.AsyncClient(base_url=address, trust_env=False, verify=False)
            )
            events = await stack.enter_async_context(following(browser, "/console/"))
            await part_of(events, "live_counts")
            rest = asyncio.ensure_future(_names(events, told))
        await rest
    # A browser whose stream just ends opens it again, at the API that comes after.
    assert "ended" not in told


async def _names(events: Any, told: list[str]) -> None:
    with suppress(httpx.TransportError):
        async for name, _ in events:
            told.append(name)


@pytest.mark.parametrize("path", ["/console/", "/console/tickets"])
async def test_two_owners_at_one_address_each_see_their_own(guarded: Service, make_key: MakeKey, path: str) -> None:
    alice, bob = await make_key("alice"), await make_key("bob")
    async with logged_in(guarded, alice) as one, logged_in(guarded, bob) as other:
        headers = {"Authorization": f"Bearer {alice}"}
        context = await one.post("/contexts/", json={"content": "Only hers"}, headers=headers)
        sent = await one.post(f"/models/send/chat/{context.json()['id']}", json={}, headers=headers)
        id_ = sent.json()["result_id"]

        async def ended() -> bool:
            return bool((await one.get(f"/results/{id_}", headers=headers)).json()["status"] == "completed")

        await eventually(ended, "her ticket ends")
        part = {"/console/": "live_counts", "/console/tickets": "live_rows"}[path]
        async with following(one, path) as told, following(other, path) as told_too:
            hers, his = await part_of(told, part), await part_of(told_too, part)
        if path == "/console/":
            assert ("<b>1</b> completed" in hers, "<b>0</b> completed" in his) == (True, True)
        if path == "/console/tickets":
            assert ("Only hers" in hers, "Only hers" in his) == (True, False)


async def test_open_pages_go_on_by_themselves_after_postgres_was_away(
    make_settings: Callable[..., Settings],
    browser: Browser,
    postgres: RunningPostgres,
    database_url: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with running_api(make_settings()) as service, visiting(browser, service) as visit:
        page = await visit.go()
        await expect(page.locator("#live-state")).to_have_text("live")
        # What answers with an error is not opened again by a browser itself.
        refused = page.expect_response(lambda answer: answer.status == 503)
        async with refusing_connections(postgres, database_url), refused:
            pass
        await expect(page.locator("#live-state")).to_have_text("live")
    assert "ASGI" not in caplog.text
