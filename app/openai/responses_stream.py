"""The events of a response as it is generated, each with a number that is the same whoever reads it and how often.

0, 1           response.created, response.in_progress
2, 3           output_item.added and content_part.added of the message, sent just before its first text
4 + s          the text that the stored event `s` adds; a number is missing where that is none
4 + end, ...   what the final result tells: the ends of the message, function calls, the response
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any
from uuid import UUID

from app.openai.responses_render import (
    head_of,
    logprobs_of,
    message_item,
    output_of,
    part_of,
    render_response,
)
from app.openai.responses_request import tool_use
from app.prompts.toolcalls import ToolCallStream
from app.queue.ticket import Status
from app.services.streams import End, Event

BEFORE_TEXT = 4

Numbered = tuple[int, dict[str, Any]]


class ResponseEvents:
    """Makes the events of one response; it has to be fed from the start to know what is text and what a call."""

    def __init__(self, id_: UUID, created: int, model: str, request: Mapping[str, Any]) -> None:
        self._id = id_
        self._request = request
        self._head = (id_, created, model, request)
        self._tools = tool_use(request)
        self._calls = ToolCallStream(self._tools.functions)
        self._place = {"item_id": f"msg_{id_.hex}", "output_index": 0, "content_index": 0}
        self._opened = False
        self._sent = 0

    def start(self) -> Iterator[Numbered]:
        status = "queued" if self._request.get("background") else "in_progress"
        yield 0, {"type": "response.created", "response": head_of(*self._head, status)}
        yield 1, {"type": "response.in_progress", "response": head_of(*self._head, "in_progress")}

    def event(self, event: Event) -> Iterator[Numbered]:
        # There is one choice, so one delta.
        for delta in event.deltas:
            text = delta.text
            if self._tools.forced:
                text = ""
            elif self._tools.parsed:
                text = self._calls.feed(text)
            if text:
                yield from self._open()
                self._sent += len(text)
                logprobs = logprobs_of(delta.logprobs, self._request)
                kind = "response.output_text.delta"
                yield (
                    BEFORE_TEXT + event.sequence,
                    {"type": kind, **self._place, "delta": text, "logprobs": logprobs},
                )

    def end(self, end: End) -> Iterator[Numbered]:
        items = output_of(end.row, self._request) if end.row["status"] == Status.COMPLETED else []
        if items and items[0]["type"] == "message":
            yield from self._open()
        yield from enumerate(self._ending(items, end.row), BEFORE_TEXT + end.sequence)

    def _ending(self, items: list[dict[str, Any]], row: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        for index, item in enumerate(items):
            if item["type"] == "message":
                yield from self._message_ends(item)
            else:
                yield from _call(item, index)
        response = render_response(row, self._request)
        # There is no event of its own for `cancelled`.
        kind = response["status"] if response["status"] in ("completed", "incomplete") else "failed"
        yield {"type": f"response.{kind}", "response": response}

    def _message_ends(self, item: dict[str, Any]) -> Iterator[dict[str, Any]]:
        part = item["content"][0]
        if rest := part["text"][self._sent :]:
            yield {"type": "response.output_text.delta", **self._place, "delta": rest, "logprobs": []}
        yield {"type": "response.output_text.done", **self._place, "text": part["text"], "logprobs": part["logprobs"]}
        yield {"type": "response.content_part.done", **self._place, "part": part}
        yield {"type": "response.output_item.done", "output_index": 0, "item": item}

    def _open(self) -> Iterator[Numbered]:
        if not self._opened:
            self._opened = True
            item = message_item(self._id, "in_progress", [])
            yield 2, {"type": "response.output_item.added", "output_index": 0, "item": item}
            yield 3, {"type": "response.content_part.added", **self._place, "part": part_of("", [])}


def _call(item: dict[str, Any], index: int) -> Iterator[dict[str, Any]]:
    place, arguments = {"item_id": item["id"], "output_index": index}, item["arguments"]
    begun = item | {"arguments": "", "status": "in_progress"}
    yield {"type": "response.output_item.added", "output_index": index, "item": begun}
    yield {"type": "response.function_call_arguments.delta", **place, "delta": arguments}
    yield {"type": "response.function_call_arguments.done", **place, "name": item["name"], "arguments": arguments}
    yield {"type": "response.output_item.done", "output_index": index, "item": item}
