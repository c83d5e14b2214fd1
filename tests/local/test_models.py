"""The models of models/ on a real tritonserver, and which of them `make run` loads."""

import json
import re
import shutil
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing
from pathlib import Path

import pytest

from app.engines.base import Endpoint, Request
from app.engines.triton.client import TritonEngine
from app.tasks.chunks import Accumulator
from nvidia_triton.engine_arguments import CHECKED, LIFETIMES, is_known, nearest, vllm_of_image
from nvidia_triton.local.process import LocalError
from nvidia_triton.local.settings import DEFAULT_MODELS, ROOT, local_settings
from nvidia_triton.local.triton import TritonServer
from nvidia_triton.vast.repository import validate
from tests.local.conftest import Checkout
from tests.servers import RunningTriton, start_triton

MODELS = ROOT / "models"
NAMES = sorted(path.parent.name for path in MODELS.glob("*/config.pbtxt"))
WRITERS = sorted(path.parents[1].name for path in MODELS.glob("*/1/model.json"))
DOCUMENT = (ROOT / "docs" / "models.md").read_text()


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All of models/, the example of docs/models.md that needs no vLLM, and one with a key vLLM dropped."""
    copy = tmp_path_factory.mktemp("repository") / "models"
    shutil.copytree(MODELS, copy)
    for file, text in re.findall(r"^`models/(shout/\S+)`\n\n```\w+\n(.*?)^```", DOCUMENT, re.DOTALL | re.MULTILINE):
        (copy / file).parent.mkdir(parents=True, exist_ok=True)
        (copy / file).write_text(text)
    shutil.copytree(MODELS / "demo", copy / "outdated")
    (copy / "outdated/1/model.json").write_text('{"model": "gpt2", "disable_log_requests": true}')
    return copy


@pytest.fixture(scope="module")
def server(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningTriton]:
    running = start_triton(tmp_path_factory.mktemp("triton"), ("*",), repository)
    yield running
    running.kill()


@pytest.fixture
async def client(server: RunningTriton) -> AsyncIterator[TritonEngine]:
    async with TritonEngine(Endpoint("triton", server.grpc_url)) as opened:
        yield opened


async def answer_of(client: TritonEngine, model: str, prompt: str) -> Accumulator:
    answer = Accumulator()
    async with aclosing(client.run(Request(model, prompt, {"max_tokens": 8}, "test", 10, 30))) as chunks:
        async for chunk in chunks:
            answer.add(chunk)
    return answer


def post(url: str, body: object) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(url, data=json.dumps(body).encode(), timeout=30) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


@pytest.mark.parametrize("name", WRITERS)
async def test_every_model_of_vllm_loads_and_answers(client: TritonEngine, name: str) -> None:
    answer = await answer_of(client, name, "Hello there.")
    assert answer.finish_reasons == ["length"]
    assert answer.completion_tokens == 8
    assert answer.joined()[0].startswith("[simulated]")


def test_the_examples_are_those_the_document_lists() -> None:
    assert sorted(re.findall(r"^\| `([a-z0-9.-]+)` \| (?:[\w-]+/|none, )", DOCUMENT, re.MULTILINE)) == NAMES


def test_every_key_of_the_examples_is_explained() -> None:
    explained = set(re.findall(r"`(\w+)`", DOCUMENT))
    for name in NAMES:
        config = (MODELS / name / "config.pbtxt").read_text()
        keys = set(re.findall(r'key: "(\w+)"', config)) | set(re.findall(r"^(\w+)", config, re.MULTILINE))
        if name in WRITERS:
            keys |= set(json.loads((MODELS / name / "1" / "model.json").read_text()))
        assert keys - explained - {"parameters"} == set()


async def test_a_model_without_vllm_answers_the_service(client: TritonEngine, repository: Path) -> None:
    [folder] = validate(repository, ["shout"])
    assert folder.backend == "python"
    answer = await answer_of(client, "shout", "no need to shout")
    assert answer.joined() == ["NO NEED TO SHOUT"]
    assert answer.finished
    assert answer.completion_tokens == 4


@pytest.mark.parametrize(
    ("adapter", "status", "text"),
    [
        ("alice", 200, "[simulated: alice]"),
        ("bob", 200, "[simulated: bob]"),
        ("carol", 400, "LoRA carol is not supported"),
    ],
)
def test_an_adapter_is_asked_for_by_its_name(server: RunningTriton, adapter: str, status: int, text: str) -> None:
    body = {"text_input": "Who are you?", "parameters": {"lora_name": adapter, "max_tokens": 40}}
    found, answer = post(f"{server.http_url}/v2/models/qwen3-0.6b-lora/generate", body)
    assert found == status, answer
    assert text in answer


def test_a_key_that_vllm_dropped_fails_the_load_and_the_check(server: RunningTriton, repository: Path) -> None:
    status, answer = post(f"{server.http_url}/v2/repository/models/outdated/load", {})
    assert status == 400
    assert "unexpected keyword argument 'disable_log_requests'" in answer
    with pytest.raises(Exception, match=r"disable_log_requests: vLLM 0\.10\.2 does not know this key"):
        validate(repository, ["outdated"], vllm="0.10.2")


@pytest.mark.parametrize(
    ("value", "models"),
    [
        (None, DEFAULT_MODELS),
        ("", DEFAULT_MODELS),
        ("demo  qwen2.5-7b-instruct", ("demo", "qwen2.5-7b-instruct")),
        ("*", ("*",)),
    ],
)
def test_models_chooses_what_is_loaded(value: str | None, models: tuple[str, ...]) -> None:
    settings = local_settings({} if value is None else {"MODELS": value})
    assert settings.triton is not None
    assert settings.triton.models == models
    settings.triton.check_models()


def test_an_engine_that_is_none_is_named() -> None:
    with pytest.raises(
        LocalError, match="ENGINE='vllm' is no engine: give llama-server or simulation, or leave it out"
    ):
        local_settings({"ENGINE": "vllm"})


def test_make_run_loads_the_chosen_models_only(full_checkout: Checkout) -> None:
    runner = full_checkout.make("run", MODELS="demo qwen2.5-7b-instruct").ready()
    url = f"http://127.0.0.1:{full_checkout.env['TRITON_HTTP_PORT']}/v2/repository/index"
    status, answer = post(url, {})
    assert status == 200
    states = {model["name"]: model.get("state") for model in json.loads(answer)}
    assert {name for name, state in states.items() if state == "READY"} == {"demo", "qwen2.5-7b-instruct"}
    stubs = [command for command in runner.processes().values() if "triton_python_backend_stub" in command]
    assert len(stubs) == 2


def test_a_model_that_is_not_there_is_named_before_anything_starts(full_checkout: Checkout) -> None:
    runner = full_checkout.run(MODELS="demo qwen2.5-7b")
    assert runner.exit_code() == 1
    last = runner.output.splitlines()[-1]
    assert "no model 'qwen2.5-7b'" in last
    assert f"it holds {', '.join(NAMES)}" in last
    assert str(full_checkout.path) not in last
    assert "postgres" not in runner.output


def test_a_repository_without_models_says_so(tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    with pytest.raises(LocalError, match=r"models/ has no model 'demo': it holds no folder with a config.pbtxt"):
        TritonServer(tmp_path / "models", tmp_path, models=("demo",)).check_models()


def test_a_key_is_known_between_the_releases_that_were_read() -> None:
    assert is_known("swap_space", "0.13.0") is True
    assert is_known("swap_space", "0.15.1") is True
    assert is_known("swap_space", "0.17.0") is None
    assert is_known("swap_space", "0.19.0") is False
    assert is_known("moe_backend", "0.15.1") is False
    assert is_known("moe_backend", "0.17.0") is None
    assert is_known("moe_backend", "0.25.0") is None
    assert is_known("no_such_key", "0.15.1") is False
    assert is_known("no_such_key", "0.25.0") is None
    for first, last in LIFETIMES.values():
        assert CHECKED.index(first) <= CHECKED.index(last)


def test_the_image_tells_the_vllm() -> None:
    assert vllm_of_image("nvcr.io/nvidia/tritonserver:26.02-vllm-python-py3") == "0.15.1"
    assert vllm_of_image("25.10-vllm-python-py3") == "0.10.2"
    assert vllm_of_image("nvcr.io/nvidia/tritonserver:24.01-vllm-python-py3") is None
    assert vllm_of_image("nvcr.io/nvidia/tritonserver:26.02-py3") is None


def test_a_dropped_key_has_no_dropped_key_as_its_neighbour() -> None:
    assert nearest("disable_log_requests", "0.15.1") == "enable_log_requests"
