"""GET /v1/models through the official client."""

import time

import openai
import pytest

from tests.openai.conftest import MODELS
from tests.service import Service


async def test_the_models_of_the_fleet_are_listed(client: openai.AsyncOpenAI) -> None:
    listed = [model async for model in client.models.list()]
    assert [model.id for model in listed] == sorted(MODELS)
    assert all(0 <= time.time() - model.created < 600 for model in listed)


async def test_what_a_model_can_do_is_told(client: openai.AsyncOpenAI, service: Service) -> None:
    listed = (await service.client.get("/v1/models/")).json()
    assert listed == (await service.client.get("/v1/models")).json()
    models = {model["id"]: model for model in listed["data"]}
    chats = {"chat": True, "embed": False, "tools": True, "reasoning": False, "images": False}
    assert (models["chat"]["capabilities"], models["chat"]["max_model_len"]) == (chats, 4096)
    nothing = dict.fromkeys(chats, False)
    assert models["tiny"]["capabilities"] == nothing
    for name in ("embed", "embed-vllm", "minilm"):
        assert models[name]["capabilities"] == nothing | {"embed": True}
    assert (await client.models.retrieve("chat")).to_dict() == models["chat"]


async def test_one_model_is_looked_up(client: openai.AsyncOpenAI) -> None:
    model = await client.models.retrieve("chat")
    assert (model.id, model.object) == ("chat", "model")


@pytest.mark.parametrize("name", ["gpt-nothing", "meta/llama"])
async def test_an_unknown_model_is_not_found(client: openai.AsyncOpenAI, name: str) -> None:
    with pytest.raises(openai.NotFoundError) as unknown:
        await client.models.retrieve(name)
    assert unknown.value.code == "model_not_found"
    with pytest.raises(openai.NotFoundError) as unknown:
        await client.chat.completions.create(model=name, messages=[{"role": "user", "content": "x"}])
    assert unknown.value.code == "model_not_found"
