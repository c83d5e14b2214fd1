"""Batches beside the tickets, one after the other: each line has to be in their files once, whoever was killed."""

from __future__ import annotations

import asyncio
import json
import random
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

import httpx

from tests.crash.load import ANSWER_SECONDS, NO_ANSWER_PAUSE

LINES = (300, 900)
CANCELLED_SHARE = 0.25
LOOK_SECONDS = 0.3
FINAL = ("completed", "failed", "expired", "cancelled")
ENDPOINT = "/v1/completions"


@dataclass
class Sent:
    """A batch, and what its files hold in the end."""

    id: str
    lines: int
    cancelled: bool = False
    status: str = ""
    answers: list[str] = field(default_factory=list)
    errors: list[tuple[str, str]] = field(default_factory=list)  # custom_id and code


class BatchLoad:
    """Sends batches of `model` for an owner of its own, which takes turns with that of the tickets."""

    def __init__(self, url: str, model: str, seed: int) -> None:
        self.sent: list[Sent] = []
        self._model = model
        self._dice = random.Random(seed)
        self._client = httpx.AsyncClient(base_url=url, timeout=ANSWER_SECONDS, trust_env=False, verify=False)
        self._ending = asyncio.Event()

    @asynccontextmanager
    async def running(self, patience: float) -> AsyncIterator[None]:
        """In the end it waits at most `patience` seconds for the last batch."""
        task = asyncio.create_task(self._run())
        try:
            yield
            self._ending.set()
            done, _ = await asyncio.wait({task}, timeout=patience)
            for each in done:
                each.result()
        finally:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
            await self._client.aclose()

    async def _run(self) -> None:
        key = (await self._insist("POST", "/keys/", json={"name": "batches"}))["key"]
        self._client.headers["Authorization"] = f"Bearer {key}"
        await self._one()
        while not self._ending.is_set():
            await self._one()

    async def _one(self) -> None:
        count = self._dice.randint(*LINES)
        body = {"model": self._model, "prompt": "Say something.", "max_tokens": 2}
        content = b"".join(
            json.dumps({"custom_id": f"{number}", "method": "POST", "url": ENDPOINT, "body": body}).encode() + b"\n"
            for number in range(count)
        )
        files = {"purpose": (None, "batch"), "file": ("in.jsonl", content)}
        file = await self._insist("POST", "/v1/files", files=files)
        asked = {"input_file_id": file["id"], "endpoint": ENDPOINT, "completion_window": "24h"}
        sent = Sent((await self._insist("POST", "/v1/batches", json=asked))["id"], count)
        self.sent.append(sent)
        cancel_at = self._dice.randrange(count) if self._dice.random() < CANCELLED_SHARE else count
        while (batch := await self._insist("GET", f"/v1/batches/{sent.id}"))["status"] not in FINAL:
            if batch["status"] == "in_progress" and batch["request_counts"]["completed"] > cancel_at:
                sent.cancelled = True
                await self._insist("POST", f"/v1/batches/{sent.id}/cancel", but=(409,))
            await asyncio.sleep(LOOK_SECONDS)
        answers, errors = [await self._lines(batch[name]) for name in ("output_file_id", "error_file_id")]
        sent.answers = [line["custom_id"] for line in answers]
        sent.errors = [(line["custom_id"], _code(line)) for line in errors]
        sent.status = batch["status"]

    async def _lines(self, file_id: str | None) -> list[Any]:
        if file_id is None:
            return []
        return [json.loads(line) for line in (await self._insist("GET", f"/v1/files/{file_id}/content")).splitlines()]

    async def _insist(self, method: str, path: str, *, but: Sequence[int] = (), **options: Any) -> Any:
        """The answer, whoever is killed meanwhile: asked again under one Idempotency-Key, until there is one."""
        headers = {"Idempotency-Key": uuid4().hex}
        while True:
            try:
                answer = await self._client.request(method, path, headers=headers, **options)
                if answer.status_code != 503 and answer.status_code not in but:
                    answer.raise_for_status()
                if answer.status_code != 503:
                    return answer.text if path.endswith("/content") else answer.json()
            except httpx.TransportError:
                pass
            await asyncio.sleep(NO_ANSWER_PAUSE)


def _code(line: dict[str, Any]) -> str:
    return str((line["error"] or line["response"]["body"]["error"])["code"])


def wrong_with(sent: Sent) -> list[str]:
    """What its files should not be."""
    if sent.status not in (("completed", "cancelled") if sent.cancelled else ("completed",)):
        return [f"is {sent.status or 'not at its end'}"]
    found = []
    counted = Counter([*sent.answers, *(name for name, _ in sent.errors)])
    if lost := {str(number) for number in range(sent.lines)} - counted.keys():
        found.append(f"lacks {len(lost)} of {sent.lines} lines, for example {min(lost)}")
    if twice := [name for name, times in counted.items() if times > 1]:
        found.append(f"has {len(twice)} lines more than once, for example {twice[0]}")
    if sent.answers != sorted(sent.answers, key=int):
        found.append("has its lines in another order than its input")
    codes = Counter(code for _, code in sent.errors if not (sent.status == "cancelled" and code == "batch_cancelled"))
    return found + [f"has {times} lines that failed with {code}" for code, times in codes.items()]
