"""A probe asks a server one thing; its outcome says how the answer compares to that of NVIDIA's vLLM backend."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from tritonclient.grpc import aio as triton

from nvidia_triton.contract.wire import Client, Message

PROMPT = "Tell me about the harbour."
# The longest a probe may take: a small model on a busy CPU needs half of it.
SECONDS = 120.0


class Verdict(StrEnum):
    WORKS = "works"
    DIFFERS = "differs"  # not as on the vLLM backend, and the service copes with it
    BROKEN = "broken"
    UNSEEN = "not seen"  # it could not be asked


class Differs(Exception):
    """The answer is another than that of the vLLM backend; the text says what came."""


class Broken(Exception):
    """The server does not do it; the text says what came."""


class Unseen(Exception):
    """It cannot be told from outside; the text says what is missing."""


@dataclass(frozen=True)
class Subject:
    """The model that is asked."""

    grpc: triton.InferenceServerClient
    model: str
    metrics_url: str

    @property
    def client(self) -> Client:
        return Client(self.grpc)

    async def answer(self, sampling: dict[str, Any], prompt: str = PROMPT) -> Message:
        """The one message of a request that is not streamed.

        Raises:
            Broken: there is not exactly one.
        """
        messages = await self.client.ask(self.model, prompt, sampling=sampling)
        if len(messages) != 1 or not messages[0].final:
            raise Broken(f"{len(messages)} messages came for a request that was not streamed")
        return messages[0]

    async def streamed(self, sampling: dict[str, Any], prompt: str = PROMPT) -> list[Message]:
        return await self.client.ask(self.model, prompt, stream=True, sampling=sampling)


@dataclass(frozen=True)
class Probe:
    """`run` returns what it saw, or raises Differs, Broken or Unseen.

    `service` is what the service does about this. Where it does not rely on the server at all, `needed` is false.
    """

    name: str
    service: str
    run: Callable[[Subject], Awaitable[str]]
    needed: bool = True
    seconds: float = SECONDS


@dataclass(frozen=True)
class Outcome:
    probe: Probe
    verdict: Verdict
    seen: str

    @property
    def harmful(self) -> bool:
        """Whether the service suffers from it."""
        return self.verdict is Verdict.BROKEN and self.probe.needed


async def carry_out(probe: Probe, subject: Subject) -> Outcome:
    """Runs a probe; whatever it raises is an outcome too."""
    try:
        async with asyncio.timeout(probe.seconds):
            return Outcome(probe, Verdict.WORKS, await probe.run(subject))
    except Differs as error:
        return Outcome(probe, Verdict.DIFFERS, str(error))
    except Unseen as error:
        return Outcome(probe, Verdict.UNSEEN, str(error))
    except Broken as error:
        return Outcome(probe, Verdict.BROKEN, str(error))
    except TimeoutError:
        return Outcome(probe, Verdict.BROKEN, f"no answer within {probe.seconds:.0f} s")
    except Exception as error:
        # A refusal, a lost connection, a message without a tensor: the answer to this probe is that it fails.
        return Outcome(probe, Verdict.BROKEN, first_line(str(error)) or type(error).__name__)


def first_line(text: str) -> str:
    return next((line.strip() for line in text.splitlines() if line.strip()), "")
