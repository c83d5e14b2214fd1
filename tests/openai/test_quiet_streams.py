"""Streams that say nothing for a while, with a comment line in each silence, as real clients read them."""

import asyncio
import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import openai
import pytest

from tests.service import Service

CLIENTS = Path(__file__).with_name("node")
NPM_SECONDS = 240
TEXT = "one two three"
# A token a message, and more than a comment line's time between two of them.
PROMPT = f"[[sim:chunk=1]][[sim:slow=350]][[sim:emit={TEXT}]]"

Run = Callable[..., Any]


@pytest.fixture(autouse=True)
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.api.sse.KEEP_ALIVE_SECONDS", 0.1)


@pytest.fixture(scope="session")
def node(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Runs one of the programs in `node/`; what it prints comes back."""
    program, npm = shutil.which("node"), shutil.which("npm")
    if program is None or npm is None:
        pytest.skip("node and npm are not installed, so OpenAI's Node client and EventSource are NOT tested")
    folder = tmp_path_factory.mktemp("node") / "clients"
    shutil.copytree(CLIENTS, folder)
    install = [npm, "install", "--no-audit", "--no-fund", "--loglevel=error"]
    done = subprocess.run(install, cwd=folder, capture_output=True, text=True, timeout=NPM_SECONDS, check=False)
    assert done.returncode == 0, done.stderr

    async def run(script: str, *arguments: str) -> str:
        process = await asyncio.create_subprocess_exec(
            program, script, *arguments, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        output, errors = await asyncio.wait_for(process.communicate(), 60)
        assert process.returncode == 0, errors.decode()
        return output.decode()

    return run


async def wire_of(service: Service, path: str, **body: Any) -> str:
    return (await service.client.post(path, json={"model": "chat", "stream": True} | body)).text


async def test_a_comment_comes_in_each_silence_and_ends_no_event(service: Service) -> None:
    text = await wire_of(service, "/v1/chat/completions", messages=[{"role": "user", "content": PROMPT}])
    _, _, after_an_id = text.partition("id: ")
    assert after_an_id.count(": keep-alive\n") >= 3
    assert ": keep-alive\n\n" not in text
    assert "\n\n\n" not in text
    assert text.endswith("data: [DONE]\n\n")


async def test_openais_python_client(client: openai.AsyncOpenAI) -> None:
    chat = await client.chat.completions.create(
        model="chat", messages=[{"role": "user", "content": PROMPT}], stream=True
    )
    assert "".join([chunk.choices[0].delta.content or "" async for chunk in chat]) == TEXT
    completion = await client.completions.create(model="chat", prompt=PROMPT, stream=True)
    assert "".join([chunk.choices[0].text async for chunk in completion]) == TEXT
    response = await client.responses.create(model="chat", input=PROMPT, stream=True)
    assert "".join([event.delta async for event in response if event.type == "response.output_text.delta"]) == TEXT


async def test_openais_node_client(service: Service, node: Run) -> None:
    url = f"{str(service.client.base_url).rstrip('/')}/v1"
    assert json.loads(await node("openai.js", url, PROMPT)) == dict.fromkeys(("chat", "completion", "response"), TEXT)


async def test_an_event_source_follows_a_native_stream(service: Service, node: Run) -> None:
    result_id = await service.send(model="chat", prompt=PROMPT)
    url = str(service.client.base_url.join(f"/results/{result_id}/stream"))
    events = [json.loads(line) for line in (await node("eventsource.js", url)).splitlines()]
    assert {type_ for type_, _, _ in events} == {"delta", "completed"}
    assert [int(id_) for _, id_, _ in events] == list(range(len(events)))
    deltas = [json.loads(data)["deltas"] for type_, _, data in events if type_ == "delta"]
    assert "".join(delta["text"] for each in deltas for delta in each) == TEXT
    assert json.loads(events[-1][2])["output"] == TEXT


async def test_no_event_of_a_native_stream_is_without_data(service: Service) -> None:
    result_id = await service.send(model="chat", prompt=PROMPT)
    text = (await service.client.get(f"/results/{result_id}/stream")).text
    assert text.startswith("retry: 1000\n")
    assert ": keep-alive\n" in text
    for event in text.removesuffix("\n\n").split("\n\n"):
        assert [line for line in event.split("\n") if line.startswith("data: ")], event
