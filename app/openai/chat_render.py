"""A result's row as OpenAI's `chat.completion`, and its deltas as the chunks of a stream."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from uuid import UUID

from app.openai import logprobs as shapes
from app.openai.answers import Face, Row, choices_of, model_of, usage_of
from app.openai.chat_request import KIND
from app.openai.ids import object_id
from app.openai.tools import ToolUse, rendered
from app.prompts.toolcalls import ToolCallStream
from app.services.streams import Delta


def render_chat(row: Row, request: Mapping[str, Any]) -> dict[str, Any]:
    """A completed result as OpenAI's `chat.completion`; `request` as `Prepared` has it."""
    tools = ToolUse(request)
    choices = []
    for each in choices_of(row):
        parsed = tools.read(each["text"])
        message: dict[str, Any] = {
            "role": "assistant",
            "content": parsed.content if parsed.content or not parsed.calls else None,
            "refusal": None,
        }
        if parsed.calls:
            message["tool_calls"] = rendered(parsed.calls, row["id"], each["index"])
        choices.append(
            {
                "index": each["index"],
                "message": message,
                "logprobs": _shaped(each["logprobs"], request),
                "finish_reason": tools.finish_reason(each["finish_reason"], parsed.calls),
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
    }


def _shaped(logprobs: list[dict[str, Any]] | None, request: Mapping[str, Any]) -> dict[str, Any] | None:
    return shapes.of_chat(logprobs, request.get("top_logprobs") or 0) if request.get("logprobs") else None


class ChatChunks:
    """Makes OpenAI's `chat.completion.chunk` objects."""

    def __init__(
        self, id_: UUID, created: int, model: str, request: Mapping[str, Any], usage: bool, resumed: bool
    ) -> None:
        self._id = id_
        self._head = {
            "id": object_id(KIND, id_),
            "object": "chat.completion.chunk",
            "created": created,
            "model": model,
            "system_fingerprint": None,
        }
        self._request = request
        self._tools = ToolUse(request)
        self._usage = usage
        self._resumed = resumed
        self._count = request.get("n") or 1
        self._streams = [ToolCallStream(self._tools.functions) for _ in range(self._count)]
        # What came after the point where a stream with tools is resumed.
        self._after = [""] * self._count

    def start(self) -> list[dict[str, Any]]:
        if self._resumed:
            return []
        return [self._chunk(index, {"role": "assistant", "content": ""}) for index in range(self._count)]

    def delta(self, delta: Delta) -> list[dict[str, Any]]:
        text = delta.text
        if self._tools.parsed or self._tools.forced:
            if self._resumed:
                self._after[delta.index] += text
                text = ""
            elif self._tools.parsed:
                text = self._streams[delta.index].feed(text)
            else:
                text = ""
        logprobs = _shaped(delta.logprobs, self._request) if delta.logprobs else None
        if not text and logprobs is None:
            return []
        return [self._chunk(delta.index, {"content": text}, logprobs=logprobs)]

    def end(self, row: Row) -> list[dict[str, Any]]:
        made = []
        for each in choices_of(row):
            index = each["index"]
            content, calls = self._rest(index, each["text"])
            if content:
                made.append(self._chunk(index, {"content": content}))
            for number, call in enumerate(rendered(calls, self._id, index)):
                made.append(self._chunk(index, {"tool_calls": [{"index": number, **call}]}))
            made.append(self._chunk(index, {}, self._tools.finish_reason(each["finish_reason"], calls)))
        if self._usage:
            made.append(self._head | {"choices": [], "usage": usage_of(row)})
        return made

    def _rest(self, index: int, text: str) -> tuple[str, list[Any]]:
        if self._tools.forced:
            parsed = self._tools.read(text)
            return parsed.content, parsed.calls
        if not self._tools.parsed:
            return "", []
        stream, passed = self._streams[index], ""
        if self._resumed:
            after = self._after[index]
            stream.feed(text[: len(text) - len(after)])
            passed = stream.feed(after)
        parsed = self._tools.bounded(stream.finish())
        return passed + parsed.content, parsed.calls

    def _chunk(
        self, index: int, delta: dict[str, Any], reason: str | None = None, logprobs: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        choice = {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": reason}
        return self._head | {"choices": [choice]} | ({"usage": None} if self._usage else {})


FACE = Face(KIND, "/v1/chat/completions", render_chat, ChatChunks)
