"""How the service is run, in the console: deliveries, audit, logs, settings."""

import asyncio
import logging
import re
from collections.abc import Callable
from typing import Any

from playwright.async_api import Browser, expect

from app.config import Settings
from app.console.entrance import COOKIE
from app.db.engine import Database
from app.queue.log_lines import MOST_KEPT
from app.services.callers import Scope
from app.services.changed_settings import SECRETS, viewed
from app.services.process_logs import Process, ProcessLogs, lines_kept
from app.services.sessions import form_token
from app.telemetry.ring import MOST_HELD, Line, Ring
from tests.console.conftest import visiting
from tests.console.test_entrance import logged_in
from tests.keys.conftest import MakeKey
from tests.service import Service, eventually, running_api

HOSTILE = "<script>alert(1)</script>"


async def deliver(rows: Any, owner: str, url: str, *, given_up: bool = True) -> str:
    """A delivery as a settling statement writes it."""
    made = await rows.fetchval(
        "INSERT INTO webhook_deliveries (owner_id, result_id, event, url, due_at, last_error, tries)"
        " SELECT id, uuidv7(), 'result.completed', $2, CASE WHEN $3 THEN NULL ELSE now() + interval '1 hour' END,"
        " '<b>broken</b>', 10 FROM owners WHERE name = $1 RETURNING id",
        owner,
        url,
        given_up,
    )
    return str(made)


async def test_a_delivery_is_seen_by_its_owner_and_made_again(guarded: Service, make_key: MakeKey, rows: Any) -> None:
    alice, bob = await make_key("alice"), await make_key("bob")
    reader = await make_key("reader", owner="alice", scopes=(Scope.READ,))
    ended = await deliver(rows, "alice", "https://example.com/alice")
    await deliver(rows, "alice", "https://example.com/waits", given_up=False)
    async with logged_in(guarded, bob) as client:
        assert "example.com" not in (await client.get("/console/webhooks")).text
        data = {"form": form_token(client.cookies[COOKIE])}
        assert (await client.post(f"/console/webhooks/{ended}/redeliver", data=data)).status_code == 404
    assert await rows.fetchval("SELECT count(*) FROM webhook_deliveries WHERE due_at IS NULL") == 1
    async with logged_in(guarded, reader) as client:
        page = (await client.get("/console/webhooks?state=given_up")).text
        assert ("/alice" in page, "/waits" in page, "Deliver again" in page) == (True, False, False)
        assert "&lt;b&gt;broken" in page
        assert (await client.get("/console/webhooks?state=x")).status_code == 422
    async with logged_in(guarded, alice) as client:
        page = (await client.get("/console/webhooks")).text
        assert page.count("redeliver") == 1
        data = {"form": form_token(client.cookies[COOKIE])}
        assert (await client.post(f"/console/webhooks/{ended}/redeliver", data=data)).status_code == 303
        # The dispatcher may have taken it up meanwhile.
        assert await rows.fetchval("SELECT due_at IS NOT NULL FROM webhook_deliveries WHERE id = $1::uuid", ended)


async def test_the_running_of_the_service_is_for_admins(
    make_settings: Callable[..., Settings], make_key: MakeKey, browser: Browser
) -> None:
    settings = make_settings(auth_required=True)
    plain, root = await make_key(HOSTILE), await make_key("root", scopes=tuple(Scope))
    async with running_api(settings) as service:
        logging.getLogger("tickets.tests").warning("a %s line", HOSTILE)
        async with logged_in(service, plain) as client:
            for name in ("audit", "logs", "settings"):
                assert (await client.get(f"/console/{name}")).status_code == 403
            page = (await client.get("/console/")).text
            assert not any(f"/console/{name}" in page for name in ("audit", "logs", "settings"))
        async with visiting(browser, service) as visit:
            page = await visit.go("/console/login?to=/console/logs")
            await page.fill("input[name=key]", root)
            await page.click("main >> button:has-text('Log in')")
            lines = page.locator("#live_rows")
            await expect(lines).to_contain_text(f"a {HOSTILE} line")
            await expect(lines).to_contain_text("started")
            page = await visit.go("/console/logs?level=WARNING&process=api&text=A%20%3CSCRIPT")
            await expect(page.locator("#live_rows tr")).to_have_count(1)
            page = await visit.go("/console/audit?action=key.created")
            await expect(page.locator("#live_rows")).to_contain_text(HOSTILE)
            page = await visit.go("/console/settings")
            await expect(page.locator("tr:has-text('DATABASE_URL') >> nth=0")).to_contain_text("set")
            await expect(page.locator("tr:has-text('AUTH_REQUIRED') >> nth=0")).to_contain_text("true")
            assert settings.database_url not in await page.content()
            assert await page.locator("tbody tr").count() == len(Settings.model_fields)
            changed = page.locator("section:has(h2:has-text('Can be changed here')) tbody tr")
            assert await changed.count() == await page.locator("form.setting").count() > 0
            await page.fill("input[type=search]", "RETENTION contexts")
            await page.click("button:has-text('Search')")
            await expect(page.locator("tbody tr")).to_have_count(1)
            await expect(page.locator("tr#RESULT_RETENTION_DAYS")).to_be_visible()
            assert (visit.faults, visit.elsewhere) == ([], [])
            for query in ("process=x", "level=LOUD", "older_than=0", f"older_than={2**70}"):
                answer = await visit.context.request.get(f"{visit.base}/console/logs?{query}")
                assert answer.status == 422, query


async def test_a_setting_is_changed_and_reset_on_its_page(
    make_settings: Callable[..., Settings], make_key: MakeKey, browser: Browser
) -> None:
    root = await make_key(HOSTILE, scopes=tuple(Scope))
    async with running_api(make_settings(auth_required=True)) as service, visiting(browser, service) as visit:
        page = await visit.go("/console/login?to=/console/settings")
        await page.fill("input[name=key]", root)
        await page.click("main >> button:has-text('Log in')")
        row = page.locator("tr#INTERACTIVE_SHARE")
        await row.locator("input[name=value]").fill(HOSTILE)
        await row.locator("button:has-text('Change')").click()
        await expect(page.locator("[role=alert]")).to_contain_text("INTERACTIVE_SHARE stays as it was: value:")
        # Where it was typed, which the page shows at once.
        await expect(row.locator("#refused")).to_be_in_viewport()
        await expect(row.locator("input[name=value]")).to_have_value(HOSTILE)
        assert visit.faults.pop().startswith("Failed to load resource: the server responded with a status of 422")
        await row.locator("input[name=value]").fill("0.25")
        await row.locator("button:has-text('Change')").click()
        await expect(row).to_contain_text(f"Changed by {HOSTILE}")
        await expect(row).to_contain_text("the environment says 0.0625")
        await page.reload()
        await expect(row.locator("input[name=value]")).to_have_value("0.25")
        await page.click("[aria-label='Reset INTERACTIVE_SHARE']")
        await expect(row).not_to_contain_text("Changed by")
        await expect(row.locator("input[name=value]")).to_have_value("0.0625")
        assert await page.locator("tr#API_PORT input").count() == 0
        assert (visit.faults, visit.elsewhere) == ([], [])


def test_what_may_hold_a_password_is_only_said_to_be_set() -> None:
    settings = Settings(
        database_url="postgresql://me:my-password@db/tickets",
        database_listen_url="postgresql://me:my-password@db/tickets",
        capacity_webhook_url="https://example.com/my-password",
        otel_exporter_otlp_endpoint="http://me:my-password@collector:4318",
    )
    views = {name.upper(): viewed(settings, name) for name in Settings.model_fields}
    assert "my-password" not in repr(views)
    assert {name for name, view in views.items() if view.value == "set"} == {name.upper() for name in SECRETS}
    assert viewed(Settings(), "database_url").value == "not set"
    # Whatever names an address with room for a password, or a secret, has to be among them.
    for name in views:
        assert name.lower() in SECRETS or not re.search("_url$|password|secret|token$|endpoint", name.lower()), name


async def test_lines_are_kept_bounded_and_a_flood_costs_no_more_than_its_newest(database: Database, rows: Any) -> None:
    """A process that logs more than can be written goes on, and says how many lines were not kept."""
    await rows.execute(
        "INSERT INTO log_lines (at, level, process, host, logger, message)"
        " SELECT now(), 30, process, 'h:1', 'old', n::text FROM generate_series(1, $1::int) n,"
        " unnest(ARRAY['api', 'dispatcher']) process",
        MOST_KEPT + 300,
    )
    logger = logging.getLogger("tickets.flood")
    async with lines_kept(database, Process.API, Settings()):
        for number in range(MOST_HELD + 500):
            logger.warning("line %d with a zero \x00", number)
        logger.info("too low a level")
        try:
            raise RuntimeError("on purpose")
        except RuntimeError:
            logger.exception("an error")

        async def kept() -> Any:
            return await rows.fetchval("SELECT count(*) FROM log_lines WHERE logger = 'flood'")

        await eventually(kept, "some of them are written")
    found = await ProcessLogs(database).page(Process.API, logging.WARNING, None, 2000)
    messages = [row["message"] for row in found.rows]
    assert any("lines came too quickly" in each for each in messages)
    assert not any("too low" in each for each in messages)
    assert await rows.fetchval("SELECT count(*) FROM log_lines WHERE process = 'api'") <= MOST_KEPT * 1.1
    # Another kind of process has room of its own.
    assert await rows.fetchval("SELECT count(*) FROM log_lines WHERE process = 'dispatcher'") == MOST_KEPT + 300
    assert logger.handlers == [] or all(not isinstance(each, Ring) for each in logging.getLogger("tickets").handlers)


async def test_a_process_goes_on_without_a_place_for_its_lines(database: Database, rows: Any) -> None:
    """As before the migration: nothing fails, and what is held is written once it can be."""
    await rows.execute("ALTER TABLE log_lines RENAME TO elsewhere")
    async with lines_kept(database, Process.DISPATCHER, Settings()):
        logging.getLogger("tickets.x").error("held")
        await asyncio.sleep(0)
    await rows.execute("ALTER TABLE elsewhere RENAME TO log_lines")
    assert await rows.fetchval("SELECT count(*) FROM log_lines") == 0
    async with lines_kept(database, Process.DISPATCHER, Settings(log_kept_level="NONE")):
        logging.getLogger("tickets.x").error("not kept")
    assert await rows.fetchval("SELECT count(*) FROM log_lines") == 0


def test_what_is_given_back_stands_before_what_came_since() -> None:
    ring = Ring(logging.WARNING)

    def line(text: str) -> Line:
        record = logging.LogRecord("tickets.x", 30, "", 0, text, (), None)
        ring.emit(record)
        return ring.take(MOST_HELD)[-1]

    first, second = line("1"), line("2")
    ring.add(line("3"))
    ring.give_back([first, second])
    assert [each.message for each in ring.take(10)] == ["1", "2", "3"]
    for number in range(MOST_HELD - 1):
        ring.add(first if number else second)
    ring.give_back([first, second])
    assert (len(ring.take(2 * MOST_HELD)), ring.dropped) == (MOST_HELD, 1)
    ring.emit(logging.LogRecord("tickets.x", 30, "", 0, "%d", ("no number",), None))
    assert ring.dropped == 2
