"""docs/neighbours.md: every block is run as it stands, only the address differs."""

import asyncio
import base64
import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from app.config import Settings
from tests.servers import RunningTriton, start_triton
from tests.service import Service, eventually

ROOT = Path(__file__).resolve().parents[2]
DOCUMENT = (ROOT / "docs" / "neighbours.md").read_text()
ADDRESS = "http://127.0.0.1:8887"
MODELS = ("demo", "minilm", "image-rules", "ner-rules", "vision-rules")
SIMULATED = r"\[simulated\] \S.+"


@pytest.fixture(scope="session")
def triton(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningTriton]:
    server = start_triton(tmp_path_factory.mktemp("triton"), MODELS, ROOT / "models")
    yield server
    server.stop()


@pytest.fixture
def make_settings(make_settings: Callable[..., Settings]) -> Callable[..., Settings]:
    def make(**changes: object) -> Settings:
        return make_settings(**({"model_repository": str(ROOT / "models")} | changes))

    return make


@pytest_asyncio.fixture
async def service(service: Service) -> Service:
    """Once it knows all models."""

    async def known() -> bool:
        models = (await service.client.get("/models/")).json()
        return {each["name"] for each in models if each["state"] == "ready"} >= set(MODELS)

    await eventually(known, "the models are known")
    return service


def block(heading: str, language: str) -> str:
    section = DOCUMENT[DOCUMENT.index(f"## {heading}\n") :]
    found = re.search(rf"^```{language}\n(.*?)^```", section, re.DOTALL | re.MULTILINE)
    assert found is not None
    return found[1]


async def run(service: Service, text: str, *program: str) -> str:
    script = text.replace(ADDRESS, str(service.client.base_url).rstrip("/"))
    done = await asyncio.to_thread(
        subprocess.run, [*program, "-c", script], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    return str(done.stdout)


async def lines(service: Service, heading: str) -> list[str]:
    """What each curl line of a section prints."""
    commands = [line for line in block(heading, "sh").splitlines() if line]
    return [await run(service, line, "bash", "-eu", "-o", "pipefail") for line in commands]


def events_of(text: str) -> list[dict[str, Any]]:
    return [json.loads(line.removeprefix("data: ")) for line in text.splitlines() if line.startswith("data: ")]


def content_of(stream: str) -> str:
    """What a streamed chat says."""
    assert stream.rstrip().endswith("data: [DONE]")
    chunks = events_of(stream.replace("data: [DONE]", ""))
    return "".join(choice["delta"].get("content") or "" for chunk in chunks for choice in chunk["choices"])


async def test_anthropic(service: Service) -> None:
    whole, streamed, models = await lines(service, "Anthropic")
    assert re.fullmatch(SIMULATED, json.loads(whole)["content"][0]["text"], re.DOTALL)
    assert [event["type"] for event in events_of(streamed)][-1] == "message_stop"
    assert {"demo", "minilm"} <= {model["id"] for model in json.loads(models)["data"]}
    printed = await run(service, block("Anthropic", "python"), sys.executable)
    assert re.fullmatch(rf"({SIMULATED}\n){{2}}", printed)


async def test_text_generation_inference(service: Service) -> None:
    generated, streamed, cut, chat, info = await lines(service, "Text Generation Inference")
    answer = json.loads(generated)
    assert re.fullmatch(SIMULATED, answer["generated_text"])
    assert answer["details"]["generated_tokens"] <= 20
    events = events_of(streamed)
    assert "".join(event["token"]["text"] for event in events) == events[-1]["generated_text"]
    assert re.fullmatch(SIMULATED, json.loads(cut)["generated_text"])
    assert re.fullmatch(SIMULATED, content_of(chat), re.DOTALL)
    assert json.loads(info)["model_id"] == "demo"
    printed = await run(service, block("Text Generation Inference", "python"), sys.executable)
    assert re.fullmatch(rf"({SIMULATED}\n){{3}}", printed)


async def test_protollm(service: Service) -> None:
    *answers, found = await lines(service, "ProtoLLM")
    for answer in map(json.loads, answers):
        # Curl takes an error for an answer: then this shows which it was.
        assert answer.keys() == {"content"}, answer
        assert re.fullmatch(SIMULATED, answer["content"], re.DOTALL)
    tickets = json.loads(found)
    assert [(each["client_reference"], each["status"]) for each in tickets] == [("12345", "completed")] * 2


async def test_h2ogpt(service: Service) -> None:
    text, chat = await lines(service, "h2oGPT")
    assert re.fullmatch(SIMULATED, json.loads(text)["choices"][0]["text"], re.DOTALL)
    assert re.fullmatch(SIMULATED, content_of(chat), re.DOTALL)


async def test_semoss(service: Service) -> None:
    chat, generated, found, seen, drawn, embedded, status, queue, health = await lines(service, "SEMOSS")
    assert re.fullmatch(SIMULATED, json.loads(chat)["choices"][0]["message"]["content"], re.DOTALL)
    last = events_of(generated)[-1]
    assert last["status"] == "complete"
    assert re.fullmatch(SIMULATED, last["output"], re.DOTALL)
    assert events_of(found)[-1]["output"] == "[PERSON_1] lived in London."
    assert "8 x 4" in events_of(seen)[-1]["output"]
    assert base64.b64decode(events_of(drawn)[-1]["image"]).startswith(b"\x89PNG")
    assert len(json.loads(embedded)["data"][0]["embedding"]) == 384
    assert json.loads(status) == {"status": "READY", "gpu": None, "queue": 0, "model": "demo", "type": "text"}
    assert queue == "queue_size 0"
    assert json.loads(health) == {"status": "ok"}
