"""Results and attempts tell what made them: server, engine, model and the parameters that were sent."""

import json
import re
from collections.abc import AsyncIterator, Callable
from typing import Any

import asyncpg
import pytest

from app.config import Settings
from tests.faulty_http import Asked, answer, faulty_server, finish, head, text
from tests.fleet.test_server_rows import added
from tests.llama import RunningLlama
from tests.servers import RunningTriton
from tests.service import Service, eventually, running_api, running_dispatcher


async def known(service: Service, model: str) -> None:
    async def is_known() -> bool:
        return (await service.client.get(f"/models/{model}")).is_success

    await eventually(is_known, f"{model} is known")


async def of_history(settings: Settings, result_id: str) -> dict[str, Any]:
    connection = await asyncpg.connect(settings.database_url)
    (row,) = await connection.fetch(
        "SELECT server_name, server_kind, engine_version, model_revision, sent_parameters FROM history"
        " WHERE result_id = $1",
        result_id,
    )
    await connection.close()
    names = ("server", "kind", "engine_version", "model_revision", "parameters")
    told = {"parameters": json.loads(row["sent_parameters"]), "usage_estimated": False}
    return dict(zip(names, row, strict=True)) | told


async def test_each_kind_tells_what_it_is(
    make_settings: Callable[..., Settings], triton: RunningTriton, llama: RunningLlama
) -> None:
    settings = make_settings(triton_urls=())
    async with running_api(settings) as service, running_dispatcher(settings):
        await added(service, triton.grpc_url, name="one")
        await added(service, llama.url, name="two", kind="openai", models={"demo": "small"})
        await known(service, "tiny")
        await known(service, "small")
        result = await service.run(max_tokens=2, temperature=0.5, n=2)
        found = result["provenance"]
        assert (found["server"], found["kind"], found["model_revision"]) == ("one", "triton", "version 1")
        assert re.fullmatch(r"\d+\.\d+\.\d+", found["engine_version"])
        assert found["parameters"] == {"max_tokens": 2, "temperature": 0.5, "top_p": 1.0}
        assert (await service.attempts(result["id"]))[0]["provenance"] == found
        assert await of_history(settings, result["id"]) == found
        result = await service.run("Once upon a time", "small", max_tokens=2, min_p=0.1)
        found = result["provenance"]
        assert (found["server"], found["kind"]) == ("two", "openai")
        assert found["model_revision"].endswith(".gguf")
        assert found["engine_version"]
        assert found["parameters"] == {"max_tokens": 2, "temperature": 1.0, "top_p": 1.0, "min_p": 0.1}
        assert await of_history(settings, result["id"]) == found


async def test_attempts_that_are_tried_again_have_theirs(make_settings: Callable[..., Settings]) -> None:
    async def fails_once(_: Asked) -> AsyncIterator[bytes]:
        if len(server.asked) == 1:
            yield answer(502)
        else:
            yield head() + text("at last") + finish()

    settings = make_settings(triton_urls=())
    async with faulty_server(fails_once) as server, running_api(settings) as service, running_dispatcher(settings):
        await added(service, server.url, kind="openai", models={"m": "small"})
        await known(service, "small")
        id_ = await service.send(model="small", parameters={"max_tokens": 2})
        result = await service.settled(id_)
        attempts = await service.attempts(id_)
        assert [each["outcome"] for each in attempts] == ["retried", "completed"]
        assert [each["provenance"] for each in attempts] == [result["provenance"]] * 2
        assert result["provenance"] == {
            "server": server.url,
            "kind": "openai",
            "engine_version": None,
            "model_revision": None,
            "parameters": {"max_tokens": 2, "temperature": 1.0, "top_p": 1.0},
            "usage_estimated": False,
        }


@pytest.mark.parametrize("ends", ["cancelled", "expired"])
async def test_what_no_server_had_has_none(api: Service, ends: str) -> None:
    id_ = await api.send(**({"expires_in": 0.1} if ends == "expired" else {}))
    await api.client.post(f"/results/{id_}/cancel")
    assert (await api.result(id_))["provenance"] is None
    assert await api.attempts(id_) == []
