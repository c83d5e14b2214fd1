"""Jobs by Celery: RabbitMQ holds what waits, Redis the answers. `app` is Celery's, `api` FastAPI's.

Set as its documentation advises for work that must not be lost: acknowledged when done, not when taken.
"""

import asyncio
import os
import threading
from functools import cache

from celery import Celery
from celery.result import AsyncResult
from fastapi import FastAPI
from tritonclient.grpc import aio

from bench.peers.job import Job
from bench.raw_client import messages

app = Celery("jobs", broker=os.environ["BROKER_URL"], backend=os.environ["RESULT_URL"])
app.conf.update(task_acks_late=True, task_reject_on_worker_lost=True, worker_prefetch_multiplier=1)
api = FastAPI()
# One event loop for all threads of the worker, which wait for what it does.
loop = asyncio.new_event_loop()
threading.Thread(target=loop.run_forever, daemon=True).start()


@cache
def engine() -> aio.InferenceServerClient:
    return aio.InferenceServerClient(os.environ["TRITON_URL"])


async def answer(model: str, prompt: str, max_tokens: int) -> str:
    texts = [each.as_numpy("text_output") async for each in messages(engine(), model, prompt, max_tokens, stream=False)]
    return "".join(text[0].decode() for text in texts if text is not None and len(text))


@app.task
def generate(model: str, prompt: str, max_tokens: int) -> str:
    return asyncio.run_coroutine_threadsafe(answer(model, prompt, max_tokens), loop).result()


@api.post("/jobs/{model}", status_code=202)
def submit(model: str, job: Job) -> dict[str, str]:
    return {"id": generate.delay(model, job.prompt, job.parameters.max_tokens).id}


@api.get("/jobs/{id_}")
def state(id_: str) -> dict[str, str]:
    return {"status": {"SUCCESS": "completed", "FAILURE": "failed"}.get(AsyncResult(id_, app=app).state, "pending")}


@api.get("/done")
def done() -> int:
    return int(app.backend.client.dbsize())
