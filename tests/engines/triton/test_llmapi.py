"""TensorRT-LLM's llmapi contract, against a stub with its tensors on a real tritonserver: the engine needs a GPU."""

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from app.config import Settings
from tests.servers import RunningTriton, start_triton
from tests.service import Service, eventually, running_api, running_dispatcher
from tests.streams.follower import Follower


@pytest.fixture(scope="module")
def triton(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningTriton]:
    server = start_triton(tmp_path_factory.mktemp("triton"), ("llmapi",))
    yield server
    server.stop()


async def known(service: Service) -> None:
    async def ready() -> bool:
        return bool((await service.client.get("/models/llmapi")).is_success)

    await eventually(ready, "the model is known")


async def test_each_parameter_is_an_input_and_usage_is_an_estimate(service: Service) -> None:
    await known(service)
    asked = {"max_tokens": 7, "temperature": 0.5, "top_p": 0.25, "top_k": 3, "stop": ["a", "b"], "seed": 2**40}
    result = await service.run("Say it.", "llmapi", presence_penalty=0.5, frequency_penalty=-0.5, **asked)
    assert result["status"] == "completed", result["error"]
    assert json.loads(result["output"].removeprefix("Say it. ")) == asked | {
        "presence_penalty": 0.5,
        "frequency_penalty": -0.5,
        "exclude_input_from_output": True,
    }
    assert result["finish_reason"] == "stop"
    assert result["usage"] == {"prompt_tokens": 2, "completion_tokens": -(-len(result["output"]) // 4)}
    assert result["provenance"]["usage_estimated"] is True


async def test_a_stream_has_what_each_message_adds(service: Service) -> None:
    await known(service)
    id_ = await service.send(model="llmapi", prompt="One two three", parameters={"temperature": 0}, stream=True)
    follower = await Follower(id_).follow(service)
    result = follower.check()
    assert len(follower.seen) > 1
    assert result["usage"]["completion_tokens"] == -(-len(result["output"]) // 4)
    sent = json.loads(result["output"].removeprefix("One two three "))
    assert (sent["top_k"], "temperature" in sent, "top_p" in sent) == (1, False, False)
    told = {name.removeprefix("sampling_param_"): value for name, value in result["provenance"]["parameters"].items()}
    assert told | {"exclude_input_from_output": True} == sent


REFUSED: list[dict[str, Any]] = [{"min_p": 0.1}, {"logprobs": 1}, {"structured_outputs": {"regex": "a"}}, {"seed": -5}]


async def test_what_it_has_no_input_for_fails_by_name(service: Service) -> None:
    await known(service)
    for parameters in REFUSED:
        result = await service.run("x", "llmapi", **parameters)
        (name,) = parameters
        assert (result["status"], result["error"]["code"]) == ("failed", "not_supported_by_model")
        assert name in result["error"]["message"]


async def test_its_errors_are_shown_in_its_own_words(make_settings: Callable[..., Settings]) -> None:
    settings = make_settings(max_attempts=1)
    async with running_api(settings) as service, running_dispatcher(settings):
        await known(service)
        result = await service.run("fail", "llmapi")
        assert (result["status"], result["error"]["code"]) == ("failed", "engine_error")
        assert "the engine is out of sorts" in result["error"]["message"]
