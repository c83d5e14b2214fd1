"""The main job once: store a prompt, send it to a model, wait for the answer. `make demo` runs it.

Against API_URL, else the stack that runs here, else one it starts on free ports and stops again.
"""

import asyncio
import contextlib
import os
import signal
import sys
import time
from collections.abc import AsyncIterator
from datetime import datetime
from typing import Any
from urllib.parse import quote

import httpx
from rich.console import Console as Terminal
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from nvidia_triton.local.banner import PARAMETERS, QUESTION, prompt_for
from nvidia_triton.local.process import Console, LocalError
from nvidia_triton.local.run import only_one
from nvidia_triton.local.settings import free_ports, local_settings
from nvidia_triton.local.stack import Stack
from nvidia_triton.local.trial import find_trial

PORTS = ("API_PORT", "POSTGRES_PORT", "TRITON_HTTP_PORT", "TRITON_GRPC_PORT", "TRITON_METRICS_PORT")
WAIT_SECONDS = 30
GIVE_UP_SECONDS = 120.0


async def is_up(url: str) -> bool:
    try:
        async with httpx.AsyncClient(base_url=url, timeout=3) as client:
            return (await client.get("/health/live")).is_success
    except httpx.HTTPError:
        return False


@contextlib.asynccontextmanager
async def service(terminal: Terminal) -> AsyncIterator[str]:
    """The URL of an API to talk to."""
    if named := os.environ.get("API_URL"):
        if not await is_up(named):
            raise LocalError(f"Nothing answers at API_URL={named}: correct it, or unset it.")
        yield named
        return
    settings = local_settings(os.environ)
    if await is_up(settings.api_url):
        yield settings.api_url
        return
    free = free_ports(len(PORTS))
    ports = {name: os.environ.get(name) or str(port) for name, port in zip(PORTS, free, strict=True)}
    settings = local_settings({**os.environ, **ports})
    with only_one(settings):
        log = settings.local_dir / "demo.log"
        with log.open("wb") as file:
            stack = Stack(settings, Console(file.fileno(), colour=False))
            try:
                with terminal.status("Starting Postgres, Triton, the dispatcher and the API"):
                    await started(stack)
                yield settings.api_url
            except LocalError as error:
                raise LocalError(f"{error} (The lines are in {log}.)") from None
            finally:
                with terminal.status("Stopping them again"):
                    await stack.stop()


async def started(stack: Stack) -> None:
    """Starts the stack, or raises what kept it from starting."""
    starting = asyncio.create_task(stack.start())
    try:
        await asyncio.wait({starting, stack.failure}, return_when=asyncio.FIRST_COMPLETED)
        if stack.failure.done():
            stack.failure.result()
        await starting
    finally:
        starting.cancel()
        await asyncio.gather(starting, return_exceptions=True)


async def generate(client: httpx.AsyncClient, terminal: Terminal, model: str) -> tuple[dict[str, Any], float]:
    """Returns the final result and the seconds from sending to reading it."""
    context = await answer(client.post("/contexts/", json={"content": prompt_for(model)}))
    with terminal.status("") as status:
        begin = time.monotonic()
        path = f"/models/send/{quote(model, safe='')}/{context['id']}"
        ticket = await answer(client.post(path, json={"parameters": PARAMETERS}))
        status.update(f"Ticket {ticket['result_id']} is {ticket['status']}")
        while time.monotonic() - begin < GIVE_UP_SECONDS:
            headers = {"Prefer": f"wait={WAIT_SECONDS}"}
            result = await answer(client.get(f"/results/{ticket['result_id']}", headers=headers))
            if result["status"] != "pending":
                return result, time.monotonic() - begin
    raise LocalError(f"The result {ticket['result_id']} is still pending after {GIVE_UP_SECONDS:.0f} s.")


async def answer(request: Any) -> dict[str, Any]:
    response: httpx.Response = await request
    if response.is_error:
        raise LocalError(f"{response.request.url} answers {response.status_code}: {response.text}")
    body: dict[str, Any] = response.json()
    return body


def moment(text: str | None) -> float:
    """Seconds since the epoch, 0 for none."""
    return datetime.fromisoformat(text).timestamp() if text else 0.0


def render(result: dict[str, Any], model: str, seconds: float) -> Panel:
    facts = Table.grid(padding=(0, 2))
    facts.add_column(style="bold")
    usage = result["usage"]
    error = result["error"] or {}
    facts.add_row("prompt", Text(QUESTION))
    facts.add_row("answer", Text(result["output"] or error.get("message", "")))
    facts.add_row("tokens", f"{usage['prompt_tokens']} in, {usage['completion_tokens']} out")
    created, began, ended = (moment(result[name]) for name in ("created_at", "started_at", "completed_at"))
    queued, ran = (began - created, ended - began) if began else (ended - created, 0.0)
    facts.add_row("time", f"{seconds:.2f} s from sending to the answer: {queued:.2f} s queued, {ran:.2f} s generating")
    colour = "green" if result["status"] == "completed" else "red"
    return Panel(facts, title=f"{model}: {result['status']}", border_style=colour, expand=False)


async def demo(terminal: Terminal) -> int:
    task = asyncio.current_task()
    assert task is not None
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        asyncio.get_running_loop().add_signal_handler(number, task.cancel)
    async with service(terminal) as url:
        async with httpx.AsyncClient(base_url=url, timeout=WAIT_SECONDS + 10) as client:
            trial = await find_trial(url)
            if not trial.model:
                raise LocalError(trial.instead)
            result, seconds = await generate(client, terminal, trial.model)
        terminal.print(render(result, trial.model, seconds))
    return 0 if result["status"] == "completed" else 1


def main() -> int:
    terminal = Terminal()
    try:
        return asyncio.run(demo(terminal))
    except LocalError as error:
        terminal.print(Text(str(error), style="bold red"))
    except httpx.HTTPError as error:
        terminal.print(Text(f"The API stopped answering: {error}", style="bold red"))
    except asyncio.CancelledError:
        return 130
    return 1


if __name__ == "__main__":
    sys.exit(main())
