"""What the local tritonserver has loaded, and whether a real model answers."""

import json
from pathlib import Path

import httpx

from nvidia_triton.local.triton import HOST, TritonServer

# How the backend marks a model that it simulates, among the outputs.
SIMULATION_OUTPUT = "simulation"
TIMEOUT_SECONDS = 5


async def loaded(server: TritonServer) -> dict[str, str]:
    """Each model that was asked for, with a few words on what answers for it.

    Raises:
        httpx.HTTPError: the server does not answer.
    """
    url = f"http://{HOST}:{server.http_port}/v2"
    async with httpx.AsyncClient(trust_env=False, timeout=TIMEOUT_SECONDS) as client:
        index = (await client.post(f"{url}/repository/index", json={})).raise_for_status().json()
        words = {}
        for model in index:
            if model.get("state") == "READY":
                metadata = (await client.get(f"{url}/models/{model['name']}")).raise_for_status().json()
                words[model["name"]] = _answers(metadata, server.model_repository / model["name"])
            elif "state" in model:
                words[model["name"]] = "not loaded: the lines of `triton` above say why"
    return words


def _answers(metadata: dict[str, object], folder: Path) -> str:
    if metadata.get("platform") != "vllm":
        return f"the backend {metadata.get('platform')}"
    outputs = metadata.get("outputs")
    assert isinstance(outputs, list)
    if SIMULATION_OUTPUT in (output["name"] for output in outputs):
        return "simulated: no model answers, and its texts mean nothing"
    name = json.loads((folder / "1" / "model.json").read_text())["model"]
    return f"{name}, a real model, run by llama.cpp"
