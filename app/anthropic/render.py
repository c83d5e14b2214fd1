"""A result's row as Anthropic's message, and its deltas as the events of a stream."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any
from uuid import UUID

from app.anthropic.request import KIND
from app.anthropic.stops import StopSequences
from app.openai.answers import Row, choices_of, model_of
from app.openai.failures import CallsUnreadable
from app.openai.ids import object_id
from app.openai.messages import arguments_of
from app.openai.written import Part, Reader, begins_segment, read
from app.prompts.toolcalls import call_id
from app.services.streams import Delta

Event = dict[str, Any]


def render_message(row: Row, request: Mapping[str, Any]) -> dict[str, Any]:
    """A completed result as Anthropic's `message`; `request` as `prepare_message` stores it.

    Raises:
        CallsUnreadable: a call was required, and there is none.
    """
    choice = choices_of(row)[0]
    stops = StopSequences(request)
    text = stops.feed(choice["text"]) + stops.finish(choice["finish_reason"])
    blocks: list[dict[str, Any]] = []
    number = 0
    for segment in read(text, request).segments:
        if segment.kind == "call":
            block = _tool_use(row["id"], number, segment.name) | {"input": arguments_of(segment.text)}
            number += 1
        elif not segment.text.strip():
            continue
        elif segment.kind == "content":
            block = {"type": "text", "text": segment.text, "citations": None}
        else:
            block = _thinking(row["id"], "" if _omits_thinking(request) else segment.text)
        blocks.append(block)
    _require_calls(row, request, bool(number), choice["finish_reason"])
    return _head(row["id"], model_of(row, request)) | {
        "content": blocks,
        "stop_reason": _stop_reason(choice["finish_reason"], bool(number), stops.hit),
        "stop_sequence": stops.hit,
        "usage": _usage(row),
    }


class MessageEvents:
    """Makes the events of one message; it has to be fed from the start."""

    def __init__(self, id_: UUID, model: str, request: Mapping[str, Any]) -> None:
        self._id = id_
        self._model = model
        self._request = request
        self._stops = StopSequences(request)
        self._reader = Reader(request)
        self._silent = _omits_thinking(request)
        self._kind = ""
        self._index = -1
        self._open = False
        # Of a block whose text has been none but white space so far, and so may be none.
        self._space = ""
        self._calls = 0

    def start(self) -> list[Event]:
        message = _head(self._id, self._model) | {
            "content": [],
            "stop_reason": None,
            "stop_sequence": None,
            # The engine tells what the prompt had at the end, in message_delta.
            "usage": _usage({"prompt_tokens": 0, "completion_tokens": 0}),
        }
        return [{"type": "message_start", "message": message}, {"type": "ping"}]

    def delta(self, delta: Delta) -> list[Event]:
        return list(self._told(self._reader.feed(self._stops.feed(delta.text))))

    def end(self, row: Row) -> list[Event]:
        """Raises CallsUnreadable where a call was required and there is none."""
        reason = choices_of(row)[0]["finish_reason"]
        made = list(self._told(self._reader.feed(self._stops.finish(reason))))
        made += self._told(self._reader.finish())
        _require_calls(row, self._request, bool(self._calls), reason)
        made += self._closed()
        ending = {
            "stop_reason": _stop_reason(reason, bool(self._calls), self._stops.hit),
            "stop_sequence": self._stops.hit,
        }
        return [*made, {"type": "message_delta", "delta": ending, "usage": _usage(row)}, {"type": "message_stop"}]

    def _told(self, parts: list[Part]) -> Iterator[Event]:
        for part in parts:
            if begins_segment(part, self._kind):
                yield from self._closed()
                self._kind, self._space = part.kind, ""
                if part.kind == "call":
                    yield self._begun(_tool_use(self._id, self._calls, part.name or "") | {"input": {}})
                    self._calls += 1
            text = self._space + part.text
            if part.kind != "call" and not self._open:
                if not text.strip():
                    self._space = text
                    continue
                self._space = ""
                empty = {"type": "text", "text": "", "citations": None}
                yield self._begun(empty if part.kind == "content" else _thinking(self._id, "", signed=False))
            if text and not (part.kind == "reasoning" and self._silent):
                yield self._delta(part.kind, text)

    def _begun(self, block: dict[str, Any]) -> Event:
        self._index += 1
        self._open = True
        return {"type": "content_block_start", "index": self._index, "content_block": block}

    def _delta(self, kind: str, text: str) -> Event:
        if kind == "call":
            delta = {"type": "input_json_delta", "partial_json": text}
        elif kind == "content":
            delta = {"type": "text_delta", "text": text}
        else:
            delta = {"type": "thinking_delta", "thinking": text}
        return {"type": "content_block_delta", "index": self._index, "delta": delta}

    def _closed(self) -> list[Event]:
        if not self._open:
            return []
        self._open = False
        made: list[Event] = []
        if self._kind == "reasoning":
            signature = {"type": "signature_delta", "signature": object_id(KIND, self._id)}
            made.append({"type": "content_block_delta", "index": self._index, "delta": signature})
        return [*made, {"type": "content_block_stop", "index": self._index}]


def _head(id_: UUID, model: str) -> dict[str, Any]:
    return {"id": object_id(KIND, id_), "type": "message", "role": "assistant", "model": model}


def _tool_use(id_: UUID, number: int, name: str) -> dict[str, Any]:
    return {"type": "tool_use", "id": call_id(id_.hex, 0, number), "name": name}


def _thinking(id_: UUID, text: str, *, signed: bool = True) -> dict[str, Any]:
    # Clients send it back with the signature, which here tells whose it is and proves nothing.
    return {"type": "thinking", "thinking": text, "signature": object_id(KIND, id_) if signed else ""}


def _omits_thinking(request: Mapping[str, Any]) -> bool:
    return bool((request.get("thinking") or {}).get("display") == "omitted")


def _require_calls(row: Row, request: Mapping[str, Any], called: bool, reason: str) -> None:
    if not called and Reader(request).tools.mode == "required":
        raise CallsUnreadable(object_id(KIND, row["id"]), reason)


def _stop_reason(reason: str, called: bool, sequence: str | None) -> str:
    if reason == "length":
        return "max_tokens"
    if called:
        return "tool_use"
    return "end_turn" if sequence is None else "stop_sequence"


def _usage(row: Row) -> dict[str, int]:
    return {
        "input_tokens": row["prompt_tokens"] or 0,
        "output_tokens": row["completion_tokens"] or 0,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": 0,
    }
