"""docs/clients.md and the README's examples: every block is run as it stands, every refusal is tried."""

import asyncio
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from app.anthropic import parameters as of_messages
from app.config import Settings
from app.errors import LineDefective
from app.openai.batch_lines import NOT_RUN
from app.openai.parameters import ENDPOINTS, names, outcome, table
from tests.clients.table import document
from tests.servers import TEST_MODELS, RunningTriton, start_triton
from tests.service import Service

ROOT = Path(__file__).resolve().parents[2]
DOCUMENT = (ROOT / "docs" / "clients.md").read_text()
# What is left out is run by tests/clients.
CLIENTS = DOCUMENT.replace(document(), "")
README = (ROOT / "README.md").read_text()
RANKED = r"0\.67 Somebody is having a meal\.\n0\.02 The stock market fell sharply on Monday\.\n"
SIMULATED = r"\[simulated\] \S.+"

# What each block prints, by its heading and its place below it.
PRINTS = {
    "Chat": [rf"{SIMULATED}\nchatcmpl-[0-9a-f]{{32}} \d+\n"],
    "Streaming": [rf"{SIMULATED}\n\d+ tokens\n"],
    "In the background": [rf"completed {SIMULATED}\ncompleted {SIMULATED}\n", rf"{SIMULATED}\n"],
    "Conversations": [
        rf"user What is a queue\?\nassistant {SIMULATED}\nuser And a stack\?\nassistant {SIMULATED}\n",
    ],
    "Batches": [rf"completed 20\n(haiku-\d+ {SIMULATED}\n){{20}}", r"completed True\ncompleted 20\n"],
    "Structured outputs": [r"\S.* -?\d+\n"],
    "Tools": [rf"(weather {{'place': .+}}\n)+{SIMULATED}\n"],
    "Embeddings": [rf"384 26\n{RANKED}"],
    "Images": [r"picture-0\.png True PNG\npicture-1\.png True PNG\n"],
    "LoRA adapters": [
        r"alice qwen3-0\.6b-lora\nbob qwen3-0\.6b-lora\ndemo None\nimage-rules None\nminilm None\n"
        r"qwen3-0\.6b-lora None\n"
        r"alice \[simulated: alice\] \S.+\n"
    ],
    "Async": [rf"({SIMULATED}\n){{10}}"],
    "Retries and lost answers": [r"[0-9a-f-]{36} completed 1\n"],
    "With the tools you have": [rf"{SIMULATED}\n", rf"{SIMULATED}\n", rf"({SIMULATED}\n){{20}}", RANKED],
}


def blocks(text: str, language: str) -> list[tuple[str, str]]:
    """Each block of the language after the heading it stands below."""
    found = re.findall(rf"^#+ (.+)$|^```{language}\n([\s\S]*?)^```", text, re.MULTILINE)
    heading = ""
    made = []
    for title, block in found:
        heading = title or heading
        if block:
            made.append((heading, block))
    return made


def python_blocks() -> list[Any]:
    section = README[README.index("## With the tools you have") :]
    places: dict[str, int] = {}
    made = []
    for heading, block in [*blocks(CLIENTS, "python"), *blocks(section, "python")]:
        place = places[heading] = places.get(heading, -1) + 1
        made.append(pytest.param(block, PRINTS[heading][place], id=f"{heading} {place}"))
    assert {heading: len(prints) for heading, prints in PRINTS.items()} == {
        heading: last + 1 for heading, last in places.items()
    }
    return made


@pytest.fixture(scope="session")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project's models, and beside them one that embeds."""
    folder = tmp_path_factory.mktemp("models")
    shutil.copytree(ROOT / "models", folder, dirs_exist_ok=True)
    shutil.copytree(TEST_MODELS / "embed", folder / "embed")
    return folder


@pytest.fixture(scope="session")
def triton(tmp_path_factory: pytest.TempPathFactory, repository: Path) -> Iterator[RunningTriton]:
    server = start_triton(
        tmp_path_factory.mktemp("triton"), ("demo", "minilm", "image-rules", "qwen3-0.6b-lora"), repository
    )
    yield server
    server.stop()


@pytest.fixture
def make_settings(make_settings: Callable[..., Settings], repository: Path) -> Callable[..., Settings]:
    def make(**changes: object) -> Settings:
        return make_settings(**({"model_repository": str(repository)} | changes))

    return make


async def run(service: Service, folder: Path, *command: str) -> str:
    base_url = str(service.client.base_url).rstrip("/") + "/v1"
    done = await asyncio.to_thread(
        subprocess.run,
        command,
        cwd=folder,
        env={**os.environ, "OPENAI_BASE_URL": base_url, "OPENAI_API_KEY": "EMPTY", "NO_PROXY": "127.0.0.1"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize(("block", "prints"), python_blocks())
async def test_the_python_blocks_print_answers(service: Service, tmp_path: Path, block: str, prints: str) -> None:
    printed = await run(service, tmp_path, sys.executable, "-c", block)
    assert re.fullmatch(prints, printed), printed


async def test_the_curl_blocks_print_answers(service: Service, tmp_path: Path) -> None:
    chat, stream, lookup = [block for _, block in blocks(CLIENTS, "sh")]
    answer = json.loads(await run(service, tmp_path, "bash", "-eu", "-c", chat))
    assert re.fullmatch(SIMULATED, answer["choices"][0]["message"]["content"])

    lines = (await run(service, tmp_path, "bash", "-eu", "-c", stream)).splitlines()
    data = [json.loads(line.removeprefix("data: ")) for line in lines if line.startswith("data: {")]
    text = "".join(choice["delta"].get("content", "") for each in data for choice in each["choices"])
    (ticket,) = json.loads(await run(service, tmp_path, "bash", "-eu", "-c", lookup))
    assert {each["id"] for each in data} == {f"chatcmpl-{ticket['id'].replace('-', '')}"}
    assert (ticket["status"], ticket["output"]) == ("completed", text)
    numbers = [int(line.removeprefix("id: ")) for line in lines if line.startswith("id: ")]
    assert numbers == list(range(len(numbers)))
    assert lines[-2:] == ["data: [DONE]", ""]


async def test_the_models_document_shows_how_to_ask_for_an_adapter(service: Service, tmp_path: Path) -> None:
    document = (ROOT / "docs" / "models.md").read_text()
    by_name, native = [block for heading, block in blocks(document, "sh") if heading == "LoRA"]
    here = str(service.client.base_url).rstrip("/")
    command = ("bash", "-euo", "pipefail", "-c")
    answer = json.loads(await run(service, tmp_path, *command, by_name.replace("http://127.0.0.1:8887", here)))
    assert answer["choices"][0]["text"].startswith("[simulated: alice]")
    result = json.loads(await run(service, tmp_path, *command, native.replace("http://127.0.0.1:8887", here)))
    assert (result["model"], result["output"].split("]")[0]) == ("qwen3-0.6b-lora", "[simulated: alice")


async def test_the_sql_finds_the_request(service: Service) -> None:
    ((_, query),) = blocks(CLIENTS, "sql")
    body = {"model": "demo", "messages": [{"role": "user", "content": "Hi."}], "max_tokens": 5, "user": "u1"}
    answer = (await service.client.post("/v1/chat/completions", json=body)).json()
    connection = await asyncpg.connect(service.settings.database_url)
    (row,) = await connection.fetch(query)
    await connection.close()
    assert (row["completion"], row["status"]) == (answer["id"], "completed")
    assert row["output"] == answer["choices"][0]["message"]["content"]
    assert json.loads(row["request"]) == {"model": "demo", "max_tokens": 5, "user": "u1"}


CHAT: dict[str, Any] = {"model": "demo", "messages": [{"role": "user", "content": "Hi."}], "max_tokens": 2}
TEXT: dict[str, Any] = {"model": "demo", "prompt": "Hi.", "max_tokens": 2}
RESPONSE: dict[str, Any] = {"model": "demo", "input": "Hi.", "max_output_tokens": 2}
FUNCTION: dict[str, Any] = {"type": "function", "function": {"name": "f", "strict": True}}


@pytest.mark.parametrize(
    ("path", "body"),
    [
        *(
            ("chat/completions", CHAT | each)
            for each in (
                {"store": False},
                {"metadata": {"a": "b"}},
                {"user": "u", "safety_identifier": "s", "prompt_cache_key": "k"},
                {"service_tier": "auto"},
                {"service_tier": "default"},
                {"service_tier": "flex"},
                {"tools": [FUNCTION]},
                {"stream": True, "stream_options": {"include_obfuscation": False, "continuous_usage_stats": True}},
                {"stream": False, "stream_options": {"include_usage": True}},
                {"cache_salt": "x", "use_beam_search": False, "length_penalty": 1.0, "return_token_ids": False},
                {"messages": [*CHAT["messages"], {"role": "assistant", "content": None}]},
                {"temperature": None, "audio": None},
                {"reasoning_effort": "none", "verbosity": "low"},
                {"top_k": 5, "min_p": 0.1, "repetition_penalty": 1.1, "guided_choice": ["yes", "no"]},
            )
        ),
        *(
            ("responses", RESPONSE | each)
            for each in (
                {"store": False, "include": ["reasoning.encrypted_content"]},
                {"truncation": "disabled", "text": {"verbosity": "medium"}, "reasoning": {}},
                {"store": True, "metadata": {"a": "b"}},
                {"truncation": "auto", "max_tool_calls": 1, "client_metadata": {}, "reasoning": {"effort": "low"}},
                {"prompt_cache_retention": "24h", "prompt_cache_options": {}, "tools": [{"type": "web_search"}]},
            )
        ),
    ],
)
async def test_what_is_said_to_be_accepted_is(service: Service, path: str, body: dict[str, Any]) -> None:
    answer = await service.client.post(f"/v1/{path}", json=body)
    assert answer.status_code == 200, answer.text


IMAGE = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "https://example.com/a.png"}}]}]


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        *(
            ("chat/completions", CHAT | each, param)
            for each, param in (
                ({"messages": IMAGE}, "messages[0].content[0].image_url"),
                ({"audio": {}}, "audio"),
                ({"modalities": ["text", "audio"]}, "modalities"),
                ({"functions": []}, "functions"),
                ({"function_call": "auto"}, "function_call"),
                ({"tools": [FUNCTION], "tool_choice": {"type": "allowed_tools"}}, "tool_choice"),
                ({"tools": [{"type": "custom", "custom": {"name": "c"}}]}, "tools[0].type"),
                ({"prediction": {}}, "prediction"),
                ({"web_search_options": {}}, "web_search_options"),
                ({"moderation": {}}, "moderation"),
                ({"temprature": 1}, "temprature"),
            )
        ),
        *(
            ("completions", TEXT | each, param)
            for each, param in (
                ({"suffix": "end"}, "suffix"),
                ({"best_of": 2}, "best_of"),
                ({"logit_bias": {"50256": -100}}, "logit_bias"),
            )
        ),
        ("embeddings", {"model": "minilm", "input": "a", "dimensions": 4}, "dimensions"),
        *(
            ("responses", RESPONSE | {name: value}, name)
            for name, value in (
                ("n", 1),
                ("max_tokens", 5),
                ("prompt", {"id": "p"}),
            )
        ),
        ("responses", RESPONSE | {"tools": [{"type": "web_search"}], "tool_choice": "required"}, "tools[0].type"),
    ],
)
async def test_what_is_said_to_be_refused_is(api: Service, path: str, body: dict[str, Any], param: str) -> None:
    answer = await api.client.post(f"/v1/{path}", json=body)
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["param"] == param


def test_the_table_of_parameters_is_that_of_the_code() -> None:
    assert table() in CLIENTS
    rows = dict(re.findall(r"^\| `(\w+)` \| (\w.*?) \|", table(), re.MULTILINE))
    assert (rows["messages"], rows["suffix"], rows["store"]) == ("honoured", "refused", "honoured")


@pytest.mark.parametrize("name", sorted(ENDPOINTS))
async def test_what_the_table_says_is_so(api: Service, name: str) -> None:
    """An unknown model is the last thing to be complained of; what is refused is named before."""
    path, body = {
        "chat": ("chat/completions", CHAT),
        "completions": ("completions", TEXT),
        "embeddings": ("embeddings", {"model": "minilm", "input": "a"}),
        "responses": ("responses", RESPONSE),
    }[name]
    for parameter in names():
        if outcome(parameter, *ENDPOINTS[name]) != "refused":
            continue
        answer = await api.client.post(f"/v1/{path}", json=body | {parameter: "x"})
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, parameter), parameter


def test_the_table_of_messages_is_that_of_the_code() -> None:
    assert of_messages.table() in CLIENTS


async def test_what_the_table_of_messages_says_is_so(api: Service) -> None:
    body = {"model": "demo", "max_tokens": 5, "messages": [{"role": "user", "content": "Hi."}]}
    for name, becomes, _ in of_messages.rows():
        if becomes != "honoured":
            answer = await api.client.post("/v1/messages", json=body | {name: {"x": "y"}} | {"model": "none"})
            named = answer.json()["error"]["message"].startswith(f"{name}: ")
            assert (answer.status_code, named) == ((400, True) if becomes == "refused" else (404, False)), name


def test_the_codes_of_batches_are_documented() -> None:
    documented = set(re.findall(r"`([a-z_]+)`", (ROOT / "docs" / "errors.md").read_text()))
    services = ROOT / "app" / "services"
    names = ("loading.py", "line_checks.py", "line_gathering.py", "line_reading.py")
    source = "".join((services / name).read_text() for name in names)
    codes = set(re.findall(r'LineError\(\s*"([a-z_]+)"', source)) | {code for code, _ in NOT_RUN.values()}
    codes.add(LineDefective.code)
    assert {"duplicate_custom_id", "batch_expired"} <= codes <= documented
