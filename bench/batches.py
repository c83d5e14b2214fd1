"""Batches: how long 50,000 chats take to be checked and stored, and how fast they are run beside plain tickets."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import statistics
from typing import Any

import httpx

from bench.figure import Figure
from bench.measure import rounds
from bench.stack import Bench, Stopwatch, cpu_seconds
from nvidia_triton.local.settings import ROOT

LINES = int(os.environ.get("BENCH_LINES", "50000"))
CHATS = "/v1/chat/completions"


def content() -> bytes:
    return b"".join(json.dumps(_line(number)).encode() + b"\n" for number in range(LINES))


def _line(number: int) -> dict[str, Any]:
    messages = [
        {"role": "system", "content": "You are a terse assistant."},
        {"role": "user", "content": f"Say in a few words what is special about the number {number}, please."},
    ]
    body = {"model": "noop", "messages": messages, "max_tokens": 1, "temperature": 0}
    return {"custom_id": f"request-{number}", "method": "POST", "url": CHATS, "body": body}


def _with_template(bench: Bench) -> dict[str, str]:
    """The environment in which the model `noop` has the chat template of the model `demo`."""
    folder = bench.directory / "repository"
    (folder / "noop" / "1").mkdir(parents=True, exist_ok=True)
    shutil.copy(ROOT / "models" / "demo" / "1" / "chat_template.jinja", folder / "noop" / "1")
    return {"MODEL_REPOSITORY": str(folder)}


async def _created(client: httpx.AsyncClient) -> str:
    files = {"purpose": (None, "batch"), "file": ("in.jsonl", content())}
    file = (await client.post("/v1/files", files=files)).raise_for_status().json()
    body = {"input_file_id": file["id"], "endpoint": CHATS, "completion_window": "24h"}
    return str((await client.post("/v1/batches", json=body)).raise_for_status().json()["id"])


async def _until(client: httpx.AsyncClient, id_: str, *statuses: str) -> None:
    while (found := (await client.get(f"/v1/batches/{id_}")).json())["status"] not in statuses:
        assert found["status"] != "failed", found["errors"]
        await asyncio.sleep(0.05)


async def _loaded(bench: Bench, client: httpx.AsyncClient) -> float:
    """Seconds until all lines are checked and stored."""
    await bench.clear()
    await bench.execute("TRUNCATE batches, files, file_chunks CASCADE")
    id_ = await _created(client)
    with Stopwatch() as watch:
        await _until(client, id_, "in_progress")
    return watch.seconds


async def batch_load(bench: Bench) -> Figure:
    environment = _with_template(bench)
    cpu: dict[str, list[float]] = {}

    async def load(checkers: str) -> float:
        async with bench.api(BATCH_CHECKERS=checkers, **environment) as api:
            await bench.serving()
            async with httpx.AsyncClient(base_url=bench.url, timeout=60, trust_env=False) as client:
                seconds = await _loaded(bench, client)
            cpu.setdefault(checkers, []).append(cpu_seconds(api.process.pid))
            return seconds

    mine, other = await rounds(lambda: load("2"), lambda: load("0"))
    used = {name: statistics.median(values) for name, values in cpu.items()}
    return Figure(
        f"a batch of {LINES:,} chats is checked and stored, seconds",
        mine,
        "≤ 10",
        mine <= 10,
        f"{mine:.1f} s, {used['2']:.1f} s of CPU",
        f"{other:.1f} s, {used['0']:.1f} s of CPU in the API's own process",
        {"seconds": mine, "in one process": other, "cpu": cpu},
    )


async def batch_run(bench: Bench) -> Figure:
    environment = _with_template(bench)
    async with bench.api(**environment):
        await bench.serving()
        async with httpx.AsyncClient(base_url=bench.url, timeout=60, trust_env=False) as client:
            ends: list[float] = []

            async def ours() -> float:
                await _loaded(bench, client)
                id_ = (await client.get("/v1/batches")).json()["data"][0]["id"]
                await bench.execute("VACUUM ANALYZE results")
                async with bench.dispatcher(**environment):
                    seconds = await bench.settled(LINES)
                    with Stopwatch() as watch:
                        await _until(client, id_, "completed")
                    ends.append(watch.seconds)
                return LINES / seconds

            async def theirs() -> float:
                await bench.clear()
                await bench.backlog("noop", LINES // 4)
                async with bench.dispatcher(**environment):
                    return LINES // 4 / await bench.settled(LINES // 4)

            mine, other = await rounds(ours, theirs)
    end = statistics.median(ends)
    return Figure(
        f"a batch of {LINES:,} chats is run, beside a backlog of plain tickets",
        mine / other,
        "≥ 0.80",
        mine / other >= 0.8,
        f"{mine:,.0f}/s, {end:.1f} s to the end of its files",
        f"{other:,.0f}/s",
        {"seconds to the files": ends},
    )
