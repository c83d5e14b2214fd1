"""The request of POST /v1/chat/completions, as a prompt for the engine."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from app.db.tables.contexts import Prompt
from app.errors import NoChatTemplate, UnsupportedParameter, invalid
from app.openai.default_model import model_or_default
from app.openai.messages import Message, for_template, plain
from app.openai.pictures import check_images, no_images, rendered, with_fetched
from app.openai.requests import GenerationRequest, Prepared, Sources, Unnamed, checked, unsupported
from app.openai.tools import NamedChoice, Tool, ToolUse
from app.openai.written import PARSERS
from app.prompts.families import REASONING
from app.prompts.parsers import ELSEWHERE
from app.prompts.templates import Templates
from app.services.callers import Caller
from app.services.webhooks import accepted

KIND = "chat.completion"
MOST_MESSAGES = 10_000
# More than this are made ready away from the event loop.
MANY_MESSAGES = 100
# What json_object asks for.
ANY_OBJECT: dict[str, Any] = {"type": "object"}
EXAMPLE = [[{"role": "user", "content": "Write a haiku about queues."}]]


class JsonSchema(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, populate_by_name=True)

    name: str
    description: str | None = None
    schema_: dict[str, Any] = Field(alias="schema")
    strict: bool | None = None


class ResponseFormat(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, populate_by_name=True)

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None
    schema_: dict[str, Any] | None = Field(None, alias="schema", description="beside json_object, what it is")


class ChatRequest(GenerationRequest):
    model: Unnamed = None  # type: ignore[assignment]
    messages: Annotated[list[Message], Field(min_length=1, max_length=MOST_MESSAGES, examples=EXAMPLE)]
    max_completion_tokens: int | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int | None, Field(ge=0, le=20)] = None
    response_format: ResponseFormat | None = None
    tools: list[Tool] | None = None
    tool_choice: str | NamedChoice | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    modalities: list[str] | None = Field(None, description="text is all there is")
    chat_template_kwargs: dict[str, Any] | None = Field(None, description="variables for the model's chat template")
    documents: list[dict[str, Any]] | None = Field(None, description="for templates that take them")
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = Field(None, description="goes on with the last message")
    reasoning_effort: str | None = Field(None, max_length=20, description="for templates that know it")
    verbosity: str | None = Field(None, max_length=20, description="no engine knows it; say it in a message")


async def prepare_chat(services: Sources, caller: Caller, body: ChatRequest | Mapping[str, Any]) -> Prepared:
    """A chat as a ticket's prompt and parameters.

    Raises:
        AppError: whatever is wrong with it, naming the parameter.
    """
    chat = body if isinstance(body, ChatRequest) else checked(ChatRequest, body)
    return await prepare_checked(services, caller, chat, plain(chat.messages))


async def prepare_checked(
    services: Sources, caller: Caller, chat: ChatRequest, messages: list[dict[str, Any]]
) -> Prepared:
    """As `prepare_chat`, of these messages instead of the chat's own."""
    chosen = await services.adapters.resolve(caller, await model_or_default(services, caller, chat.model))
    if any(modality != "text" for modality in chat.modalities or ()):
        raise unsupported("modalities", "text is all there is")
    given = chat.stored("messages")
    tools = ToolUse(given)
    derived: dict[str, Any] = {
        "logprobs": _logprobs(chat),
        "max_tokens": _max_tokens(chat),
        "lora_name": chosen.adapter,
    }
    if (form := _form(chat, tools)) is not None:
        derived["structured_outputs"] = form
    named = services.parsers.of(chosen.model)
    marked = (tools.parsed and form is None) or (named.reasoning is not None and named is not ELSEWHERE)
    if marked and chat.skip_special_tokens is None:
        # In some vocabularies the marks around a call, or around the reasoning, are special tokens.
        derived["skip_special_tokens"] = False
    names = {"max_tokens": "max_completion_tokens"} if chat.max_tokens is None else {}
    parameters = chat.sampling(names, **derived)
    if clash := {"messages", "tools", "documents", "add_generation_prompt"} & set(chat.chat_template_kwargs or ()):
        raise invalid("chat_template_kwargs", f"{min(clash)} has a parameter of its own")
    if chat.continue_final_message and chat.add_generation_prompt:
        raise invalid("continue_final_message", "goes on with a message, and add_generation_prompt begins one")
    if services.images is not None:
        messages = await with_fetched(services.images, messages)
    # Only to see that the model takes it, and how its template opens the answer: it is not stored.
    shown = await taken_chat(services, chosen.model, messages, given)
    held = parameters.structured_outputs is not None
    if parsers := _parsers(services, chosen.model, shown, held):
        given[PARSERS] = parsers
    webhook = accepted(chat.webhook, services.settings)
    prompt = Prompt(messages=messages, metadata=chat.metadata)
    return Prepared(chosen.model, prompt, parameters, KIND, given, webhook)


async def taken_chat(
    services: Sources, model: str, messages: Sequence[Mapping[str, Any]], asked: Mapping[str, Any]
) -> str:
    """The prompt of a chat that a model takes, images included; empty where a server renders it itself.

    Raises:
        AppError: no server takes it.
    """
    try:
        pictured = check_images(messages)
        shown = await rendered_chat(services.templates, model, messages, asked)
        if pictured:
            await _require_images(services, model)
    except (NoChatTemplate, UnsupportedParameter):
        # A server that takes messages has a template of its own, and may take parts that are no text.
        if not services.catalog.takes_messages(model):
            raise
        return ""
    return shown


async def rendered_chat(
    templates: Templates,
    model: str,
    messages: Sequence[Mapping[str, Any]],
    asked: Mapping[str, Any],
    *,
    stored: bool = False,
) -> str:
    """The prompt of a chat: `messages` as they are stored, or will be; `asked` is the rest of its request.

    Raises:
        AppError: the model's template is not there, or does not take this chat.
    """
    shown = await asyncio.to_thread(for_template, messages) if len(messages) > MANY_MESSAGES else for_template(messages)
    goes_on = bool(asked.get("continue_final_message"))
    variables = effort_for_template(asked.get("reasoning_effort")) | (asked.get("chat_template_kwargs") or {})
    prompt = await rendered(
        templates,
        model,
        shown,
        stored=stored,
        **variables,
        tools=ToolUse(asked).for_template(),
        documents=asked.get("documents"),
        add_generation_prompt=not goes_on and asked.get("add_generation_prompt") is not False,
    )
    last = shown[-1]["content"]
    return _without_end(prompt, last if isinstance(last, str) else "") if goes_on else prompt


async def _require_images(services: Sources, model: str) -> None:
    """Raises UnsupportedParameter where a server that has the model says that it has no input for images."""
    described = await services.inputs.look(model)
    if described is not None and all(each["name"] != "image" for each in described["inputs"]):
        raise no_images(model, "it has no input `image`")


def _without_end(prompt: str, content: str) -> str:
    """The prompt up to the end of what the last message says."""
    said = content.strip()
    place = prompt.rfind(said) if said else -1
    if place < 0:
        raise invalid("continue_final_message", "the chat template does not show the last message as it is")
    return prompt[:place] + prompt[place : place + len(said)]


def effort_for_template(effort: str | None) -> dict[str, Any]:
    """The variables by which families of templates are told: gpt-oss, Qwen3 and GLM, DeepSeek and Granite."""
    if effort is None:
        return {}
    return {"reasoning_effort": effort} | ({"enable_thinking": False, "thinking": False} if effort == "none" else {})


def _logprobs(chat: ChatRequest) -> int | None:
    if chat.top_logprobs is not None and not chat.logprobs:
        raise invalid("top_logprobs", "needs logprobs: true")
    return (chat.top_logprobs or 0) if chat.logprobs else None


def _max_tokens(chat: ChatRequest) -> int | None:
    both = {chat.max_tokens, chat.max_completion_tokens} - {None}
    if len(both) > 1:
        raise invalid("max_tokens", "differs from max_completion_tokens; give one of them")
    return chat.max_completion_tokens if chat.max_tokens is None else chat.max_tokens


def _form(chat: ChatRequest, tools: ToolUse) -> dict[str, Any] | None:
    """What the text is held to by response_format and tool_choice."""
    form = _answer_form(chat)
    if form is ANY_OBJECT and tools.mode == "none":
        return {"json_object": True}
    schema = tools.schema(form)
    return None if schema is None else {"json": schema}


def _answer_form(chat: ChatRequest) -> dict[str, Any] | None:
    """The schema of an answer that is no call."""
    wanted = chat.response_format
    if wanted is None or wanted.type == "text":
        return None
    if wanted.type == "json_object":
        return ANY_OBJECT if wanted.schema_ is None else wanted.schema_
    if wanted.json_schema is None:
        raise invalid("response_format.json_schema", "is required")
    return wanted.json_schema.schema_


def _parsers(sources: Sources, model: str, prompt: str, held: bool) -> dict[str, Any]:
    """What the answer will be read by; text that is `held` to a form has no reasoning before it."""
    named = sources.parsers.of(model)
    found: dict[str, Any] = {}
    if named.tool_calls is not None:
        found["tool_calls"] = named.tool_calls
    if named.reasoning is not None:
        found["reasoning"] = named.reasoning
        if not held and prompt.rstrip().endswith(REASONING[named.reasoning].start):
            found["opened"] = True
    return found
