"""The form of a message: from what it says to a ticket, with the chat before it."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any
from uuid import UUID

from fastapi import Depends, File, Form, Request, UploadFile

from app.api.dependencies import caller_of, services_of
from app.console.asking import LONGEST, Text, Word, number_of
from app.console.chat_view import INSTRUCTIONS, is_system, parts_of, written_of
from app.errors import ResultPending, invalid
from app.openai.chat_request import prepare_chat
from app.openai.requests import Prepared
from app.openai.tools import rendered
from app.queue.ticket import Status
from app.storable import parsed_json

FIELDS = ("model", "message", "system", "instructions", "tools", "max_tokens", "temperature", "after", "images_of")
IMAGES = ("image/gif", "image/jpeg", "image/png", "image/webp")
MOST_RESULTS = 128


@dataclass(frozen=True, slots=True)
class Asked:
    """What the form of a message says."""

    message: str
    model: str
    # None keeps the instructions that it goes on with.
    system: str | None
    # The id of named ones, in place of `system`.
    instructions: str
    # JSON, as /v1/chat/completions takes them.
    tools: str
    max_tokens: str
    temperature: str
    # The ticket whose answer it goes on from; '' begins anew.
    after: str
    # The ticket whose images an edited message keeps.
    images_of: str
    images: Sequence[UploadFile]
    # What the tools said that the answer before called, in their order.
    results: Sequence[str]

    @property
    def fields(self) -> dict[str, str]:
        """What stands in the form again where it is refused."""
        return {name: getattr(self, name) or "" for name in FIELDS}


async def _asked(
    message: Text = "",
    model: Word = "",
    system: Annotated[str | None, Form(max_length=LONGEST)] = None,
    instructions: Word = "",
    tools: Text = "",
    max_tokens: Word = "",
    temperature: Word = "",
    after: Word = "",
    images_of: Word = "",
    image: Annotated[list[UploadFile], File()] = [],  # noqa: B006 - FastAPI copies it
    result: Annotated[list[str], Form(max_length=MOST_RESULTS)] = [],  # noqa: B006
) -> Asked:
    # A browser sends a part without a name where no file was chosen.
    images = [each for each in image if each.filename]
    return Asked(message, model, system, instructions, tools, max_tokens, temperature, after, images_of, images, result)


AskedForm = Annotated[Asked, Depends(_asked)]


async def prepared_of(request: Request, asked: Asked, link: str) -> Prepared:
    """The message with the chat before it, as a ticket whose prompt says by `link` what it goes on from.

    Raises:
        AppError: whatever is wrong with it.
    """
    services, caller = services_of(request), caller_of(request)
    messages = await _said_before(request, asked.after) if asked.after else []
    metadata = {link: asked.after} if asked.after else {}
    if asked.system is not None or asked.instructions:
        messages = messages[1:] if messages and is_system(messages[0]) else messages
        system = (asked.system or "").strip()
        if asked.instructions:
            if system:
                raise invalid("instructions", "choose named ones or write your own, not both")
            # As they read now: they may have changed since the last message.
            system = await services.instructions.text(caller, _id("instructions", asked.instructions))
            metadata[INSTRUCTIONS] = asked.instructions
        if system:
            messages.insert(0, {"role": "system", "content": system})
    results = _results(messages, asked.results)
    content = await _content(request, asked)
    if not content and not results:
        raise invalid("message", "write what you want to ask")
    messages += [*results, *([{"role": "user", "content": content}] if content else [])]
    body: dict[str, Any] = {"model": asked.model, "messages": messages}
    if metadata:
        body["metadata"] = metadata
    if asked.tools.strip():
        try:
            body["tools"] = parsed_json(asked.tools.encode())
        except ValueError as error:
            raise invalid("tools", f"is no JSON: {error}") from None
    for name, text, kind in (("max_tokens", asked.max_tokens, int), ("temperature", asked.temperature, float)):
        if text.strip():
            body[name] = number_of(name, text, kind)
    return await prepare_chat(services, caller, body)


def _results(messages: Sequence[Mapping[str, Any]], results: Sequence[str]) -> list[dict[str, Any]]:
    """What the tools said that the last answer calls; none where nothing was written."""
    calls = messages[-1].get("tool_calls") or [] if messages else []
    if not any(each.strip() for each in results):
        return []
    if len(results) != len(calls):
        raise invalid("result", f"there are {len(results)}, and the answer before calls {len(calls)} tools")
    return [
        {"role": "tool", "tool_call_id": call["id"], "content": result}
        for call, result in zip(calls, results, strict=True)
    ]


async def _content(request: Request, asked: Asked) -> str | list[dict[str, Any]]:
    """The message, with the images that come with it and those that it had before; '' where it says nothing."""
    urls = []
    for each in asked.images:
        kind = (each.content_type or "").lower()
        if kind not in IMAGES:
            raise invalid("image", f"{(each.filename or '')[:80]!r} is none of {', '.join(IMAGES)}")
        urls.append(f"data:{kind};base64,{base64.b64encode(await each.read()).decode()}")
    if asked.images_of and not asked.images:
        before = await _chat(request, "images_of", asked.images_of)
        urls = [part["image"] for part in parts_of(before[-1]) if "image" in part]
    if not urls:
        return asked.message if asked.message.strip() else ""
    texts = [{"type": "text", "text": asked.message}] if asked.message.strip() else []
    return [*texts, *({"type": "image_url", "image_url": {"url": url}} for url in urls)]


async def _chat(request: Request, name: str, id_: str) -> list[dict[str, Any]]:
    """What a ticket was sent with."""
    services, caller = services_of(request), caller_of(request)
    row = await services.results.get(caller, _id(name, id_))
    prompt = await services.contexts.get(caller, row["context_id"])
    if prompt["messages"] is None:
        raise invalid(name, "names a ticket that is no chat")
    return list(prompt["messages"])


async def _said_before(request: Request, id_: str) -> list[dict[str, Any]]:
    """The chat of a ticket with its answer."""
    messages = await _chat(request, "after", id_)
    row = await services_of(request).results.get(caller_of(request), UUID(id_))
    if row["status"] == Status.PENDING:
        raise ResultPending(
            "The answer is still being written: wait for its end or stop it, then send the next message."
        )
    if not row["output"]:
        raise invalid("after", "has no answer to go on from: ask for it again, or edit its message")
    written = written_of(row)
    answer: dict[str, Any] = {"role": "assistant", "content": written.content}
    if written.calls:
        answer["tool_calls"] = rendered(written.calls, row["id"], 0)
    return [*messages, answer]


def uuid_or_none(text: str) -> UUID | None:
    try:
        return UUID(text)
    except ValueError:
        return None


def _id(name: str, text: str) -> UUID:
    id_ = uuid_or_none(text)
    if id_ is None:
        raise invalid(name, "is an id, a UUID")
    return id_
