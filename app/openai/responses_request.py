"""The request of POST /v1/responses, as a chat for the engine."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from app.errors import invalid
from app.openai.requests import GenerationRequest, checked_at, documented, unsupported
from app.openai.tools import FunctionTool
from app.openai.written import PARSERS

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
    "logprobs": f"use include, with {LOGPROBS}",
    "max_completion_tokens": "use max_output_tokens",
    "max_tokens": "use max_output_tokens",
    "messages": "use input",
    "n": "a response has one output; send the request again for another",
    "prompt": "no prompts are stored by name; send instructions and input",
    "response_format": "use text.format",
}


Effort = Literal["none", "minimal", "low", "medium", "high", "xhigh"]
Verbosity = Literal["low", "medium", "high"]
NO_BUILT_IN = "there are no built-in tools; offer a function of your own"


class ResponseTool(FunctionTool):
    type: Literal["function"]
    # What a client sends of a tool that is always at hand.
    defer_loading: Literal[False] | None = None


class Reasoning(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    effort: Effort | None = None
    summary: Literal["auto", "concise", "detailed"] | None = None
    generate_summary: Literal["auto", "concise", "detailed"] | None = None


class ConversationRef(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    id: str


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
    verbosity: Verbosity | None = Field(None, description="no engine knows it; say it in a message")


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
    conversation: str | ConversationRef | None = Field(None, description="goes on with its items, and adds to them")
    background: bool | None = Field(None, description="answers at once; ask GET /v1/responses/{id} for the end")
    max_output_tokens: int | None = None
    text: TextOptions | None = None
    tools: list[dict[str, Any]] | None = Field(None, description="functions; others are left out, see `x-ignored`")
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    include: list[Includable] | None = None
    top_logprobs: Annotated[int | None, Field(ge=0, le=20, description=f"with include: {LOGPROBS}")] = None
    truncation: Literal["auto", "disabled"] | None = Field(None, description="nothing is left out in either case")
    reasoning: Reasoning | None = Field(None, description="`effort` is for templates that know it")
    max_tool_calls: int | None = Field(None, description="bounds built-in tools, of which there are none")
    client_metadata: dict[str, Any] | None = None
    prompt_cache_options: dict[str, Any] | None = None
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
            kind = tool.get("type", "function") if isinstance(tool, dict) else "other"
            if not isinstance(kind, str) or kind == "function":
                checked_at(ResponseTool, tool, f"tools[{place}]")
        return value

    @model_validator(mode="after")
    def _asked_for_together(self) -> Self:
        if self.top_logprobs and LOGPROBS not in (self.include or ()):
            raise invalid("top_logprobs", f"needs include: [{LOGPROBS!r}]")
        if self.conversation is not None and self.previous_response_id is not None:
            raise invalid("conversation", "goes on from its own items; give it or previous_response_id")
        if self.background and self.store is False:
            raise invalid("background", "needs store: true, for its answer is fetched later")
        return self


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
    if (effort := (request.get("reasoning") or {}).get("effort")) is not None:
        chat["reasoning_effort"] = effort
    if (most := request.get("max_output_tokens")) is not None:
        chat["max_tokens"] = most
    if (parsers := request.get(PARSERS)) is not None:
        chat[PARSERS] = parsers
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
