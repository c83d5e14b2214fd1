"""A client of a stream that keeps what it was sent, and goes on where it was cut."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import httpx

from tests.service import Service


@dataclass(frozen=True)
class Message:
    """One server-sent event."""

    id: int | None
    event: str
    data: dict[str, Any]


async def messages(answer: httpx.Response) -> AsyncIterator[Message]:
    fields: dict[str, str] = {}
    async for line in answer.aiter_lines():
        if line:
            name, _, value = line.partition(":")
            if name:
                fields[name] = value.lstrip(" ")
        elif "data" in fields:
            id_ = fields.get("id")
            yield Message(None if id_ is None else int(id_), fields["event"], json.loads(fields["data"]))
            fields = {}
        else:
            fields = {}


@dataclass
class Follower:
    result_id: str
    seen: list[Message] = field(default_factory=list)
    result: dict[str, Any] | None = None
    error: dict[str, Any] | None = None

    @property
    def cursor(self) -> int | None:
        return self.seen[-1].id if self.seen else None

    async def follow(self, service: Service, most: int | None = None) -> Follower:
        """Reads to the end of the stream, or `most` messages, after the last one it has."""
        headers = {} if self.cursor is None else {"Last-Event-ID": str(self.cursor)}
        url = f"/results/{self.result_id}/stream"
        async with service.client.stream("GET", url, headers=headers, timeout=30) as answer:
            assert answer.status_code == 200, await answer.aread()
            assert answer.headers["content-type"].startswith("text/event-stream")
            left = most
            async for message in messages(answer):
                if message.event in ("delta", "outputs"):
                    self.seen.append(message)
                elif message.event == "error":
                    self.error = message.data
                else:
                    assert message.event == message.data["status"]
                    self.result = message.data
                left = None if left is None else left - 1
                if left == 0:
                    break
        return self

    def text(self, index: int = 0) -> str:
        return "".join(d["text"] for m in self.seen for d in m.data["deltas"] if d["index"] == index)

    def outputs(self) -> list[dict[str, Any]]:
        return [output for m in self.seen for output in m.data["outputs"]]

    def logprobs(self, index: int = 0) -> list[dict[str, Any]]:
        return [
            entry
            for m in self.seen
            for d in m.data["deltas"]
            if d["index"] == index
            for entry in d.get("logprobs") or ()
        ]

    def check(self) -> dict[str, Any]:
        """Nothing is missing, nothing came twice; returns the result."""
        assert self.error is None, self.error
        assert self.result is not None, "the stream has not ended"
        numbers = [message.id for message in self.seen]
        assert numbers == sorted(set(numbers))
        assert [message.data["sequence"] for message in self.seen] == numbers
        for output in self.result["outputs"] or [{"index": 0, "text": self.result["output"] or ""}]:
            assert self.text(output["index"]) == output["text"]
            if output.get("logprobs"):
                assert self.logprobs(output["index"]) == output["logprobs"]
        return self.result


async def streamed(service: Service, prompt: str, model: str = "tiny", **parameters: Any) -> Follower:
    """Sends a prompt and follows it to its end."""
    id_ = await service.send(prompt=prompt, model=model, parameters=parameters, stream=True)
    return await Follower(id_).follow(service)
