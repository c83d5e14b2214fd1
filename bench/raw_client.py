"""`tritonclient` alone, a stream per request: python -m bench.raw_client URL MODEL REQUESTS CONCURRENCY TOKENS STREAM

Prints the requests per second and the CPU seconds it took. The tensors are those the dispatcher sends, made and read
as `tritonclient` does it. STREAM is 1 or 0: a message for each token, or one for the whole answer.
"""

import asyncio
import json
import sys
import time
from collections.abc import AsyncIterator
from typing import Any

import numpy as np
import uvloop
from tritonclient.grpc import InferInput, InferResult, aio

FLAGS = ("exclude_input_in_output", "return_finish_reason", "return_num_input_tokens", "return_num_output_tokens")


def inputs_of(prompt: str, max_tokens: int, *, stream: bool = True) -> list[InferInput]:
    parameters = {"temperature": 1.0, "top_p": 1.0, "max_tokens": max_tokens, "ignore_eos": True}
    texts = {"text_input": prompt, "sampling_parameters": json.dumps(parameters)}
    values = {name: ("BYTES", np.array([text.encode()], dtype=np.object_)) for name, text in texts.items()}
    values |= {name: ("BOOL", np.array([True])) for name in FLAGS} | {"stream": ("BOOL", np.array([stream]))}
    inputs = []
    for name, (datatype, value) in values.items():
        inputs.append(InferInput(name, [1], datatype))
        inputs[-1].set_data_from_numpy(value)
    return inputs


async def messages(
    client: aio.InferenceServerClient, model: str, prompt: str, max_tokens: int, *, stream: bool = True
) -> AsyncIterator[InferResult]:
    """The messages of one request on a stream of its own."""

    async def request() -> AsyncIterator[dict[str, Any]]:
        yield {"model_name": model, "inputs": inputs_of(prompt, max_tokens, stream=stream)}

    async for result, error in client.stream_infer(request()):
        assert error is None, error
        yield result


async def drain(
    url: str, model: str, requests: int, concurrency: int, tokens: int, stream: bool
) -> tuple[float, float]:
    async with aio.InferenceServerClient(url) as client:

        async def one() -> None:
            async for result in messages(client, model, "ping", tokens, stream=stream):
                for name in ("text_output", "finish_reason", "num_output_tokens"):
                    result.as_numpy(name)

        left = requests

        async def worker() -> None:
            nonlocal left
            while left > 0:
                left -= 1
                await one()

        await one()
        started, used = time.perf_counter(), time.process_time()
        await asyncio.gather(*(worker() for _ in range(concurrency)))
        return requests / (time.perf_counter() - started), time.process_time() - used


if __name__ == "__main__":
    url, model, requests, concurrency, tokens, stream = sys.argv[1:]
    print(*uvloop.run(drain(url, model, int(requests), int(concurrency), int(tokens), stream == "1")))
