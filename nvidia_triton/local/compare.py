"""One prompt to several models, as a table that fills while they answer. `make compare` runs it.

Against API_URL, else the stack that runs here. PROMPT and MODELS say what to compare.
"""

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator, Mapping
from typing import Any

import httpx
from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from nvidia_triton.local.process import LocalError
from nvidia_triton.local.settings import local_settings

# Longer than the stream is ever silent.
TIMEOUT_SECONDS = 60.0
RECONNECT_SECONDS = 1.0
# So many times in a row the stream may break without a new event.
MAX_BROKEN = 10
COLOURS = {"completed": "green", "failed": "red", "removed": "red"}


def request_of(environment: Mapping[str, str]) -> dict[str, Any]:
    """The body of POST /comparisons/."""
    prompt, models = environment.get("PROMPT", ""), environment.get("MODELS", "").replace(",", " ").split()
    if not prompt or not models:
        raise LocalError(
            'Say what to compare: make compare PROMPT="Why is the sky blue?" MODELS="demo qwen3-0.6b-lora"'
        )
    parameters: dict[str, float] = {}
    for name, kind in (("MAX_TOKENS", int), ("TEMPERATURE", float)):
        if text := environment.get(name):
            try:
                parameters[name.lower()] = kind(text)
            except ValueError:
                raise LocalError(f"{name}={text} is not a number.") from None
    messages = [{"role": "user", "content": prompt}]
    entries = [{"model": model} for model in models]
    return {"messages": messages, "parameters": parameters, "entries": entries, "stream": True}


def table_of(entries: list[dict[str, Any]], texts: Mapping[str, str]) -> Table:
    """`texts` is what was said so far, by the id of the result."""
    table = Table(show_lines=True, expand=True)
    for title in ("model", "status"):
        table.add_column(title, no_wrap=True)
    table.add_column("answer", ratio=1)
    for title in ("tokens", "seconds", "cost", "server"):
        table.add_column(title, justify="right" if title != "server" else "left", no_wrap=True)
    for entry in entries:
        error = entry["error"] or {}
        said = entry["output"] or texts.get(entry["result_id"]) or error.get("message", "")
        tokens, seconds, cost = entry["usage"]["completion_tokens"], entry["seconds"], entry["cost"]
        table.add_row(
            Text(entry["model"]),
            Text(entry["phase"] or entry["status"], style=COLOURS.get(entry["status"], "")),
            Text(said),
            "" if tokens is None else f"{tokens:,}",
            "" if seconds is None else f"{seconds:.2f}",
            "" if cost is None else f"${cost:.6f}",
            Text(entry["server"] or ""),
        )
    return table


async def events(client: httpx.AsyncClient, url: str) -> AsyncIterator[tuple[str, dict[str, Any]]]:
    """The events of a stream to its end, resumed where it is cut."""
    headers: dict[str, str] = {}
    broken = 0
    while broken < MAX_BROKEN:
        try:
            async with client.stream("GET", url, headers=headers) as response:
                if response.status_code == 204:
                    return
                if response.is_error:
                    await response.aread()
                    raise LocalError(refusal(response))
                fields: dict[str, str] = {}
                async for line in response.aiter_lines():
                    name, _, value = line.partition(":")
                    if line:
                        fields[name] = value.removeprefix(" ")
                        continue
                    if "data" in fields and fields["event"] != "error":
                        headers["Last-Event-ID"], broken = fields["id"], 0
                        yield fields["event"], json.loads(fields["data"])
                    fields = {}
        except httpx.TransportError:
            await asyncio.sleep(RECONNECT_SECONDS)
        broken += 1
    raise LocalError(f"The stream {url} breaks again and again: read {url.removesuffix('/stream')} instead.")


def refusal(response: httpx.Response) -> str:
    try:
        detail = response.json()["detail"]
    except (ValueError, KeyError, TypeError):
        detail = response.text[:300]
    return f"The service answers {response.status_code}: {detail}"


async def read(client: httpx.AsyncClient, method: str, url: str, **options: Any) -> dict[str, Any]:
    response = await client.request(method, url, **options)
    if response.is_error:
        raise LocalError(refusal(response))
    body: dict[str, Any] = response.json()
    return body


async def compare(terminal: Console, environment: Mapping[str, str]) -> int:
    body = request_of(environment)
    url = environment.get("API_URL") or local_settings(environment).api_url
    key = environment.get("API_KEY")
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    async with httpx.AsyncClient(base_url=url, headers=headers, timeout=TIMEOUT_SECONDS) as client:
        made = await read(client, "POST", "/comparisons/", json=body)
        path = f"/comparisons/{made['id']}"
        entries = {entry["result_id"]: entry for entry in made["entries"]}
        texts: dict[str, str] = {}
        with Live(table_of(list(entries.values()), texts), console=terminal, refresh_per_second=8) as live:
            async for event, data in events(client, f"{path}/stream"):
                id_ = data["result_id"]
                if event == "delta":
                    said = "".join(delta["text"] for delta in data["deltas"] if delta["index"] == 0)
                    texts[id_] = texts.get(id_, "") + said
                    entries[id_]["phase"] = "running"
                elif event == "restarted":
                    texts.pop(id_, None)
                else:
                    entries[id_] |= {"status": event, "phase": None}
                live.update(table_of(list(entries.values()), texts))
            final = await read(client, "GET", path)
            live.update(table_of(final["entries"], texts))
    return 0 if final["status"] == "completed" else 1


def main() -> int:
    terminal = Console()
    try:
        return asyncio.run(compare(terminal, os.environ))
    except LocalError as error:
        terminal.print(Text(str(error), style="bold red"))
    except httpx.HTTPError as error:
        terminal.print(Text(f"The service cannot be reached ({error}): `make run` starts one here.", style="bold red"))
    except KeyboardInterrupt:
        return 130
    return 1


if __name__ == "__main__":
    sys.exit(main())
