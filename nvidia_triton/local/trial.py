"""Which model a newcomer's first lines name: one that the servers really have."""

import asyncio
import time
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import httpx

PREFERRED = "demo"
TIMEOUT_SECONDS = 5.0
# How long the first look at the servers may hold up who asks.
PATIENCE_SECONDS = 3.0
POLL_SECONDS = 0.2
KEY_NEEDED = "Requests need an API key: `make key NAME=me` prints one, and docs/keys.md shows how to send it."


@dataclass(frozen=True)
class Trial:
    """A ready model that generates text, or else why there is none and what to do; `final` if that will not change."""

    model: str = ""
    instead: str = ""
    final: bool = True


async def find_trial(url: str, patience: float = PATIENCE_SECONDS) -> Trial:
    """Asks the API at `url`, again for up to `patience` seconds while no model is ready.

    Raises:
        httpx.HTTPError: the API does not answer.
    """
    deadline = time.monotonic() + patience
    async with httpx.AsyncClient(base_url=url, trust_env=False, timeout=TIMEOUT_SECONDS) as client:
        trial = await _look(client)
        while not trial.final and time.monotonic() < deadline:
            await asyncio.sleep(POLL_SECONDS)
            trial = await _look(client)
    return trial


async def _look(client: httpx.AsyncClient) -> Trial:
    try:
        models = await _get(client, "/models/")
        ready = [model["name"] for model in models if model["state"] == "ready"]
        details = [await _get(client, f"/models/{quote(name, safe='')}") for name in ready]
    except httpx.HTTPStatusError as error:
        if error.response.status_code in (401, 403):
            return Trial(instead=KEY_NEEDED)
        raise
    generating = [model["name"] for model in details if _generates(model)]
    # Servers that speak OpenAI's API tell of no tensors.
    generating += [model["name"] for model in details if not model["inputs"] and not model["outputs"]]
    if generating:
        return Trial(PREFERRED if PREFERRED in generating else generating[0])
    return Trial(instead=_nothing_to_try(str(client.base_url).rstrip("/"), models, ready), final=False)


def _nothing_to_try(url: str, models: list[dict[str, Any]], ready: list[str]) -> str:
    if ready:
        problem = f"No model that is ready generates text ({', '.join(ready)})"
    elif models:
        problem = f"No model is ready: {models[0]['name']} is {models[0]['state']}"
        problem += f" ({models[0]['reason']})" if models[0]["reason"] else ""
    else:
        problem = "No server that answers has a model yet"
    return f"{problem}. `curl -sS {url}/models/` lists them with their state, and `make demo` tries one that is ready."


def _generates(model: dict[str, Any]) -> bool:
    inputs, outputs = ({tensor["name"] for tensor in model[side]} for side in ("inputs", "outputs"))
    return "text_input" in inputs and "text_output" in outputs


async def _get(client: httpx.AsyncClient, path: str) -> Any:
    return (await client.get(path)).raise_for_status().json()
