"""The engine of docs/engines.md answers a ticket, and its entries are entries."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from types import ModuleType

import pytest

from app.config import Settings
from app.engines.registry import ENGINES
from app.fleet.servers import ServerList
from tests.faulty_http import Asked, answer, faulty_server
from tests.service import eventually, running_api, running_dispatcher

ROOT = Path(__file__).resolve().parents[2]
DOCUMENT = (ROOT / "docs" / "engines.md").read_text()
(EXAMPLE,) = re.findall(r"^```python\n(.*?)^```", DOCUMENT, re.DOTALL | re.MULTILINE)


def test_the_example_is_as_short_as_it_is_said_to_be() -> None:
    assert len([line for line in EXAMPLE.splitlines() if line]) <= 40


async def test_the_example_answers_a_ticket(
    make_settings: Callable[..., Settings], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = ModuleType("shout")
    exec(compile(EXAMPLE, "docs/engines.md", "exec"), module.__dict__)
    monkeypatch.setitem(sys.modules, "shout", module)
    monkeypatch.setitem(ENGINES, "shout", "shout:ShoutEngine")

    async def shouts(asked: Asked) -> AsyncIterator[bytes]:
        if asked.path == "/voices":
            yield answer(200, '["loud"]')
        else:
            yield answer(200, json.dumps({"text": asked.json["text"].upper()}))

    async with faulty_server(shouts) as server:
        file = tmp_path / "servers.json"
        file.write_text(json.dumps({"servers": [{"kind": "shout", "url": server.url}]}))
        settings = make_settings(triton_urls=(), triton_servers_file=file)
        async with running_api(settings) as service, running_dispatcher(settings):

            async def there() -> bool:
                return (await service.client.get("/models/loud")).is_success

            await eventually(there, "the model is known")
            result = await service.run("not so loud", model="loud")
    assert (result["status"], result["output"]) == ("completed", "NOT SO LOUD")


def test_the_entries_are_entries(tmp_path: Path) -> None:
    file = tmp_path / "servers.json"
    examples = re.findall(r"^```json\n(.*?)^```", DOCUMENT, re.DOTALL | re.MULTILINE)
    rows = [
        row.replace("https://...", "https://x").replace('"env:..."', '"env:X"').replace("{...}", '{"a": "b"}')
        for row in re.findall(r"^\|.*?`(\{.*?\})`(?:;| \|)", DOCUMENT, re.MULTILINE)
    ]
    assert len(rows) == 5
    assert len(examples) == 3
    for text in (*examples, *('{"servers": [' + row + "]}" for row in rows)):
        file.write_text(text)
        entries = ServerList((), file).read()
        assert len(entries) == text.count('"url"')
        (kind,) = set(re.findall(r'"kind": "(\w+)"', text))
        assert {entry.kind for entry in entries} == {kind}


def test_the_kinds_are_those_of_the_registry() -> None:
    assert set(re.findall(r"^\| `(\w+)` \| (?:Triton|anything)", DOCUMENT, re.MULTILINE)) == set(ENGINES)
