"""A real browser: the Chromium of the machine."""

import shutil
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import pytest_asyncio
from playwright.async_api import Browser, BrowserContext, Page, Route, async_playwright, expect

from app.config import Settings
from tests.keys.conftest import make_key
from tests.servers import TEST_MODELS, RunningTriton, start_triton
from tests.service import Service, running_api, running_dispatcher

__all__ = ["make_key"]

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
MISSING = "no Chromium: sudo apt-get install chromium"
# How long a page may take to show what is expected of it, in milliseconds, on a machine that does much else.
PATIENCE = 30_000

expect.set_options(timeout=PATIENCE)


@pytest.fixture(scope="session")
def triton(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningTriton]:
    server = start_triton(tmp_path_factory.mktemp("triton"), ("chat",), TEST_MODELS)
    yield server
    server.stop()


@pytest.fixture
def make_settings(make_settings: Callable[..., Settings]) -> Callable[..., Settings]:
    def make(**changes: object) -> Settings:
        return make_settings(**({"model_repository": str(TEST_MODELS)} | changes))

    return make


@pytest_asyncio.fixture(scope="session")
async def browser() -> AsyncIterator[Browser]:
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    if found is None:
        pytest.skip(MISSING)
    async with async_playwright() as playwright:
        # A container has no room for its sandbox, and the only pages are ours.
        launched = await playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield launched
        await launched.close()


class Visit:
    """A browser at the console of a service; what went wrong in it is kept."""

    def __init__(self, context: BrowserContext, page: Page, service: Service) -> None:
        self.context = context
        self.page = page
        self.service = service
        self.faults: list[str] = []
        self.elsewhere: list[str] = []
        page.on("console", lambda said: self.faults.append(said.text) if said.type == "error" else None)
        page.on("pageerror", lambda error: self.faults.append(str(error)))
        page.on("dialog", lambda dialog: self.faults.append(f"dialog: {dialog.message}"))

    @property
    def base(self) -> str:
        return str(self.service.client.base_url).rstrip("/")

    async def go(self, path: str = "/console/") -> Page:
        await self.page.goto(self.base + path)
        return self.page

    async def ask(self, message: str, model: str = "chat") -> str:
        """Begins a chat through the form; returns the ticket's id."""
        await self.go("/console/chat")
        await self.page.select_option("select[name=model]", model)
        await self.page.fill("textarea[name=message]", message)
        await self.page.click("button:has-text('Send')")
        await self.page.wait_for_url("**/console/chat/*")
        return self.leaf

    @property
    def leaf(self) -> str:
        """The id of the ticket that the page of a chat was led to."""
        return self.page.url.split("at=", 1)[1].split("#")[0]


@pytest_asyncio.fixture
async def visit(browser: Browser, service: Service) -> AsyncIterator[Visit]:
    """At a service without keys, on its own machine; fails where pages had an error or wanted something elsewhere."""
    async with visiting(browser, service) as at:
        yield at
        assert (at.faults, at.elsewhere) == ([], [])


@asynccontextmanager
async def visiting(browser: Browser, service: Service, **options: Any) -> AsyncIterator[Visit]:
    context = await browser.new_context(**options)
    context.set_default_timeout(PATIENCE)
    at = Visit(context, await context.new_page(), service)

    async def only_here(route: Route) -> None:
        if route.request.url.startswith(at.base + "/"):
            await route.continue_()
        else:
            at.elsewhere.append(route.request.url)
            await route.abort()

    await context.route("**/*", only_here)
    try:
        yield at
    finally:
        await context.close()


@pytest_asyncio.fixture
async def guarded(make_settings: Callable[..., Settings]) -> AsyncIterator[Service]:
    """API and dispatcher, with keys required."""
    settings = make_settings(auth_required=True)
    async with running_api(settings) as running, running_dispatcher(settings):
        yield running
