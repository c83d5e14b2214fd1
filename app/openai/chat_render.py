"""A result's row as OpenAI's `chat.completion`, and its deltas as the chunks of a stream."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from uuid import UUID

from app.openai import logprobs as shapes
from app.openai.answers import Face, Row, RunningUsage, StreamUsage, choices_of, model_of, usage_of
from app.openai.chat_request import KIND
from app.openai.failures import CallsUnreadable
from app.openai.ids import object_id
from app.openai.tools import rendered
from app.openai.written import Part, Reader, read
from app.prompts.toolcalls import call_id
from app.queue.ticket import FLEX
from app.services.streams import Delta


def render_chat(row: Row, request: Mapping[str, Any]) -> dict[str, Any]:
    """A completed result as OpenAI's `chat.completion`; `request` as `Prepared` has it.

    Raises:
        CallsUnreadable: a call was required, and there is none.
    """
    tools = Reader(request).tools
    choices = []
    for each in choices_of(row):
        written = read(each["text"], request)
        if tools.mode == "required" and not written.calls:
            raise CallsUnreadable(object_id(KIND, row["id"]), each["finish_reason"])
        message: dict[str, Any] = {
            "role": "assistant",
            "content": written.content if written.content or not written.calls else None,
            "refusal": None,
        }
        if written.reasoning:
            message["reasoning_content"] = written.reasoning
        if written.calls:
            message["tool_calls"] = rendered(written.calls, row["id"], each["index"])
        choices.append(
            {
                "index": each["index"],
                "message": message,
                "logprobs": _shaped(each["logprobs"], request),
                "finish_reason": tools.finish_reason(each["finish_reason"], written.calls),
            }
        )
    return {
        "id": object_id(KIND, row["id"]),
        "object": KIND,
        "created": int(row["created_at"].timestamp()),
        "model": model_of(row, request),
        "choices": choices,
        "usage": usage_of(row),
        "system_fingerprint": None,
        **_tier(request),
    }


def _tier(request: Mapping[str, Any]) -> dict[str, str]:
    """The tier that a request had, where it asked for one."""
    asked = request.get("service_tier")
    return {} if asked is None else {"service_tier": asked if asked == FLEX else "default"}


def _shaped(logprobs: list[dict[str, Any]] | None, request: Mapping[str, Any]) -> dict[str, Any] | None:
    return shapes.of_chat(logprobs, request.get("top_logprobs") or 0) if request.get("logprobs") else None


class ChatChunks:
    """Makes OpenAI's `chat.completion.chunk` objects; it has to be fed from the start."""

    def __init__(self, id_: UUID, created: int, model: str, request: Mapping[str, Any], usage: StreamUsage) -> None:
        self._id = id_
        self._head = {
            "id": object_id(KIND, id_),
            "object": "chat.completion.chunk",
            "created": created,
            "model": model,
            "system_fingerprint": None,
            **_tier(request),
        }
        self._request = request
        self._usage = usage
        self._running = RunningUsage()
        self._readers = [Reader(request) for _ in range(request.get("n") or 1)]
        self._tools = self._readers[0].tools
        self._called = [False] * len(self._readers)

    def start(self) -> list[dict[str, Any]]:
        # Some clients take an empty text for the beginning of an answer that is none but calls.
        content = "" if self._tools.mode == "none" else None
        return [self._chunk(index, {"role": "assistant", "content": content}) for index in range(len(self._readers))]

    def delta(self, delta: Delta) -> list[dict[str, Any]]:
        self._running.add(delta)
        made = self._chunks(delta.index, self._readers[delta.index].feed(delta.text))
        logprobs = _shaped(delta.logprobs, self._request) if delta.logprobs else None
        if logprobs is not None:
            made = made or [self._chunk(delta.index, {"content": ""} if self._tools.mode == "none" else {})]
            made[0]["choices"][0]["logprobs"] = logprobs
        return made

    def end(self, row: Row) -> list[dict[str, Any]]:
        self._running.end(row)
        made = []
        for each in choices_of(row):
            index = each["index"]
            made += self._chunks(index, self._readers[index].finish())
            called = self._called[index]
            if self._tools.mode == "required" and not called:
                raise CallsUnreadable(object_id(KIND, self._id), each["finish_reason"])
            made.append(self._chunk(index, {}, self._tools.finish_reason(each["finish_reason"], called)))
        if self._usage:
            made.append(self._head | {"choices": [], "usage": usage_of(row)})
        return made

    def _chunks(self, index: int, parts: list[Part]) -> list[dict[str, Any]]:
        self._called[index] = self._called[index] or any(part.kind == "call" for part in parts)
        return [self._chunk(index, self._delta(index, part)) for part in parts]

    def _delta(self, index: int, part: Part) -> dict[str, Any]:
        if part.kind == "reasoning":
            return {"reasoning_content": part.text}
        if part.kind == "content":
            return {"content": part.text}
        call: dict[str, Any] = {"index": part.call, "function": {"arguments": part.text}}
        if part.name is not None:
            call |= {"id": call_id(self._id.hex, index, part.call), "type": "function"}
            call["function"] = {"name": part.name, "arguments": part.text}
        return {"tool_calls": [call]}

    def _chunk(self, index: int, delta: dict[str, Any], reason: str | None = None) -> dict[str, Any]:
        choice = {"index": index, "delta": delta, "logprobs": None, "finish_reason": reason}
        usage = self._running.of(index) if self._usage == StreamUsage.IN_EACH else None
        return self._head | {"choices": [choice]} | ({"usage": usage} if self._usage else {})


FACE = Face(KIND, "/v1/chat/completions", render_chat, ChatChunks)
