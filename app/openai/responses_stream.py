"""The events of a response as it is generated, each with a number that is the same whoever reads it and how often.

0, 1           response.created, response.in_progress
2 + 1000 s     the first of what the stored event `s` adds: texts, arguments, the ends and beginnings of items
2 + 1000 end   the first of what the final result tells: the end of the last item, the response
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any
from uuid import UUID

from app.openai.responses_render import (
    Naming,
    head_of,
    logprobs_of,
    output_of,
    part_of,
    reasoning_part,
    render_response,
)
from app.openai.responses_request import as_chat
from app.openai.written import Part, Reader, begins_segment
from app.queue.ticket import Status
from app.services.streams import End, Event

BEFORE_TEXT = 2
STRIDE = 1000
# The names of the deltas of each kind of item, and of their part where they have parts.
TEXTS = {"content": "output_text", "reasoning": "reasoning_text"}

Numbered = tuple[int, dict[str, Any]]


def sequence_of(number: int) -> int:
    """The stored event that the event `number` was made of."""
    return (number - BEFORE_TEXT) // STRIDE


class ResponseEvents:
    """Makes the events of one response; it has to be fed from the start to know what is text and what a call."""

    def __init__(self, id_: UUID, created: int, model: str, request: Mapping[str, Any]) -> None:
        self._request = request
        self._head = (id_, created, model, request)
        self._reader = Reader(as_chat(request))
        self._naming = Naming(id_)
        self._last = BEFORE_TEXT - 1
        # The item under way: its kind, what it began as, its place and its text.
        self._kind = ""
        self._item: dict[str, Any] = {}
        self._index = -1
        self._text = ""

    def start(self) -> Iterator[Numbered]:
        status = "queued" if self._request.get("background") else "in_progress"
        yield 0, {"type": "response.created", "response": head_of(*self._head, status)}
        yield 1, {"type": "response.in_progress", "response": head_of(*self._head, "in_progress")}

    def event(self, event: Event) -> Iterator[Numbered]:
        # There is one choice, so one delta.
        made = (
            each
            for delta in event.deltas
            for each in self._told(self._reader.feed(delta.text), logprobs_of(delta.logprobs, self._request))
        )
        return self._number(event.sequence, made)

    def end(self, end: End) -> Iterator[Numbered]:
        return self._number(end.sequence, self._ending(end.row))

    def _number(self, sequence: int, made: Iterator[dict[str, Any]]) -> Iterator[Numbered]:
        self._last = max(self._last, BEFORE_TEXT + sequence * STRIDE - 1)
        for document in made:
            self._last += 1
            yield self._last, document

    def _ending(self, row: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        if row["status"] == Status.COMPLETED:
            yield from self._told(self._reader.finish(), [])
            items = output_of(row, self._request)
            if items and self._index < 0:
                yield from self._begin(Part("content", ""))
            if items:
                yield from self._done(items[-1])
        response = render_response(row, self._request)
        # There is no event of its own for `cancelled`.
        kind = response["status"] if response["status"] in ("completed", "incomplete") else "failed"
        yield {"type": f"response.{kind}", "response": response}

    def _told(self, parts: list[Part], logprobs: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        for part in parts:
            if begins_segment(part, self._kind):
                if self._index >= 0:
                    yield from self._done(self._whole())
                yield from self._begin(part)
            if not part.text:
                continue
            self._text += part.text
            if part.kind == "call":
                kind = "response.function_call_arguments.delta"
                yield {"type": kind, "item_id": self._item["id"], "output_index": self._index, "delta": part.text}
                continue
            delta = {"type": f"response.{TEXTS[part.kind]}.delta", **self._place(), "delta": part.text}
            if part.kind == "content":
                delta["logprobs"], logprobs = logprobs, []
            yield delta

    def _begin(self, part: Part) -> Iterator[dict[str, Any]]:
        self._kind, self._text = part.kind, ""
        self._index += 1
        self._item = self._naming.item(part.kind, part.name or "", "", "in_progress")
        begun = self._item | ({} if part.kind == "call" else {"content": []})
        yield {"type": "response.output_item.added", "output_index": self._index, "item": begun}
        if part.kind in TEXTS:
            empty = part_of("", []) if part.kind == "content" else reasoning_part("")
            yield {"type": "response.content_part.added", **self._place(), "part": empty}

    def _whole(self) -> dict[str, Any]:
        """The item under way as it has become."""
        if self._kind == "call":
            return self._item | {"arguments": self._text, "status": "completed"}
        part = part_of(self._text, []) if self._kind == "content" else reasoning_part(self._text)
        return self._item | {"content": [part], "status": "completed"}

    def _done(self, item: dict[str, Any]) -> Iterator[dict[str, Any]]:
        place = {"item_id": item["id"], "output_index": self._index}
        if self._kind == "call":
            done = {"name": item["name"], "arguments": item["arguments"]}
            yield {"type": "response.function_call_arguments.done", **place, **done}
        else:
            part = item["content"][0]
            text = {name: part[name] for name in ("text", "logprobs") if name in part}
            yield {"type": f"response.{TEXTS[self._kind]}.done", **self._place(), **text}
            yield {"type": "response.content_part.done", **self._place(), "part": part}
        yield {"type": "response.output_item.done", "output_index": self._index, "item": item}

    def _place(self) -> dict[str, Any]:
        return {"item_id": self._item["id"], "output_index": self._index, "content_index": 0}
