"""A large batch while its processes are killed at random moments: nothing is lost, nothing is done twice."""

import asyncio
import json
import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from openai.types import Batch

from app.config import Settings
from nvidia_triton.local.settings import free_ports
from tests.service import Process, eventually


class Doomed:
    """A process that is killed and started again, under the same settings."""

    def __init__(self, module: str, settings: Settings, log: Path) -> None:
        self._given = (module, settings, log)
        self.kills = 0
        self._process = Process(*self._given)

    def kill(self) -> None:
        self._process.kill()
        self.kills += 1
        self._process = Process(*self._given)

    async def __aenter__(self) -> "Doomed":
        return self

    async def __aexit__(self, *_: object) -> None:
        self._process.kill()


@pytest.mark.parametrize(("lines", "kills"), [(3_000, 2), pytest.param(8_000, 4, marks=pytest.mark.long)])
async def test_a_large_batch_survives_the_death_of_whoever_works_on_it(
    make_settings: Callable[..., Settings], rows: Any, tmp_path: Path, lines: int, kills: int
) -> None:
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    draw = random.Random(seed)
    (port,) = free_ports(1)
    settings = make_settings(api_port=port, model_concurrency=200, server_concurrency=200)
    content = b"".join(
        json.dumps(
            {
                "custom_id": f"request {number}",
                "method": "POST",
                "url": "/v1/completions",
                "body": {"model": "noop", "prompt": f"prompt {number}", "max_tokens": 1},
            }
        ).encode()
        + b"\n"
        for number in range(lines)
    )
    async with (
        Doomed("app.main", settings, tmp_path / "api.log") as api,
        Doomed("app.worker", settings, tmp_path / "dispatcher.log") as dispatcher,
        openai.AsyncOpenAI(
            base_url=f"http://127.0.0.1:{port}/v1",
            api_key="sk-none",
            max_retries=20,
            timeout=60,
            http_client=httpx.AsyncClient(trust_env=False, timeout=60),
        ) as client,
    ):
        file = await client.files.create(file=("in.jsonl", content), purpose="batch")
        assert file.bytes == len(content)
        batch = await client.batches.create(input_file_id=file.id, endpoint="/v1/completions", completion_window="24h")
        await asyncio.sleep(draw.uniform(0, 1.5))
        stored = await rows.fetchval("SELECT count(*) FROM results")
        assert stored in (0, lines)
        api.kill()

        async def state() -> Any:
            return await rows.fetchrow(
                """SELECT b.status, (SELECT count(*) FROM results r WHERE r.batch_id = b.id) AS lines,
                          (SELECT count(*) FROM results r WHERE r.batch_id = b.id AND r.status = 'completed') AS done
                   FROM batches b"""
            )

        async def reached(done: int) -> bool:
            found = await state()
            assert found["lines"] in (0, lines)
            return found["done"] >= done or found["status"] == "completed"

        for kill in sorted(draw.randrange(lines) for _ in range(kills)):
            await eventually(lambda kill=kill: reached(kill), f"{kill} lines are done", 180, 0.3)  # type: ignore[misc]
            dispatcher.kill()
            if draw.random() < 0.3:
                api.kill()

        async def finalizing() -> bool:
            return (await state())["status"] in ("finalizing", "completed")

        await eventually(finalizing, "all lines are done", 180, 0.05)
        dispatcher.kill()

        async def completed() -> Batch | None:
            found = await client.batches.retrieve(batch.id)
            return found if found.status == "completed" else None

        batch = await eventually(completed, "the batch ends", 60, 0.2)
        assert batch.output_file_id is not None
        answers = [json.loads(text) for text in (await client.files.content(batch.output_file_id)).text.splitlines()]
        if batch.error_file_id is not None:
            errors = (await client.files.content(batch.error_file_id)).text.splitlines()
            answers += [json.loads(text) for text in errors]
    counted = Counter(answer["custom_id"] for answer in answers)
    assert set(counted) == {f"request {number}" for number in range(lines)}
    assert set(counted.values()) == {1}
    assert await rows.fetchval("SELECT count(*) FROM files WHERE purpose = 'batch_output'") == 1 + bool(
        batch.error_file_id
    )
    assert await rows.fetchval("SELECT sum(requests) FROM usage") == lines
    settled = await rows.fetch(
        """SELECT n, count(*) FROM (SELECT count(*) AS n FROM attempts
           WHERE outcome IN ('completed', 'failed') GROUP BY result_id) a GROUP BY n"""
    )
    assert [tuple(row) for row in settled] == [(1, lines)]
    orphans = "SELECT count(*) FROM file_chunks c LEFT JOIN files f ON f.id = c.file_id WHERE f.id IS NULL"
    assert await rows.fetchval(orphans) == 0
    assert (api.kills, dispatcher.kills) >= (1, kills + 1)
