"""What an engine refuses of one request is final; what fails for other reasons is tried again."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from app.config import Settings
from tests.servers import start_triton
from tests.service import Service, running_api, running_dispatcher


@pytest.mark.parametrize(
    ("parameters", "word"),
    [
        ({"structured_outputs": {"regex": "("}}, "regex"),
        ({"structured_outputs": {"grammar": "no rules"}}, "no rule named root"),
        ({"structured_outputs": {"json": {"$ref": "#/$defs/nowhere"}}}, "#/$defs/nowhere"),
        ({"structured_outputs": {"json": {"type": "array", "uniqueItems": True}}}, "xgrammar"),
        ({"stop_token_ids": [999_999]}, "stop_token_ids"),
        ({"allowed_token_ids": [999_999]}, "allowed_token_ids"),
        ({"n": 3, "stop_token_ids": [999_999]}, "stop_token_ids"),
    ],
)
async def test_a_refusal_is_final_at_the_first_attempt(service: Service, parameters: dict[str, Any], word: str) -> None:
    result = await service.run(**parameters)
    assert (result["status"], result["attempt_count"]) == ("failed", 1)
    assert result["error"]["code"] == "invalid_parameters"
    assert word in result["error"]["message"]
    assert "attempts" not in result["error"]["message"]


async def test_an_unknown_refusal_that_comes_again_is_final(service: Service, caplog: pytest.LogCaptureFixture) -> None:
    """The engine answers the next request of anybody else, so it is this one that it does not take."""
    result = await service.run("[[sim:error=No seven in /opt/vllm/model.py please]]")
    assert (result["status"], result["attempt_count"]) == ("failed", 2)
    assert result["error"]["code"] == "request_refused"
    assert "No seven in … please" in result["error"]["message"]
    assert "/opt" not in result["error"]["message"]
    attempts = await service.attempts(result["id"])
    assert [each["error"]["code"] for each in attempts] == ["engine_error", "request_refused"]
    # What the engine said in full is in the log.
    assert "/opt/vllm/model.py" in caplog.text


async def test_a_fault_of_the_engine_is_not_taken_for_a_refusal(
    make_settings: Callable[..., Settings], tmp_path: Path
) -> None:
    """An engine in trouble says the same words to every request."""
    server = start_triton(tmp_path, ("tiny",))
    try:
        settings = make_settings(triton_urls=(server.grpc_url,), max_attempts=3)
        async with running_api(settings) as service, running_dispatcher(settings):
            result = await service.run("[[sim:engine-sick=The card fell off the bus]]")
        assert (result["error"]["code"], result["attempt_count"]) == ("engine_error", 3)
        assert result["error"]["message"].endswith("off the bus. This was the last of 3 attempts.")
    finally:
        server.kill()
