"""The request of POST /v1/responses, as a chat for the engine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from app.errors import InvalidRequest, NotFound, Removed, invalid
from app.openai.answers import Row, choices_of
from app.openai.chat_request import prepare_chat
from app.openai.ids import uuid_of
from app.openai.requests import GenerationRequest, Prepared, Sources, checked, documented, unsupported
from app.openai.responses_input import Messages, messages_of, renamed
from app.openai.tools import FunctionTool, ToolUse, rendered
from app.queue.ticket import Status
from app.services.callers import Caller

KIND = "response"
LOGPROBS = "message.output_text.logprobs"
# The others add to items that never occur here.
Includable = Literal[
    "message.output_text.logprobs",
    "message.input_image.image_url",
    "reasoning.encrypted_content",
    "file_search_call.results",
    "web_search_call.results",
    "web_search_call.action.sources",
    "computer_call_output.output.image_url",
    "code_interpreter_call.outputs",
]
REFUSED = {
    "conversation": "use previous_response_id",
    "logprobs": f"use include, with {LOGPROBS}",
    "max_completion_tokens": "use max_output_tokens",
    "max_tokens": "use max_output_tokens",
    "max_tool_calls": "there are no built-in tools whose calls it could bound",
    "messages": "use input",
    "n": "a response has one output; send the request again for another",
    "prompt": "no prompts are stored by name; send instructions and input",
    "response_format": "use text.format",
}
# What a chat calls otherwise, or does not know.
OWN = {"metadata", "stream", "stream_options", "tools", "tool_choice", "top_logprobs"}
NAMES = {
    "messages": "input",
    "max_tokens": "max_output_tokens",
    "response_format": "text.format",
    "response_format.json_schema": "text.format",
}


class ResponseTool(FunctionTool):
    type: Literal["function"]


class TextFormat(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    type: Literal["text", "json_object", "json_schema"]
    name: str | None = None
    description: str | None = None
    schema_: dict[str, Any] | None = Field(None, alias="schema")
    strict: bool | None = None

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if self.type == "json_schema" and (self.schema_ is None or self.name is None):
            raise invalid("text.format.schema" if self.schema_ is None else "text.format.name", "is required")
        return self


class TextOptions(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    format: TextFormat | None = None
    verbosity: Literal["medium"] | None = Field(None, description="the engine knows no other; say it in a message")


def _offered(schema: dict[str, Any]) -> None:
    documented(schema)
    for name in REFUSED:
        schema["properties"].pop(name, None)


class ResponseRequest(GenerationRequest):
    model_config = ConfigDict(json_schema_extra=_offered)

    input: str | list[dict[str, Any]] | None = Field(
        None, description="a text, or items: messages, calls, outputs", examples=["Write a haiku about queues."]
    )
    instructions: str | None = Field(None, description="a system message before all others; not inherited")
    previous_response_id: str | None = Field(None, description="goes on with its messages and its output")
    background: bool | None = Field(None, description="answers at once; ask GET /v1/responses/{id} for the end")
    max_output_tokens: int | None = None
    text: TextOptions | None = None
    tools: list[ResponseTool] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    include: list[Includable] | None = None
    top_logprobs: Annotated[int | None, Field(ge=0, le=20, description=f"with include: {LOGPROBS}")] = None
    truncation: str | None = Field(None, description="disabled is all it may be")
    reasoning: dict[str, Any] | None = Field(None, description="not supported; empty is accepted")
    chat_template_kwargs: dict[str, Any] | None = Field(None, description="variables for the model's chat template")

    @model_validator(mode="before")
    @classmethod
    def _possible(cls, value: Any) -> Any:
        given: Mapping[str, Any] = value if isinstance(value, dict) else {}
        for name, reason in REFUSED.items():
            if given.get(name) is not None:
                raise unsupported(name, reason)
        tools = given.get("tools")
        for place, tool in enumerate(tools if isinstance(tools, list) else ()):
            if isinstance(tool, dict) and tool.get("type", "function") != "function":
                raise unsupported(f"tools[{place}].type", "there are no built-in tools; offer a function of your own")
        if given.get("store") is False:
            raise unsupported("store", "every response is stored; leave it out, and DELETE the response when done")
        if given.get("truncation") == "auto":
            raise unsupported("truncation", "nothing is left out of a conversation here; send less input")
        if given.get("truncation") not in (None, "disabled"):
            raise invalid("truncation", "must be disabled")
        reasoning = given.get("reasoning")
        if isinstance(reasoning, dict) and any(each is not None for each in reasoning.values()):
            raise unsupported("reasoning", "give the template's own switch in chat_template_kwargs")
        return value

    @model_validator(mode="after")
    def _asked_for_together(self) -> Self:
        if self.top_logprobs and LOGPROBS not in (self.include or ()):
            raise invalid("top_logprobs", f"needs include: [{LOGPROBS!r}]")
        return self


async def prepare_response(services: Sources, caller: Caller, body: ResponseRequest | Mapping[str, Any]) -> Prepared:
    """A response as a ticket's prompt and parameters.

    Raises:
        AppError: whatever is wrong with it, naming the parameter.
    """
    wanted = body if isinstance(body, ResponseRequest) else checked(ResponseRequest, body)
    request = wanted.stored("input")
    if wanted.metadata:
        request["metadata"] = wanted.metadata
    if wanted.text is not None:
        request["text"] = wanted.text.model_dump(mode="json", by_alias=True, exclude_none=True)
    messages: Messages = []
    if wanted.instructions:
        messages.append({"role": "system", "content": wanted.instructions})
    if wanted.previous_response_id is not None:
        messages += await _earlier(services, caller, wanted.previous_response_id)
    messages += messages_of(wanted.input)
    shared = wanted.model_dump(
        exclude_none=True,
        include={*GenerationRequest.model_fields, "parallel_tool_calls", "chat_template_kwargs"} - OWN,
    )
    chat = shared | as_chat(request) | {"messages": messages, "metadata": wanted.metadata}
    try:
        prepared = await prepare_chat(services, caller, chat)
    except InvalidRequest as error:
        raise renamed(error, lambda name: NAMES.get(name, "input" if name.startswith("messages[") else name)) from None
    return replace(prepared, kind=KIND, request=request)


def as_chat(request: Mapping[str, Any]) -> dict[str, Any]:
    """Those parameters of a stored request that a chat has in another form; `ToolUse` can read it.

    Raises:
        UnsupportedParameter: the choice is of something else than a function.
    """
    chat: dict[str, Any] = {}
    if tools := request.get("tools"):
        chat["tools"] = [
            {"type": "function", "function": {name: value for name, value in tool.items() if name != "type"}}
            for tool in tools
        ]
    if (choice := request.get("tool_choice")) is not None:
        chat["tool_choice"] = _choice(choice)
    if (single := request.get("parallel_tool_calls")) is not None:
        chat["parallel_tool_calls"] = single
    if (most := request.get("max_output_tokens")) is not None:
        chat["max_tokens"] = most
    if wants_logprobs(request):
        chat |= {"logprobs": True, "top_logprobs": request.get("top_logprobs") or 0}
    form = request.get("text", {}).get("format", {})
    if form.get("type") == "json_schema":
        chat["response_format"] = {
            "type": "json_schema",
            "json_schema": {name: value for name, value in form.items() if name != "type"},
        }
    elif form:
        chat["response_format"] = {"type": form["type"]}
    return chat


def _choice(choice: str | Mapping[str, Any]) -> str | Mapping[str, Any]:
    if isinstance(choice, str) or choice.get("type") == "allowed_tools":
        return choice
    if choice.get("type") != "function":
        raise unsupported("tool_choice", "only functions can be chosen; there are no built-in tools")
    if not isinstance(choice.get("name"), str):
        raise invalid("tool_choice.name", "is required")
    return {"type": "function", "function": {"name": choice["name"]}}


def wants_logprobs(request: Mapping[str, Any]) -> bool:
    return LOGPROBS in request.get("include", ())


def tool_use(request: Mapping[str, Any]) -> ToolUse:
    """The tools of a stored request."""
    return ToolUse(as_chat(request))


async def _earlier(services: Sources, caller: Caller, id_: str) -> Messages:
    """The conversation up to and with a response, without its instructions."""
    try:
        row = await services.results.get(caller, uuid_of(KIND, id_))
    except Removed:
        raise
    except NotFound:
        raise _unknown(id_) from None
    if row["kind"] != KIND:
        raise _unknown(id_)
    if row["status"] != Status.COMPLETED:
        why = "failed, and said nothing to go on from" if Status(row["status"]).final else "has not ended: wait for it"
        raise invalid("previous_response_id", f"{id_} {why}")
    context = await services.contexts.get(caller, row["context_id"])
    return [*spoken(context, row["request"]), _said(row)]


def spoken(context: Mapping[str, Any], request: Mapping[str, Any]) -> Messages:
    """The messages that went into a response, without its instructions."""
    messages: Messages = context["messages"] or []
    return messages[1:] if request.get("instructions") else messages


def _said(row: Row) -> dict[str, Any]:
    parsed = tool_use(row["request"]).read(choices_of(row)[0]["text"])
    message: dict[str, Any] = {"role": "assistant", "content": parsed.content}
    if parsed.calls:
        message["tool_calls"] = rendered(parsed.calls, row["id"], 0)
    return message


def _unknown(id_: str) -> NotFound:
    message = f"no response has the id {id_[:100]!r}"
    return NotFound(f"previous_response_id: {message}", errors=[{"field": "previous_response_id", "message": message}])
