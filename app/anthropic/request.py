"""The request of POST /v1/messages, and what of it a chat is asked for."""

from __future__ import annotations

import asyncio
import re
from dataclasses import replace
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from app.anthropic.content import Conversation, conversation
from app.errors import InvalidRequest, invalid
from app.openai.chat_request import MOST_MESSAGES, prepare_chat
from app.openai.requests import CLOSED, Prepared, Sources, checked_at, unsupported
from app.services.callers import Caller
from app.storable import Storable

KIND = "message"
# As many blocks are read at once; more of them take a while.
MESSAGES_AT_ONCE = 100
# Taken because clients send them, and changing no answer.
WITHOUT_EFFECT = {
    "anthropic_beta": "betas are named in a header, and any is accepted",
    "betas": "betas are named in a header, and any is accepted",
    "billing_policy": "nothing is billed here",
    "cache_control": "engines keep what prompts have in common by themselves",
    "compaction": "the conversation is sent whole; named in `x-ignored`",
    "context_management": "the conversation is sent whole; named in `x-ignored`",
    "diagnostics": "there are none",
    "fallbacks": "one model answers; named in `x-ignored`",
    "inference_geo": "the service runs where it runs",
    "service_tier": "there is one tier",
    "speed": "there is one speed",
}
# Named in x-ignored where they ask for something.
_ASKING = ("compaction", "context_management", "fallbacks")
# Named rather than unknown, so that the answer can say what to do instead.
UNSUPPORTED = {
    "container": "no code is executed here",
    "fallback_credit_token": "one model answers",
    "mcp_servers": "no MCP servers are called here; offer their tools as functions",
    "output_format": "use output_config.format",
    "thread": "nothing is kept between requests; send all messages",
}
NO_BUILT_IN = "there are no built-in tools; offer a function of your own"
_WORD = re.compile(r"[\w.-]{1,64}", re.ASCII)
_MESSAGE = re.compile(r"messages\[(\d+)\](?:\.content\[(\d+)\])?(.*)", re.DOTALL)
# What a chat calls otherwise.
_NAMES = {
    "continue_final_message": "messages",
    "reasoning_effort": "output_config.effort",
    "chat_template_kwargs": "thinking",
    "parallel_tool_calls": "tool_choice.disable_parallel_tool_use",
    "user": "metadata.user_id",
}


class _Closed(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class Metadata(_Closed):
    user_id: Annotated[str | None, Field(max_length=1000)] = None


class Thinking(_Closed):
    type: Literal["enabled", "disabled", "adaptive", "between_tools"]
    budget_tokens: int | None = Field(None, ge=1, description="no effect: no engine bounds what a model thinks")
    display: Literal["summarized", "omitted"] | None = None


class OutputFormat(_Closed):
    model_config = ConfigDict(extra="forbid", strict=True, populate_by_name=True)

    type: Literal["json_schema"]
    schema_: dict[str, Any] = Field(alias="schema")


class OutputConfig(BaseModel):
    # What it may hold besides, such as a budget for a task, asks for nothing that an engine knows.
    model_config = ConfigDict(extra="allow", strict=True)

    effort: Annotated[str | None, Field(max_length=20, description="for templates that know it")] = None
    format: OutputFormat | None = None


class FunctionTool(BaseModel):
    # cache_control, input_examples and the like.
    model_config = ConfigDict(extra="allow", strict=True)

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]{1,128}$")]
    input_schema: dict[str, Any]
    description: str | None = None
    strict: bool | None = None


class ToolChoice(_Closed):
    type: Literal["auto", "any", "tool", "none"]
    name: str | None = None
    disable_parallel_tool_use: bool | None = None


class CountRequest(Storable):
    """What is counted, and all that a message may ask for. A parameter that is null counts as left out."""

    model_config = ConfigDict(extra="allow", strict=True, allow_inf_nan=False, json_schema_extra=CLOSED)

    model: Annotated[str, Field(min_length=1, max_length=255, examples=["demo"])]
    messages: Annotated[
        list[dict[str, Any]],
        Field(
            min_length=1,
            max_length=MOST_MESSAGES,
            examples=[[{"role": "user", "content": "Write a haiku about queues."}]],
        ),
    ]
    max_tokens: Annotated[int | None, Field(ge=1, lt=2**31)] = None
    system: str | list[dict[str, Any]] | None = None
    tools: list[dict[str, Any]] | None = Field(
        None, description="functions, others being left out and named in `x-ignored`"
    )
    tool_choice: ToolChoice | None = Field(None, description="`disable_parallel_tool_use` too")
    thinking: Thinking | None = Field(None, description="for templates that know it, without the budget")
    output_config: OutputConfig | None = Field(None, description="`format`, and `effort` for templates that know it")
    stop_sequences: list[Annotated[str, Field(min_length=1, max_length=1000)]] | None = None
    temperature: Annotated[float | None, Field(ge=0, le=2)] = None
    top_p: Annotated[float | None, Field(gt=0, le=1)] = None
    top_k: Annotated[int | None, Field(ge=-1, lt=2**31)] = None
    metadata: Metadata | None = Field(None, description="`user_id` is stored with the request")
    stream: bool | None = None

    @model_validator(mode="after")
    def _nothing_unknown(self) -> Self:
        for name, value in (self.model_extra or {}).items():
            if name in WITHOUT_EFFECT or value is None or (name == "mcp_servers" and value == []):
                continue
            raise unsupported(name, UNSUPPORTED.get(name, "there is no such parameter; check its spelling"))
        return self


class MessageRequest(CountRequest):
    max_tokens: Annotated[int, Field(ge=1, lt=2**31)]


async def prepare_message(services: Sources, caller: Caller, body: CountRequest) -> Prepared:
    """A message as a ticket's prompt and parameters, stored as the chat that it is.

    Raises:
        AppError: whatever is wrong with it, naming the parameter.
    """
    functions, ignored = _functions(body)
    if len(body.messages) > MESSAGES_AT_ONCE:
        # Beside a thread the loop goes on.
        said = await asyncio.to_thread(conversation, body.system, body.messages)
    else:
        said = conversation(body.system, body.messages)
    config = body.output_config or OutputConfig()
    chat: dict[str, Any] = {
        "model": body.model,
        "messages": said.chat(),
        "max_tokens": body.max_tokens,
        "temperature": body.temperature,
        "top_p": body.top_p,
        "top_k": body.top_k,
        "user": body.metadata and body.metadata.user_id,
        "tools": functions or None,
        **_choice(body.tool_choice),
        **_thinking(body),
    }
    if body.stop_sequences:
        # The text then tells which of them ended it.
        chat |= {"stop": body.stop_sequences, "include_stop_str_in_output": True}
    if config.format is not None:
        form: dict[str, Any] = {"name": "answer", "schema": config.format.schema_}
        chat["response_format"] = {"type": "json_schema", "json_schema": form}
    if said.goes_on:
        chat |= {"continue_final_message": True}
    try:
        prepared = await prepare_chat(services, caller, {name: each for name, each in chat.items() if each is not None})
    except InvalidRequest as error:
        raise _told_of(error, said) from None
    request = prepared.request
    if body.thinking is not None and body.thinking.display == "omitted":
        request["thinking"] = {"display": "omitted"}
    return replace(prepared, kind=KIND, request=request, ignored=ignored)


def _functions(body: CountRequest) -> tuple[list[dict[str, Any]], tuple[str, ...]]:
    """The functions among the tools as a chat has them, and what else was asked for and has no effect.

    Raises:
        UnsupportedParameter: the model has to call what is not there.
    """
    functions, others = [], []
    for place, tool in enumerate(body.tools or ()):
        where = f"tools[{place}]"
        kind = tool.get("type")
        if kind is not None and kind != "custom":
            if not isinstance(kind, str):
                raise invalid(f"{where}.type", "must be a text")
            others.append((where, kind))
            continue
        given = checked_at(FunctionTool, tool, where)
        told = given.model_dump(include={"name", "description", "strict"}, exclude_none=True)
        functions.append({"type": "function", "function": told | {"parameters": given.input_schema}})
    if others and not functions and body.tool_choice is not None and body.tool_choice.type in ("any", "tool"):
        raise unsupported(f"{others[0][0]}.type", NO_BUILT_IN)
    ignored = [f"{where}={kind if _WORD.fullmatch(kind) else '?'}" for where, kind in others]
    ignored += [name for name in _ASKING if (body.model_extra or {}).get(name)]
    return functions, tuple(ignored)


def _choice(choice: ToolChoice | None) -> dict[str, Any]:
    if choice is None:
        return {}
    made: dict[str, Any] = {"parallel_tool_calls": False} if choice.disable_parallel_tool_use else {}
    if choice.type == "tool":
        if choice.name is None:
            raise invalid("tool_choice.name", "is required")
        return made | {"tool_choice": {"type": "function", "function": {"name": choice.name}}}
    return made | {"tool_choice": "required" if choice.type == "any" else choice.type}


def _thinking(body: CountRequest) -> dict[str, Any]:
    """How templates are told to have the model think; what is not said is the model's own default."""
    effort = body.output_config.effort if body.output_config is not None else None
    made: dict[str, Any] = {} if effort is None else {"reasoning_effort": effort}
    kind = body.thinking.type if body.thinking is not None else None
    if kind == "disabled":
        made["reasoning_effort"] = "none"
    elif kind == "enabled":
        made["chat_template_kwargs"] = {"enable_thinking": True, "thinking": True}
    return made


def _told_of(error: InvalidRequest, said: Conversation) -> InvalidRequest:
    """The same error in the words of this request."""
    if not error.errors:
        return error
    field, message = error.errors[0]["field"], error.errors[0]["message"].replace("'image_url'", "'image'")
    if (place := _MESSAGE.fullmatch(field)) and int(place[1]) < len(said.origins):
        of_message = said.origins[int(place[1])]
        part = 0 if place[2] is None else int(place[2]) + 1
        known = part < len(of_message)
        field = of_message[part if known else 0] + (place[3] if known else "")
    elif field == "stop" or field.startswith("stop["):
        field = "stop_sequences" + field.removeprefix("stop")
    elif field.startswith(("response_format", "structured_outputs")):
        field = "output_config.format"
    else:
        field = _NAMES.get(field, field)
    return type(error)(f"{field}: {message}" if field else message, errors=[{"field": field, "message": message}])
