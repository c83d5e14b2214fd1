"""LoRA adapters by name, down to the backend: its stand-in writes the adapter it was given before its text."""

import json
import os
import shutil
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
import pytest_asyncio

from app.config import Settings
from tests.openai.batch_kit import ended, line, lines_of, start
from tests.openai.conftest import client_of
from tests.servers import TEST_MODELS, RunningTriton, start_triton
from tests.service import Service, running_api, running_dispatcher

# `sheep` is an adapter of both, and `tiny` is a model as well as an adapter.
ADAPTERS = {"lora": ["doll", "sheep"], "farm": ["sheep", "goat", "tiny"]}
DOLL = "[simulated: doll]"


@pytest.fixture(scope="session")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    for name in ("tiny", "embed"):
        shutil.copytree(TEST_MODELS / name, folder / name)
    for name, adapters in ADAPTERS.items():
        shutil.copytree(TEST_MODELS / "lora", folder / name)
        shutil.copy(TEST_MODELS / "chat" / "1" / "chat_template.jinja", folder / name / "1")
        write(folder / name, {adapter: f"/weights/{adapter}" for adapter in adapters})
    return folder


def write(model: Path, adapters: Any) -> None:
    file = model / "1" / "multi_lora.json"
    file.write_text(json.dumps(adapters))
    # Two writes within a tick of the file system's clock are told apart.
    os.utime(file, ns=(time.time_ns(), time.time_ns()))


@pytest.fixture(scope="session")
def triton(tmp_path_factory: pytest.TempPathFactory, repository: Path) -> Iterator[RunningTriton]:
    server = start_triton(tmp_path_factory.mktemp("triton"), ("tiny", "embed", *ADAPTERS), repository)
    yield server
    server.stop()


@pytest.fixture
def own_repository(repository: Path, tmp_path: Path) -> Path:
    """What the API reads, to be changed at will."""
    return Path(shutil.copytree(repository, tmp_path / "models"))


@pytest.fixture
def make_settings(make_settings: Callable[..., Settings], own_repository: Path) -> Callable[..., Settings]:
    def make(**changes: object) -> Settings:
        return make_settings(**({"model_repository": str(own_repository)} | changes))

    return make


@pytest_asyncio.fixture
async def elsewhere(make_settings: Callable[..., Settings], tmp_path: Path) -> AsyncIterator[Service]:
    """A service without the models' files."""
    settings = make_settings(model_repository=str(tmp_path / "none"))
    async with running_api(settings) as service, running_dispatcher(settings):
        yield service


async def ticket_of(service: Service, id_: str) -> dict[str, Any]:
    return await service.result(id_.split("-", 1)[-1].removeprefix("resp_"))


async def test_a_send_names_an_adapter(service: Service) -> None:
    result = await service.run(model="lora", lora_name="doll", max_tokens=20)
    assert result["output"].startswith(DOLL)
    assert (result["model"], result["parameters"]["lora_name"]) == ("lora", "doll")
    again = await service.client.post(f"/results/{result['id']}/retry")
    assert (await service.settled(again.json()["result_id"]))["output"].startswith(DOLL)
    plain = await service.run(model="lora", max_tokens=20)
    assert plain["output"].startswith("[simulated] ")
    assert "lora_name" not in plain["parameters"]


@pytest.mark.parametrize(
    ("model", "adapter", "status", "says"),
    [
        ("lora", "goat", 422, "The model 'lora' has no adapter named 'goat'. Its adapters are: doll, sheep."),
        ("tiny", "doll", 422, "The model 'tiny' has no adapter named 'doll'. It has none."),
        ("lora", "", 422, "parameters.lora_name"),
        ("lora", 7, 422, "parameters.lora_name"),
        ("doll", "doll", 404, "No server has ever served a model named 'doll'."),
    ],
)
async def test_a_send_to_an_adapter_that_is_not_there_is_refused(
    service: Service, model: str, adapter: Any, status: int, says: str
) -> None:
    context = await service.context()
    answer = await service.client.post(f"/models/send/{model}/{context}", json={"parameters": {"lora_name": adapter}})
    assert (answer.status_code, says in answer.text) == (status, True), answer.text
    if says.startswith("The model"):
        assert answer.json()["code"] == "lora_not_found"
        assert answer.json()["errors"][0]["field"] == "parameters.lora_name"
    assert (await service.client.get("/results/")).json() == []


async def test_where_the_adapters_are_not_known_the_backend_decides(elsewhere: Service) -> None:
    assert (await elsewhere.run(model="lora", lora_name="doll"))["output"].startswith(DOLL)
    failed = await elsewhere.run(model="lora", lora_name="a b")
    assert failed["error"] == {
        "code": "lora_not_found",
        "message": "The model does not have this adapter: LoRA a b is not supported, we currently support "
        "['doll', 'sheep'].",
    }
    assert failed["attempt_count"] == 1
    body = {"prompt": "Hi", "max_tokens": 9}
    answer = await elsewhere.client.post("/v1/completions", json=body | {"model": "lora:doll"})
    assert answer.json()["choices"][0]["text"].startswith(DOLL)
    answer = await elsewhere.client.post("/v1/completions", json=body | {"model": "doll"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "model_not_found")
    answer = await elsewhere.client.post("/v1/completions", json=body | {"model": "lora:"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "model_not_found")


async def test_adapters_are_listed_with_their_model_as_parent(client: openai.AsyncOpenAI) -> None:
    listed = {model.id: model async for model in client.models.list()}
    parents = {
        "tiny": None,
        "embed": None,
        "lora": None,
        "farm": None,
        "doll": "lora",
        "goat": "farm",
        "lora:sheep": "lora",
        "farm:sheep": "farm",
        "farm:tiny": "farm",
    }
    assert {id_: model.to_dict()["parent"] for id_, model in listed.items()} == parents
    assert list(listed) == sorted(parents)
    for id_, parent in parents.items():
        assert await client.models.retrieve(id_) == listed[id_]
        assert listed[id_].created == listed[parent or id_].created
    qualified = await client.models.retrieve("lora:doll")
    assert (qualified.id, qualified.to_dict()["parent"]) == ("lora:doll", "lora")


@pytest.mark.parametrize(("id_", "adapter"), [("doll", "doll"), ("lora:doll", "doll"), ("farm:tiny", "tiny")])
async def test_a_chat_asks_for_an_adapter_as_its_model(
    client: openai.AsyncOpenAI, service: Service, id_: str, adapter: str
) -> None:
    asked: dict[str, Any] = {"model": id_, "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 30}
    answer = await client.chat.completions.create(**asked)
    assert str(answer.choices[0].message.content).startswith(f"[simulated: {adapter}]")
    assert answer.model == id_
    ticket = await ticket_of(service, answer.id)
    base = "farm" if adapter == "tiny" else "lora"
    assert (ticket["model"], ticket["parameters"]["lora_name"]) == (base, adapter)
    assert (await client.chat.completions.retrieve(answer.id)).model == id_
    chunks = [chunk async for chunk in await client.chat.completions.create(**asked, stream=True)]
    text = "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices)
    assert text.startswith(f"[simulated: {adapter}]")
    assert {chunk.model for chunk in chunks} == {id_}


async def test_completions_and_responses_ask_for_one_too(client: openai.AsyncOpenAI, service: Service) -> None:
    completion = await client.completions.create(model="doll", prompt="Hi", max_tokens=20)
    assert completion.choices[0].text.startswith(DOLL)
    assert completion.model == "doll"
    chunks = [each async for each in await client.completions.create(model="doll", prompt="Hi", stream=True)]
    assert {each.model for each in chunks} == {"doll"}
    response = await client.responses.create(model="goat", input="Hi", background=True)
    assert response.model == "goat"
    ticket = await service.settled((await ticket_of(service, response.id))["id"])
    assert (ticket["model"], ticket["parameters"]["lora_name"]) == ("farm", "goat")
    response = await client.responses.retrieve(response.id)
    assert (response.model, response.output_text.startswith("[simulated: goat]")) == ("goat", True)
    events = [event async for event in await client.responses.create(model="doll", input="Hi", stream=True)]
    models = {event.response.model for event in events if hasattr(event, "response")}
    assert models == {"doll"}


async def test_the_lines_of_a_batch_ask_for_adapters(client: openai.AsyncOpenAI) -> None:
    body = {"prompt": "Hi", "max_tokens": 20}
    models = ["doll", "lora", "lora:sheep", "farm:sheep"]
    batch = await ended(client, await start(client, [line(model, body | {"model": model}) for model in models]))
    bodies = [each["response"]["body"] for each in await lines_of(client, batch.output_file_id)]
    assert [each["model"] for each in bodies] == models
    begins = [each["choices"][0]["text"].split("]")[0] for each in bodies]
    assert begins == ["[simulated: doll", "[simulated", "[simulated: sheep", "[simulated: sheep"]
    batch = await ended(client, await start(client, [line("a", body | {"model": "lora:goat"})]))
    assert batch.errors is not None
    assert [error.code for error in batch.errors.data or []] == ["model_not_found"]


@pytest.mark.parametrize(
    ("model", "status", "code", "says"),
    [
        ("sheep", 400, "invalid_request", "say whose: farm:sheep, lora:sheep"),
        ("lora:goat", 404, "model_not_found", "'lora' has no adapter named 'goat'. Its adapters are: doll, sheep."),
        ("tiny:doll", 404, "model_not_found", "The model 'tiny' has no adapter named 'doll'. It has none."),
        (
            "wolf",
            404,
            "model_not_found",
            "The models there are: embed, farm, lora, tiny, farm:sheep, goat, farm:tiny, doll",
        ),
        ("wolf:doll", 404, "model_not_found", "farm:sheep"),
        (":doll", 404, "model_not_found", "farm:sheep"),
    ],
)
async def test_what_is_no_adapter_is_refused_with_those_there_are(
    client: openai.AsyncOpenAI, model: str, status: int, code: str, says: str
) -> None:
    with pytest.raises(openai.APIStatusError) as refused:
        await client.completions.create(model=model, prompt="Hi")
    assert (refused.value.status_code, refused.value.code) == (status, code)
    assert says in refused.value.message


async def test_embeddings_take_no_adapter_and_the_field_of_the_engine_is_not_taken(client: openai.AsyncOpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        await client.embeddings.create(model="doll", input="Hi")
    assert (refused.value.code, refused.value.param) == ("unsupported_parameter", "model")
    with pytest.raises(openai.BadRequestError) as refused:
        await client.completions.create(model="lora", prompt="Hi", extra_body={"lora_name": "doll"})
    assert (refused.value.code, refused.value.param) == ("unsupported_parameter", "lora_name")
    assert "name the adapter as the model" in refused.value.message


@pytest.mark.parametrize("broken", ["{", "[]", '"doll"', ""])
async def test_the_file_is_read_again_when_it_changes(
    make_settings: Callable[..., Settings], own_repository: Path, broken: str
) -> None:
    model = own_repository / "lora"

    async def listed() -> list[str]:
        return [each.id async for each in client.models.list() if each.id.startswith(("d", "wolf"))]

    async with running_api(make_settings()) as service, client_of(service) as client:
        assert await listed() == ["doll"]
        write(model, {"wolf": "/weights/wolf"})
        assert await listed() == ["wolf"]
        (model / "1" / "multi_lora.json").write_text(broken)
        assert await listed() == []
        # What they are is not known then, so the backend has to tell.
        assert await service.send(model="lora", parameters={"lora_name": "doll"})
        (model / "1" / "multi_lora.json").unlink()
        answer = await service.client.post(
            f"/models/send/lora/{await service.context()}", json={"parameters": {"lora_name": "doll"}}
        )
        assert answer.json()["code"] == "lora_not_found"
        write(model, {"doll": "/weights/doll"})
        (model / "1" / "model.json").write_text('{"enable_lora": false}')
        assert await listed() == []
        (model / "1" / "model.json").write_text('{"enable_lora": "True"}')
        assert await listed() == ["doll"]
