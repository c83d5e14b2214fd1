"""A response as a ticket: what came before it, what the request adds, and the chat that is made of both."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any
from uuid import UUID

from app.errors import ConversationTooLong, InvalidRequest, NotFound, Removed, invalid
from app.openai.answers import Row, choices_of
from app.openai.chat_request import MOST_MESSAGES, ChatRequest, prepare_checked
from app.openai.conversation_items import ADDED
from app.openai.ids import object_id, uuid_of
from app.openai.item_references import resolved
from app.openai.requests import GenerationRequest, Prepared, Sources, checked, renamed, unsupported
from app.openai.responses_input import Messages, messages_of, spoken
from app.openai.responses_request import KIND, NO_BUILT_IN, ConversationRef, ResponseRequest, as_chat
from app.openai.tools import rendered
from app.openai.written import PARSERS, read
from app.queue.ticket import Status
from app.services.callers import Caller
from app.services.submissions import Turn

# So many items are read at once; more of them take a while.
ITEMS_AT_ONCE = 100
# What may stand in a header.
_WORD = re.compile(r"[\w.-]{1,64}", re.ASCII)
# What a chat calls otherwise, or does not know.
OWN = {"metadata", "stream", "stream_options", "tools", "tool_choice", "top_logprobs"}
NAMES = {
    "messages": "input",
    "max_tokens": "max_output_tokens",
    "response_format": "text.format",
    "response_format.json_schema": "text.format",
}


async def prepare_response(services: Sources, caller: Caller, body: ResponseRequest | Mapping[str, Any]) -> Prepared:
    """A response as a ticket's prompt and parameters.

    Raises:
        AppError: whatever is wrong with it, naming the parameter.
    """
    wanted = body if isinstance(body, ResponseRequest) else checked(ResponseRequest, body)
    request = wanted.stored("input", "client_metadata")
    tools, ignored = _functions(wanted)
    request |= {"tools": tools} if wanted.tools else {}
    if wanted.metadata:
        request["metadata"] = wanted.metadata
    if wanted.text is not None:
        request["text"] = wanted.text.model_dump(mode="json", by_alias=True, exclude_none=True)
    messages: Messages = []
    if wanted.instructions:
        messages.append({"role": "system", "content": wanted.instructions})
    if wanted.previous_response_id is not None:
        messages += await _earlier(services, caller, wanted.previous_response_id)
    conversation_id = None
    if wanted.conversation is not None:
        conversation_id, earlier = await _conversation(services, caller, wanted.conversation)
        request["conversation"] = object_id("conversation", conversation_id)
        messages += await _messages(earlier)
    items = await resolved(services, caller, wanted.input)
    added = await _messages(items)
    messages += added
    shared = wanted.model_dump(
        exclude_none=True,
        include={*GenerationRequest.model_fields, "parallel_tool_calls", "chat_template_kwargs"} - OWN,
    )
    # The items were checked one by one: of them, a chat checks only that there are some, and not too many.
    counted = messages if len(messages) > MOST_MESSAGES else messages[:1]
    chat = shared | as_chat(request) | {"messages": counted, "metadata": wanted.metadata}
    try:
        prepared = await prepare_checked(services, caller, checked(ChatRequest, chat), messages)
    except InvalidRequest as error:
        raise renamed(error, lambda name: NAMES.get(name, "input" if name.startswith("messages[") else name)) from None
    if (parsers := prepared.request.get(PARSERS)) is not None:
        request[PARSERS] = parsers
    turn = None
    if conversation_id is not None:
        turn = Turn(conversation_id, len(added))
        request[ADDED] = turn.added
    return replace(prepared, kind=KIND, request=request, ignored=ignored, turn=turn)


async def _messages(items: str | list[dict[str, Any]] | None) -> Messages:
    many = isinstance(items, list) and len(items) > ITEMS_AT_ONCE
    # Beside a thread the loop goes on.
    return await asyncio.to_thread(messages_of, items) if many else messages_of(items)


async def _conversation(
    services: Sources, caller: Caller, wanted: str | ConversationRef
) -> tuple[UUID, list[dict[str, Any]]]:
    """The conversation's id and its items."""
    try:
        id_ = uuid_of("conversation", wanted if isinstance(wanted, str) else wanted.id)
        return id_, await services.conversations.items(caller, id_)
    except (NotFound, ConversationTooLong) as error:
        error.errors = [{"field": "conversation", "message": error.detail}]
        raise


def _functions(wanted: ResponseRequest) -> tuple[list[dict[str, Any]], tuple[str, ...]]:
    """The functions among the tools, and what else there is, which the model need not call.

    Raises:
        UnsupportedParameter: it has to.
    """
    tools = wanted.tools or []
    functions = [tool for tool in tools if tool["type"] == "function"]
    others = [(place, tool["type"]) for place, tool in enumerate(tools) if tool["type"] != "function"]
    if others and not functions and wanted.tool_choice == "required":
        raise unsupported(f"tools[{others[0][0]}].type", NO_BUILT_IN)
    return functions, tuple(f"tools[{place}]={kind if _WORD.fullmatch(kind) else '?'}" for place, kind in others)


async def _earlier(services: Sources, caller: Caller, id_: str) -> Messages:
    """The conversation up to and with a response, without its instructions."""
    try:
        row = await services.results.get(caller, uuid_of(KIND, id_))
    except Removed:
        raise
    except NotFound:
        raise _unknown(id_) from None
    if row["kind"] != KIND or not row["kept"]:
        raise _unknown(id_)
    if row["status"] != Status.COMPLETED:
        why = "failed, and said nothing to go on from" if Status(row["status"]).final else "has not ended: wait for it"
        raise invalid("previous_response_id", f"{id_} {why}")
    context = await services.contexts.get(caller, row["context_id"])
    return [*spoken(context, row["request"]), _said(row)]


def _said(row: Row) -> dict[str, Any]:
    written = read(choices_of(row)[0]["text"], as_chat(row["request"]))
    message: dict[str, Any] = {"role": "assistant", "content": written.content}
    if written.calls:
        message["tool_calls"] = rendered(written.calls, row["id"], 0)
    return message


def _unknown(id_: str) -> NotFound:
    message = f"no response has the id {id_[:100]!r}"
    return NotFound(f"previous_response_id: {message}", errors=[{"field": "previous_response_id", "message": message}])
