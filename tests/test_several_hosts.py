"""Two APIs, three dispatchers and two Triton servers on one Postgres; one of each dies in the middle."""

import asyncio
import random
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest

from app.config import Settings
from nvidia_triton.local.settings import free_ports
from tests.engine import busy
from tests.servers import RunningTriton, start_triton
from tests.service import Process, Service, eventually

TICKETS = 200
USERS = 4
# Milliseconds between two tickets of a user: a load that lasts while processes die.
PACE = 20


@pytest.fixture
def doomed(tmp_path: Path) -> Iterator[RunningTriton]:
    server = start_triton(tmp_path / "doomed", ("tiny", "slow"))
    yield server
    server.kill()


class Cluster:
    def __init__(self, apis: list[tuple[Process, Service]], dispatchers: list[Process], rows: Any) -> None:
        self.apis = apis
        self.dispatchers = dispatchers
        self.rows = rows
        # Ids by the API that acknowledged them.
        self.acknowledged: dict[Service, list[str]] = {service: [] for _, service in apis}
        self.connections = 0

    @property
    def taken(self) -> int:
        return sum(map(len, self.acknowledged.values()))

    async def ready(self) -> None:
        for _, service in self.apis:

            async def answers(service: Service = service) -> bool:
                try:
                    return (await service.client.get("/health/ready")).status_code == 200
                except httpx.TransportError:
                    return False

            await eventually(answers, "the API is ready")
        for dispatcher in self.dispatchers:
            await dispatcher.says("dispatching")

    async def use(self, context: str, draw: random.Random, stop: asyncio.Event) -> None:
        """Sends through any API; one that is dead or dies with the request acknowledges nothing."""
        while not stop.is_set():
            _, service = draw.choice(self.apis)
            model, tokens = draw.choice((("tiny", 20), ("slow", 30)))
            body = {"parameters": {"max_tokens": tokens, "ignore_eos": True}}
            try:
                answer = await service.client.post(f"/models/send/{model}/{context}", json=body)
            except httpx.TransportError:
                continue
            finally:
                await asyncio.sleep(PACE / 1000)
            assert answer.status_code == 202, answer.text
            self.acknowledged[service].append(answer.json()["result_id"])

    async def more_are_taken(self, more: int) -> None:
        enough = self.taken + more

        async def taken() -> bool:
            self.connections = max(
                self.connections,
                await self.rows.fetchval(
                    "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> $1",
                    self.rows.get_server_pid(),
                ),
            )
            return self.taken >= enough

        await eventually(taken, f"{more} more tickets are taken")

    async def kill_a_dispatcher(self) -> None:
        victim = self.dispatchers[0]

        async def holds_young_claims() -> bool:
            held = await self.rows.fetchval(
                "SELECT count(*) FROM results WHERE attempt_token IS NOT NULL AND model = 'slow'"
                " AND dispatcher LIKE '%:' || $1::text AND attempt_started_at > now() - interval '0.4 seconds'",
                str(victim.process.pid),
            )
            return bool(held >= 3)

        await eventually(holds_young_claims, "the dispatcher is busy")
        victim.kill()

    async def kill_an_api(self) -> None:
        victim, service = self.apis[0]

        async def has_acknowledged() -> bool:
            return len(self.acknowledged[service]) >= 10

        await eventually(has_acknowledged, "the API took tickets")
        victim.kill()

    async def kill_a_server(self, server: RunningTriton) -> None:
        async def is_busy() -> bool:
            return await busy(server, "slow") >= 3

        await eventually(is_busy, "the server is busy")
        await asyncio.to_thread(server.kill)


async def test_one_of_each_dies_and_every_ticket_completes_once(
    make_settings: Callable[..., Settings], triton: RunningTriton, doomed: RunningTriton, rows: Any, tmp_path: Path
) -> None:
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    draw = random.Random(seed)
    settings = make_settings(triton_urls=(triton.grpc_url, doomed.grpc_url))
    async with AsyncExitStack() as stack:

        async def process(module: str, log: str, **environment: str) -> Process:
            return await stack.enter_async_context(Process(module, settings, tmp_path / log, **environment))

        dispatchers = [await process("app.worker", f"dispatcher-{n}.log") for n in range(3)]
        apis = []
        for port in free_ports(2):
            api = await process("app.main", f"api-{port}.log", API_PORT=str(port))
            client = httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=10, trust_env=False)
            apis.append((api, Service(await stack.enter_async_context(client), settings)))
        cluster = Cluster(apis, dispatchers, rows)
        await cluster.ready()
        survivor = apis[1][1]
        context = await survivor.context()

        stop = asyncio.Event()
        async with asyncio.TaskGroup() as tasks:
            for _ in range(USERS):
                tasks.create_task(cluster.use(context, random.Random(draw.random()), stop))
            deaths: list[Callable[[], Awaitable[None]]] = [
                cluster.kill_a_dispatcher,
                cluster.kill_an_api,
                partial(cluster.kill_a_server, doomed),
            ]
            draw.shuffle(deaths)
            for death in deaths:
                await cluster.more_are_taken(TICKETS // 4)
                await death()
            await cluster.more_are_taken(TICKETS // 4)
            stop.set()
        assert cluster.taken >= TICKETS

        async def all_settled() -> bool:
            return not await rows.fetchval("SELECT count(*) FROM results WHERE status = 'pending'")

        await eventually(all_settled, f"all are settled, seed {seed}", 60, pause=0.1)
        acknowledged = [id_ for ids in cluster.acknowledged.values() for id_ in ids]
        for id_ in acknowledged:
            assert (await survivor.result(id_))["status"] == "completed", f"seed {seed}"

    stored = {str(row[0]) for row in await rows.fetch("SELECT id FROM results WHERE status = 'completed'")}
    assert len(acknowledged) == len(set(acknowledged))
    assert set(acknowledged) <= stored
    not_once = await rows.fetch(
        "SELECT r.id FROM results r LEFT JOIN attempts a ON a.result_id = r.id AND a.outcome = 'completed'"
        " GROUP BY r.id HAVING count(a.number) <> 1"
    )
    assert not_once == []

    # Each death did cost something, and only what it had to.
    lost = await rows.fetch("SELECT dispatcher FROM attempts WHERE outcome = 'lease_lost'")
    assert {row["dispatcher"].rpartition(":")[2] for row in lost} == {str(dispatchers[0].process.pid)}
    retried = await rows.fetch("SELECT DISTINCT server FROM attempts WHERE outcome = 'retried'")
    assert [row["server"] for row in retried] == [doomed.grpc_url]
    assert await rows.fetchval("SELECT max(attempt_count) FROM results") <= 3
    finished_by = await rows.fetch("SELECT DISTINCT dispatcher FROM attempts WHERE outcome = 'completed'")
    assert len(finished_by) == 3
    assert 0 < cluster.connections <= 5 * (settings.database_pool_size + 1)
