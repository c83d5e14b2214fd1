"""`tritonclient` alone, a stream per request: python -m bench.raw_client URL MODEL REQUESTS CONCURRENCY

Prints the requests per second. The tensors are those the dispatcher sends.
"""

import asyncio
import sys
import time

import uvloop
from tritonclient.grpc import aio

from app.engines.triton.vllm import encode

PARAMETERS = {"n": 1, "temperature": 1.0, "top_p": 1.0, "max_tokens": 1}


async def drain(url: str, model: str, requests: int, concurrency: int) -> float:
    async with aio.InferenceServerClient(url) as client:

        async def one() -> None:
            async def request() -> object:
                yield {"model_name": model, "inputs": encode("ping", PARAMETERS)}

            stream = client.stream_infer(request())
            async for result, error in stream:
                assert error is None, error
                result.as_numpy("text_output")

        left = requests

        async def worker() -> None:
            nonlocal left
            while left > 0:
                left -= 1
                await one()

        await one()
        started = time.perf_counter()
        await asyncio.gather(*(worker() for _ in range(concurrency)))
        return requests / (time.perf_counter() - started)


if __name__ == "__main__":
    print(uvloop.run(drain(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))))
