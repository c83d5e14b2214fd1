"""axe finds nothing that keeps people with other eyes or hands from using a page, in light and in dark."""

import json
import re
from typing import Any

import pytest
from axe_playwright_python.async_playwright import Axe

from tests.console.conftest import Visit
from tests.console.test_entrance import PAGES
from tests.openai.response_kit import emit
from tests.service import Service

# What the guidelines (WCAG 2.2) ask for at the levels A and AA; in the dark only the colours are others.
RULES: dict[str, Any] = {"type": "tag", "values": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa"]}
COLOURS: dict[str, Any] = {"type": "rule", "values": ["color-contrast"]}
# Only what is shown is asked for: the whole answer is large.
FAULTS = """async (rules) => {
    const checked = await axe.run({ runOnly: rules, resultTypes: ["violations"], elementRef: false });
    return checked.violations.map((fault) => [fault.id, fault.nodes.slice(0, 3).map((node) => node.target.join(" "))]);
}"""
REFUSED = re.compile(r"status of 4(04|10|22) ")
# Addresses that are no pages.
OTHERS = (
    "/console",
    "/console/batches/{batch_id}/table.csv",
    "/console/static/{name}",
    "/console/usage.csv",
    "/console/chat/similar/{result_id}",
)


async def things(service: Service) -> dict[str, str]:
    """One of each kind that has a page of its own, by the name that its id has in addresses."""
    result = await service.send(model="chat", prompt=emit("A *text* with `code`."))
    await service.settled(result)
    await service.settled(await service.send(model="chat", prompt="[[sim:error=broken]]", priority=3))
    client = service.client
    await client.post("/keys/", json={"name": "alice", "requests_per_minute": 5})
    compared = await client.post("/comparisons/", json={"content": "Why?", "entries": [{"model": "chat"}] * 2})
    line = {"custom_id": "a", "method": "POST", "url": "/v1/completions", "body": {"model": "chat", "prompt": "x"}}
    file = await client.post("/v1/files", data={"purpose": "batch"}, files={"file": ("in.jsonl", json.dumps(line))})
    batch = await client.post(
        "/v1/batches",
        json={"input_file_id": file.json()["id"], "endpoint": "/v1/completions", "completion_window": "24h"},
    )
    return {
        "result_id": result,
        "comparison_id": compared.json()["id"],
        "batch_id": batch.json()["id"].removeprefix("batch_"),
        "server_id": (await client.get("/servers/")).json()[0]["id"],
        "model_name:path": "chat",
        "path:path": "nowhere",
    }


async def begun(visit: Visit) -> str:
    """A chat with two versions of an answer, one of which is rated."""
    id_ = await visit.ask(emit("A *text* with `code`."))
    await visit.service.settled(id_)
    await visit.page.click("button:text-is('Good')")
    await visit.page.click("text=Answer again")
    await visit.page.wait_for_url(lambda url: id_ not in url)
    return visit.page.url.split("?")[0].rsplit("/", 1)[1]


@pytest.mark.parametrize(
    ("scheme", "rules"),
    [("light", RULES), pytest.param("dark", COLOURS, marks=pytest.mark.long)],
    ids=["light", "dark"],
)
async def test_axe_finds_nothing_serious_on_any_page(visit: Visit, scheme: Any, rules: dict[str, Any]) -> None:
    await visit.page.emulate_media(color_scheme=scheme)
    known = await things(visit.service) | {"chat_id": await begun(visit)}
    axe, found, pages = Axe(), [], 0
    for method, path in PAGES:
        if method != "GET" or path in OTHERS:
            continue
        # Of what there is none of, it is the page that says so.
        page = await visit.go(re.sub(r"{(.+?)}", lambda name: known.get(name[1], known["result_id"]), path))
        await page.evaluate("for (const each of document.querySelectorAll('details')) each.open = true")
        # What comes from here is run by no page of ours: their policy forbids it to all but this.
        await page.evaluate(axe.axe_script)
        pages += 1
        found += [(path, *each) for each in await page.evaluate(FAULTS, rules)]
    assert pages > 8
    assert found == []
    visit.faults = [each for each in visit.faults if not REFUSED.search(each)]
