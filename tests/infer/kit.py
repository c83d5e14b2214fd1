from typing import Any

import httpx

from tests.service import Service


def tensor(name: str, datatype: str, *values: object, shape: list[int] | None = None, **more: Any) -> dict[str, Any]:
    return {"name": name, "datatype": datatype, "shape": shape or [len(values)], "data": list(values), **more}


async def stored(service: Service, *inputs: dict[str, Any]) -> str:
    answer = await service.client.post("/contexts/", json={"inputs": list(inputs)})
    assert answer.status_code == 201, answer.text
    return str(answer.json()["id"])


async def sent(service: Service, model: str, *inputs: dict[str, Any], **options: Any) -> str:
    return await service.send(await stored(service, *inputs), model, **options)


async def refused(service: Service, model: str, *inputs: dict[str, Any]) -> dict[str, Any]:
    """The problem that a send is answered with."""
    context = await stored(service, *inputs)
    answer = await service.client.post(f"/models/send/{model}/{context}")
    assert answer.status_code == 422, answer.text
    problem: dict[str, Any] = answer.json()
    return problem


async def inferred(service: Service, model: str, *inputs: dict[str, Any]) -> dict[str, Any]:
    result = await service.settled(await sent(service, model, *inputs))
    assert result["status"] == "completed", result["error"]
    return result


def outputs(result: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {each["name"]: each for each in result["outputs"]}


async def file_of(service: Service, output: dict[str, Any], element: int = 0) -> httpx.Response:
    answer = await service.client.get(output["files"][element]["path"])
    assert answer.status_code == 200, answer.text
    return answer
