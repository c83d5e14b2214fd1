"""Many users at once: they send tickets, note every acknowledged id, and change their minds about some."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit
from uuid import UUID, uuid4

CONNECTIONS = 48
CANCELLERS = 4
CANCELLED_SHARE = 0.04
PRIORITY_SHARE = 0.1
# Sent with an Idempotency-Key, and again with the same one until there is a 202.
KEYED_SHARE = 0.5
# Longer than any freeze of the API.
ANSWER_SECONDS = 15.0
NO_ANSWER_PAUSE = 0.5
IDLE_PAUSE = 0.05
GONE = (OSError, EOFError, TimeoutError, ValueError)


class Connection:
    """One HTTP/1.1 connection kept alive; as little as the load needs, since it shares the cores with the service."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self._host, self._port = parts.hostname or "127.0.0.1", parts.port or 80
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def request(self, method: str, path: str, body: Any = None, key: str | None = None) -> tuple[int, Any]:
        """Status and parsed body.

        Raises:
            one of GONE: no answer; whether the request was carried out is not known.
        """
        content = b"" if body is None else json.dumps(body).encode()
        head = f"{method} {path} HTTP/1.1\r\nHost: {self._host}\r\nContent-Length: {len(content)}\r\n"
        if content:
            head += "Content-Type: application/json\r\n"
        if key is not None:
            head += f"Idempotency-Key: {key}\r\n"
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                if self._streams is None:
                    self._streams = await asyncio.open_connection(self._host, self._port)
                reader, writer = self._streams
                writer.write(f"{head}\r\n".encode() + content)
                status, *lines = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
                headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
                answer = await reader.readexactly(int(headers["content-length"]))
        except BaseException:
            self.close()
            raise
        if headers.get("connection") == "close":
            self.close()
        return int(status.split()[1]), json.loads(answer)

    def close(self) -> None:
        if self._streams is not None:
            self._streams[1].close()
            self._streams = None


@dataclass(frozen=True)
class Recipe:
    """A kind of ticket; `tokens` are the fewest and the most it asks for."""

    weight: float
    model: str
    prompt: str
    tokens: tuple[int, int]


# Most are over at once; a few run about as long as a lease, so that every kill finds some of them half done.
MIXED = (
    Recipe(0.75, "noop", "Say something.", (1, 8)),
    Recipe(0.2, "tiny", "Tell me a story.", (4, 40)),
    Recipe(0.05, "tiny", "[[sim:slow=20]] Take your time.", (25, 150)),
)


@dataclass
class Tally:
    """What the users saw."""

    acknowledged: dict[UUID, float] = field(default_factory=dict)  # id -> time of its 202
    cancel_asked: set[UUID] = field(default_factory=set)
    keyed: set[str] = field(default_factory=set)  # references of tickets sent under an Idempotency-Key
    refused: set[str] = field(default_factory=set)  # references of tickets that met a 503 and were given up
    answers: Counter[int] = field(default_factory=Counter)
    unanswered: int = 0
    contexts: list[UUID] = field(default_factory=list)


class Load:
    """`rate` tickets/s as long as `room` says that the service is not too far behind."""

    def __init__(self, url: str, recipes: tuple[Recipe, ...], rate: float, seed: int, room: Callable[[], bool]) -> None:
        self.tally = Tally()
        self._url = url
        self._recipes = recipes
        self._gap = 1 / rate
        self._next = 0.0
        self._dice = random.Random(seed)
        self._room = room
        self._run = uuid4().hex
        self._count = 0
        self._ending = asyncio.Event()
        self._cancels: asyncio.Queue[tuple[float, UUID]] = asyncio.Queue()

    async def prepare(self) -> None:
        """Stores the prompts; raises one of GONE while the API is not there."""
        connection = Connection(self._url)
        for recipe in self._recipes[len(self.tally.contexts) :]:
            status, answer = await connection.request("POST", "/contexts/", {"content": recipe.prompt})
            if status != 201:
                raise ConnectionError(f"POST /contexts/ answered {status}")
            self.tally.contexts.append(UUID(answer["id"]))
        connection.close()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """At the end everybody waits for the answer to what was sent."""
        users = [asyncio.create_task(self._send_until_the_end()) for _ in range(CONNECTIONS)]
        users += [asyncio.create_task(self._cancel_until_the_end()) for _ in range(CANCELLERS)]
        patience = 0.0
        try:
            yield
            patience = 2 * ANSWER_SECONDS
        finally:
            self._ending.set()
            done, late = await asyncio.wait(users, timeout=patience)
            for user in late:
                user.cancel()
        for user in done:
            user.result()

    async def _turn(self) -> None:
        """Waits for this user's place in the stream of tickets; what an outage held up is not made up for."""
        while not self._ending.is_set():
            now = time.monotonic()
            if self._room():
                self._next = max(self._next, now) + self._gap
                await asyncio.sleep(self._next - self._gap - now)
                break
            await asyncio.sleep(IDLE_PAUSE)

    async def _send_until_the_end(self) -> None:
        connection = Connection(self._url)
        while not self._ending.is_set():
            await self._turn()
            (number,) = self._dice.choices(range(len(self._recipes)), [recipe.weight for recipe in self._recipes])
            await self._send(connection, self._recipes[number], self.tally.contexts[number])
        connection.close()

    async def _send(self, connection: Connection, recipe: Recipe, context: UUID) -> None:
        dice, tally = self._dice, self.tally
        self._count += 1
        reference = f"{self._run}-{self._count}"
        body: dict[str, Any] = {
            "parameters": {"max_tokens": dice.randint(*recipe.tokens), "ignore_eos": True},
            "client_reference": reference,
        }
        if dice.random() < PRIORITY_SHARE:
            body["priority"] = dice.randint(-3, 3)
        key = reference if dice.random() < KEYED_SHARE else None
        if key is not None:
            tally.keyed.add(reference)
        while True:
            try:
                status, answer = await connection.request("POST", f"/models/send/{recipe.model}/{context}", body, key)
                tally.answers[status] += 1
            except GONE:
                status, answer = 0, {}
                tally.unanswered += 1
            if status == 202 or key is None or status not in (0, 503):
                break
            await asyncio.sleep(NO_ANSWER_PAUSE)
        if status == 503:
            tally.refused.add(reference)
        if status != 202:
            await asyncio.sleep(NO_ANSWER_PAUSE)
            return
        id_ = UUID(answer["result_id"])
        tally.acknowledged[id_] = time.time()
        if dice.random() < CANCELLED_SHARE:
            # At once, while it is queued or just claimed, or somewhat later, when a slow one runs.
            self._cancels.put_nowait((time.monotonic() + dice.choice((0.0, dice.uniform(0, 1.5))), id_))

    async def _cancel_until_the_end(self) -> None:
        connection = Connection(self._url)
        while not (self._ending.is_set() and self._cancels.empty()):
            try:
                due, id_ = self._cancels.get_nowait()
            except asyncio.QueueEmpty:
                await asyncio.sleep(IDLE_PAUSE)
                continue
            await asyncio.sleep(due - time.monotonic())
            self.tally.cancel_asked.add(id_)
            with suppress(*GONE):
                status, _ = await connection.request("POST", f"/results/{id_}/cancel")
                self.tally.answers[status] += 1
        connection.close()
