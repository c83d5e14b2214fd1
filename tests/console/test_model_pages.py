"""Models and servers in a real browser: their state, what was counted, and a server that is added and taken out."""

from collections.abc import Callable
from pathlib import Path

from playwright.async_api import Browser, expect

from app.config import Settings
from nvidia_triton.local.settings import free_ports
from tests.console.conftest import Visit, visiting
from tests.console.test_entrance import logged_in
from tests.keys.conftest import MakeKey
from tests.openai.response_kit import emit
from tests.servers import TEST_MODELS, start_triton
from tests.service import Service, eventually, running_api

HOSTILE = "<script>alert(1)</script>"


async def test_a_model_tells_its_state_its_servers_and_what_they_counted(visit: Visit) -> None:
    await visit.service.run(emit("Counted."), "chat")
    page = await visit.go("/console/models")
    row = page.locator("#live_models tr", has_text="chat")
    await expect(row.locator(".badge")).to_have_text("ready")
    await expect(row).to_contain_text("chats")
    await page.keyboard.press("j")
    await page.keyboard.press("Enter")
    await page.wait_for_url("**/console/models/chat")
    await expect(page.locator("#live_states .badge")).to_have_text("ready")
    counted = await page.locator("#live_counts tbody td.n").first.inner_text()
    assert int(counted.replace(",", "")) >= 1
    await page.click("text=Its tickets")
    await expect(page.locator("#live_rows")).to_contain_text("Counted.")
    await visit.go("/console/models/nothing%2F<b>")
    await expect(page.locator("main")).to_contain_text("named 'nothing/<b>'")
    assert visit.faults.pop().endswith("404 (Not Found)")


async def test_a_server_is_added_drained_disabled_activated_and_removed(visit: Visit) -> None:
    page = await visit.go("/console/servers")
    await expect(page.locator("#live_servers tr")).to_contain_text("chat 0 of")
    await page.click("text=Add a server")
    await page.fill("input[name=address]", f"127.0.0.1:{free_ports(1)[0]}")
    await page.fill("input[name=name]", HOSTILE)
    await page.fill("input[name=concurrency]", "many")
    await page.click("button:has-text('Add')")
    await expect(page.locator("[role=alert]")).to_contain_text("concurrency: 'many' is no whole number")
    assert await page.input_value("input[name=name]") == HOSTILE
    assert visit.faults.pop().startswith("Failed to load resource: the server responded with a status of 422")
    await page.fill("input[name=concurrency]", "7")
    await page.click("button:has-text('Add')")
    head = page.locator("#live_head")
    await expect(page.locator("h1")).to_contain_text(HOSTILE)
    await expect(head).to_contain_text("7 of each model at once")
    await expect(head.locator(".badge")).to_have_text("down")
    await expect(head.locator(".attention")).not_to_be_empty()
    await visit.go()
    await expect(page.locator("#live_counts")).to_contain_text("of 64 slots")
    await page.click(f"text=Server {HOSTILE} is down")
    for name, state in (("Drain", "drained"), ("Disable", "disabled"), ("Activate", "down")):
        await page.click(f"button:has-text('{name}')")
        await expect(head.locator(".badge")).to_have_text(state)
    assert await page.locator("main script").count() == 0
    await page.click("summary:has-text('Remove it')")
    await page.click("button:has-text('Remove')")
    await page.wait_for_url("**/console/servers")
    await expect(page.locator("#live_servers tr")).to_have_count(1)
    await page.click("#live_servers a")
    # What the environment lists is taken out there.
    await expect(page.locator("#live_actions")).to_contain_text("listed in the environment")
    assert await page.locator("button:has-text('Remove')").count() == 0


async def test_a_model_is_loaded_and_unloaded_by_a_button(
    make_settings: Callable[..., Settings], browser: Browser, tmp_path: Path
) -> None:
    server = start_triton(tmp_path, ("chat",), TEST_MODELS)
    settings = make_settings(triton_urls=(server.grpc_url,))
    try:
        async with running_api(settings) as service, visiting(browser, service) as visit:

            async def up() -> bool:
                return bool((await service.client.get("/servers/")).json()[0]["state"] == "up")

            await eventually(up, "the server is up")
            page = await visit.go("/console/servers")
            await page.click("#live_servers a")
            await page.select_option("select[name=model]", "echo")
            await page.click("form:has(select) button:has-text('Load')")
            row = page.locator("#live_served tr", has_text="echo")
            await expect(row.locator(".badge")).to_have_text("ready")
            await page.click("[aria-label='Unload echo']")
            await expect(row.locator(".badge")).to_have_text("unavailable")
            # Its page has the same button for each server.
            await row.locator("a").click()
            await page.wait_for_url("**/console/models/echo")
            await page.click("[aria-label='Load echo']")
            await page.wait_for_url("**/console/servers/*")
            await expect(row.locator(".badge")).to_have_text("ready")
            await visit.go("/console/audit?action=model.load_ordered")
            await expect(page.locator("#live_rows tr")).to_have_count(2)
            assert (visit.faults, visit.elsewhere) == ([], [])
    finally:
        server.kill()


async def test_servers_are_for_admins_and_models_for_all(guarded: Service, make_key: MakeKey) -> None:
    async with logged_in(guarded, await make_key()) as client:
        assert (await client.get("/console/servers")).status_code == 403
        assert "/console/servers" not in (await client.get("/console/models")).text
        assert "/console/servers" not in (await client.get("/console/models/chat")).text
