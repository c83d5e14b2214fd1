"""POST /v1/chat/completions, and the same answer again by its id."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal
from uuid import UUID

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, ConfigDict, Field

from app.api.dependencies import IdempotencyKey, Services, caller_of, services_of
from app.api.openai import logprobs as shapes
from app.api.openai.answers import Cursor, Face, Row, choices_of, look_up, model_of, submit, usage_of
from app.api.openai.documents import ANSWERS, STREAM_OR_JSON
from app.api.openai.ids import object_id
from app.api.openai.messages import Message, for_template
from app.api.openai.requests import GenerationRequest, Prepared, checked, unsupported
from app.api.openai.tools import NamedChoice, Tool, ToolUse, rendered
from app.api.problems import invalid
from app.api.security import READ, WORK, GuardedRoute
from app.queue.ticket import Prompt
from app.services.callers import Caller
from app.services.streams import Delta
from app.services.toolcalls import ToolCallStream
from app.services.webhooks import accepted

KIND = "chat.completion"
MOST_MESSAGES = 10_000
EXAMPLE = [[{"role": "user", "content": "Write a haiku about queues."}]]


class JsonSchema(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, populate_by_name=True)

    name: str
    description: str | None = None
    schema_: dict[str, Any] = Field(alias="schema")
    strict: bool | None = None


class ResponseFormat(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None


class ChatRequest(GenerationRequest):
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


async def prepare_chat(services: Services, caller: Caller, body: ChatRequest | Mapping[str, Any]) -> Prepared:
    """A chat as a ticket's prompt and parameters.

    Raises:
        AppError: whatever is wrong with it, naming the parameter.
    """
    chat = body if isinstance(body, ChatRequest) else checked(ChatRequest, body)
    chosen = await services.adapters.resolve(caller, chat.model)
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
    if tools.parsed and chat.skip_special_tokens is None:
        # In some vocabularies the marks around a call are special tokens.
        derived["skip_special_tokens"] = False
    names = {"max_tokens": "max_completion_tokens"} if chat.max_tokens is None else {}
    parameters = chat.sampling(names, **derived)
    messages = [message.model_dump(mode="json", exclude_none=True) for message in chat.messages]
    variables = dict(chat.chat_template_kwargs or {})
    if clash := {"messages", "tools", "documents", "add_generation_prompt"} & set(variables):
        raise invalid("chat_template_kwargs", f"{min(clash)} has a parameter of its own")
    prompt = await services.templates.render(
        chosen.model,
        for_template(chat.messages),
        **variables,
        tools=tools.for_template(),
        documents=chat.documents,
        add_generation_prompt=chat.add_generation_prompt is not False,
    )
    webhook = accepted(chat.webhook, services.settings)
    return Prepared(chosen.model, Prompt(prompt, messages, chat.metadata), parameters, KIND, given, webhook)


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
    """What the text is held to by response_format or tool_choice."""
    kind = chat.response_format.type if chat.response_format else "text"
    if kind != "text" and tools.mode != "none":
        raise unsupported(
            "response_format", f"{kind} cannot be combined with tools here; send tool_choice none, or leave it out"
        )
    if (schema := tools.schema()) is not None:
        return {"json": schema}
    if kind == "json_object":
        return {"json_object": True}
    if kind == "json_schema":
        assert chat.response_format is not None
        if chat.response_format.json_schema is None:
            raise invalid("response_format.json_schema", "is required")
        return {"json": chat.response_format.json_schema.schema_}
    return None


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
router = APIRouter(prefix="/v1/chat/completions", tags=["openai"], route_class=GuardedRoute)


@router.post("", dependencies=[WORK], response_class=Response, responses=ANSWERS | STREAM_OR_JSON)
async def create_chat_completion(
    body: ChatRequest,
    request: Request,
    key: IdempotencyKey = None,
) -> Response:
    """Runs a chat as a ticket, and holds the connection for the answer or streams it."""
    prepared = await prepare_chat(services_of(request), caller_of(request), body)
    return await submit(request, FACE, prepared, key, stream=bool(body.stream), usage=body.wants_usage)


@router.get("/{completion_id}", dependencies=[READ], response_class=Response, responses=ANSWERS | STREAM_OR_JSON)
async def get_chat_completion(
    completion_id: str,
    request: Request,
    stream: bool = False,
    include_usage: bool = False,
    after: Cursor = None,
) -> Response:
    """The answer to an earlier request; with `stream`, its stream, on from an event where that is given."""
    return await look_up(request, FACE, completion_id, stream=stream, after=after, usage=include_usage)
