"""Jobs by PgQueuer: a row in a table of ours and one in its queue, in one transaction.

Run as a module it is the worker.
"""

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import asyncpg
from fastapi import FastAPI, HTTPException
from pgqueuer import PgQueuer
from pgqueuer.db import AsyncpgDriver
from pgqueuer.models import Job as Queued
from pgqueuer.queries import Queries
from tritonclient.grpc import aio

from bench.peers.job import Job
from bench.raw_client import messages

SLOTS = 64
TABLE = "CREATE TABLE jobs (id uuid PRIMARY KEY DEFAULT uuidv7(), model text, prompt text, max_tokens int, output text)"
ADD = "INSERT INTO jobs (model, prompt, max_tokens) VALUES ($1, $2, $3) RETURNING id::text"


@asynccontextmanager
async def lifespan(api: FastAPI) -> AsyncIterator[None]:
    async with asyncpg.create_pool(os.environ["DATABASE_URL"], max_size=16) as api.state.pool:
        yield


api = FastAPI(lifespan=lifespan)


@api.post("/jobs/{model}", status_code=202)
async def submit(model: str, job: Job) -> dict[str, str]:
    async with api.state.pool.acquire() as connection, connection.transaction():
        id_ = await connection.fetchval(ADD, model, job.prompt, job.parameters.max_tokens)
        await Queries(AsyncpgDriver(connection)).enqueue("generate", id_.encode())
    return {"id": id_}


@api.get("/jobs/{id_}")
async def state(id_: str) -> dict[str, str]:
    row = await api.state.pool.fetchrow("SELECT output IS NOT NULL AS done FROM jobs WHERE id = $1::text::uuid", id_)
    if row is None:
        raise HTTPException(404)
    return {"status": "completed" if row["done"] else "pending"}


@api.get("/done")
async def done() -> int:
    return int(await api.state.pool.fetchval("SELECT count(*) FROM jobs WHERE output IS NOT NULL"))


async def work() -> None:
    url = os.environ["TRITON_URL"]
    async with asyncpg.create_pool(os.environ["DATABASE_URL"]) as pool, aio.InferenceServerClient(url) as engine:
        queue = PgQueuer.from_asyncpg_pool(pool)

        @queue.entrypoint("generate")
        async def generate(job: Queued) -> None:
            id_ = (job.payload or b"").decode()
            row = await pool.fetchrow("SELECT model, prompt, max_tokens FROM jobs WHERE id = $1::text::uuid", id_)
            found = [each.as_numpy("text_output") async for each in messages(engine, *row, stream=False)]
            text = "".join(each[0].decode() for each in found if each is not None and len(each))
            await pool.execute("UPDATE jobs SET output = $2 WHERE id = $1::text::uuid", id_, text)

        await queue.run(batch_size=SLOTS // 2, max_concurrent_tasks=SLOTS)


async def install() -> None:
    connection = await asyncpg.connect(os.environ["DATABASE_URL"])
    await Queries(AsyncpgDriver(connection)).install()
    await connection.execute(TABLE)
    await connection.close()


if __name__ == "__main__":
    asyncio.run(install() if os.environ.get("INSTALL") else work())
