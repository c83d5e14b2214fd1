"""Probes of what ends: a request that is cancelled, and, when asked for, the model itself."""

from __future__ import annotations

import asyncio
import time
import urllib.error
import urllib.request
from collections.abc import Awaitable, Callable
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from nvidia_triton.contract.probe import PROMPT, Broken, Differs, Probe, Subject, Unseen
from nvidia_triton.contract.texts import FIXED, tokens
from nvidia_triton.contract.wire import read

# More than any engine makes while a cancel is on its way.
LONG = {"temperature": 0, "ignore_eos": True, "max_tokens": 1500}
SHORT = LONG | {"max_tokens": 64}
GENERATED = "vllm:generation_tokens"
POLL_SECONDS = 0.25
# The counter stands still for this long once the engine has stopped; a busy CPU makes a token in less.
STILL_SECONDS = 1.5
# An engine that counts only what has ended is cancelled after so many looks at its counter.
BEGUN_POLLS = 4
STOPPED_WITHIN_SECONDS = 20.0
# vLLM ends its engine within a few seconds, a CPU busy with much else within a minute; a model that hangs, never.
UNLOADED_WITHIN_SECONDS = 100.0
# Weights come from a disk, or from the other end of the world.
LOAD_SECONDS = 1800.0
IN_FLIGHT = 40


def _fetch(url: str) -> str:
    with urllib.request.urlopen(url, timeout=5) as answer:  # noqa: S310
        return str(answer.read().decode())


async def generated(subject: Subject) -> float:
    """Tokens that the engine says it has generated so far.

    Raises:
        Unseen: there is no such counter.
    """
    try:
        text = await asyncio.to_thread(_fetch, subject.metrics_url)
    except (OSError, ValueError):
        raise Unseen(f"no metrics at {subject.metrics_url}: name the port with METRICS_PORT") from None
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if sample.name == f"{GENERATED}_total" and sample.labels.get("model") == subject.model:
                return float(sample.value)
    raise Unseen("the engine counts nothing: REPORT_CUSTOM_METRICS is not set in the model's config.pbtxt")


async def _read_all(pairs: Any) -> int:
    """Tokens of a stream that is read to its end."""
    count = 0
    async for result, error in pairs:
        if error is not None:
            raise error
        count += tokens([read(result)])
    return count


async def _stands_still(subject: Subject) -> float:
    """What the counter shows once it no longer rises."""
    last, since = await generated(subject), time.monotonic()
    deadline = since + STOPPED_WITHIN_SECONDS
    while time.monotonic() - since < STILL_SECONDS:
        await asyncio.sleep(POLL_SECONDS)
        if (now := await generated(subject)) != last:
            last, since = now, time.monotonic()
        if time.monotonic() > deadline:
            raise Broken(f"the engine still generates {STOPPED_WITHIN_SECONDS:.0f} s after the cancel")
    return last


def cancelled(stream: bool) -> Callable[[Subject], Awaitable[str]]:
    async def run(subject: Subject) -> str:
        before = await generated(subject)
        pairs = subject.client.stream(subject.model, PROMPT, stream=stream, sampling=LONG)
        reader = asyncio.ensure_future(_read_all(pairs))
        made = 0.0
        for _ in range(BEGUN_POLLS):
            await asyncio.sleep(POLL_SECONDS)
            made = await generated(subject) - before
            if made or reader.done():
                break
        pairs.cancel()
        await asyncio.wait([reader])
        if not reader.cancelled():
            count = reader.result()
            raise Broken(f"the request ended with {count} tokens before it could be cancelled")
        count = int(await _stands_still(subject) - before)
        if count >= LONG["max_tokens"]:
            raise Broken(f"the engine went on to the end of {count} tokens")
        return f"cancelled after {made:.0f} tokens; the engine stopped at {count} of {LONG['max_tokens']}"

    return run


async def _state(subject: Subject) -> str:
    index = await subject.grpc.get_model_repository_index()
    return next((str(each.state) for each in index.models if each.name == subject.model), "")


async def _unload(subject: Subject) -> str:
    """Half of the requests are cancelled, half are read to the end; then nothing keeps the model from unloading.

    Those cancelled are long: a cancel that comes with the last message makes Triton keep the request.
    """
    streams = [
        subject.client.stream(subject.model, PROMPT, stream=True, sampling=LONG if number % 2 else SHORT)
        for number in range(IN_FLIGHT)
    ]

    async def end(number: int) -> None:
        pairs = streams[number]
        if number % 2:
            await anext(pairs)
            pairs.cancel()
        async for _, error in pairs:
            if error is not None:
                raise error

    ended = await asyncio.gather(*map(end, range(IN_FLIGHT)), return_exceptions=True)
    if failed := [each for each in ended if isinstance(each, Exception)]:
        raise failed[0]
    started = time.monotonic()
    await subject.grpc.unload_model(subject.model)
    while await _state(subject) != "UNAVAILABLE":
        if time.monotonic() - started > UNLOADED_WITHIN_SECONDS:
            raise Broken(f"the model is {await _state(subject)} after {UNLOADED_WITHIN_SECONDS:.0f} s")
        await asyncio.sleep(POLL_SECONDS)
    seconds = time.monotonic() - started
    error = await subject.client.error(subject.model, PROMPT)
    if not error.endswith(f"'{subject.model}' has no available versions"):
        raise Differs(f"another text: {error}")
    return f"{seconds:.1f} s after {IN_FLIGHT} requests, half of them cancelled"


async def _load(subject: Subject) -> str:
    started = time.monotonic()
    await subject.grpc.load_model(subject.model, client_timeout=None)
    if not await subject.grpc.is_model_ready(subject.model):
        raise Broken("the load has ended and the model is not ready")
    seconds = time.monotonic() - started
    await subject.answer(FIXED)
    return f"{seconds:.1f} s, and it answers"


PROBES = (
    Probe("cancel, streamed", "Cancels the stream; the ticket keeps what came", cancelled(stream=True)),
    Probe("cancel, unstreamed", "Cancels the stream", cancelled(stream=False)),
)
# These take the model away from others, so only who asks for them gets them.
RELOAD = (
    Probe("unload", "Lets tickets for the model wait; reads each stream to its end before closing it", _unload),
    Probe("load", "Sends the waiting tickets", _load, seconds=LOAD_SECONDS),
)
