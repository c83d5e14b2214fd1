"""/api: the routes of SEMOSS's remote client server, on the same tickets."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import Annotated, Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse, PlainTextResponse
from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic_core import to_json

from app.api.dependencies import IdempotencyKey, caller_of, problems, services_of
from app.api.faces.tickets import ERRORS, failure, make_ticket, mark, model_or_default, stopping
from app.api.health import is_ready
from app.api.holding import DATABASE_RETRY_SECONDS, stream_until_final
from app.api.openai.answers import submit
from app.api.openai.documents import OBJECT, STREAM_OR_JSON
from app.api.security import OPEN, READ, WORK, GuardedRoute
from app.api.sse import event_bytes, never_gone
from app.errors import AppError, DatabaseUnavailable, invalid
from app.openai import chat_render, embeddings
from app.openai.answers import Row, model_of, usage_of
from app.openai.chat_request import prepare_chat
from app.openai.embeddings import prepare_embedding
from app.openai.requests import Prepared
from app.queue.ticket import Status
from app.services.results import Waiting
from app.storable import StorableText, check_document

# How often a waiting client is told its position, in seconds.
POSITION_SECONDS = 1.0
SAMPLING = {"temperature": 0.2, "top_p": 0.2}

router = APIRouter(prefix="/api", tags=["semoss"], route_class=GuardedRoute)
EVENTS: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "`waiting` with the position, `processing`, then `complete` or `error`, as server-sent events",
        "content": {"text/event-stream": {}},
    }
}
PLAIN: dict[int | str, dict[str, Any]] = {200: {"content": {"text/plain": {"schema": {"type": "string"}}}}}


class Body(BaseModel):
    model_config = ConfigDict(extra="allow", strict=True)

    model: Annotated[StorableText | None, Field(max_length=255)] = None

    @model_validator(mode="before")
    @classmethod
    def _storable(cls, value: Any) -> Any:
        return check_document(value)

    def with_model(self, model: str, **defaults: Any) -> dict[str, Any]:
        given = {name: value for name, value in self.model_dump().items() if value is not None}
        return defaults | given | {"model": model}


class ChatBody(Body):
    """A chat as on /v1/chat/completions, with `temperature` and `top_p` 0.2 where they are not given."""

    messages: Annotated[list[dict[str, Any]], Field(min_length=1, examples=[[{"role": "user", "content": "Hello."}]])]
    max_new_tokens: int | None = Field(None, description="the same as max_tokens")
    stream: bool | None = None


class EmbeddingBody(Body):
    """As on /v1/embeddings."""

    input: str | list[Any] = Field(examples=["A small lamp."])


class GenerateBody(Body):
    model_config = ConfigDict(extra="forbid")

    prompt: Annotated[str, Field(min_length=1, examples=["Hello."])]
    max_new_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    seed: int | None = None
    stop: str | list[str] | None = None


@router.post("/chat/completions", dependencies=[WORK], response_class=Response, responses=ERRORS | STREAM_OR_JSON)
async def chat_completions(body: ChatBody, request: Request, key: IdempotencyKey = None) -> Response:
    """A chat, held or streamed, in OpenAI's shapes."""
    prepared = await _chat(request, body.with_model(await model_or_default(request, body.model), **SAMPLING))
    return await submit(request, chat_render.FACE, prepared, key, stream=bool(body.stream))


@router.post("/embeddings", dependencies=[WORK], response_class=Response, responses=ERRORS | OBJECT)
async def create_embeddings(body: EmbeddingBody, request: Request, key: IdempotencyKey = None) -> Response:
    """Texts to vectors, in OpenAI's shape."""
    model = await model_or_default(request, body.model, embeds=True)
    prepared = await prepare_embedding(services_of(request), caller_of(request), body.with_model(model))
    return await submit(request, embeddings.FACE, prepared, key)


@router.post("/generate", dependencies=[WORK], response_class=Response, responses=ERRORS | EVENTS)
async def generate(body: GenerateBody, request: Request, key: IdempotencyKey = None) -> Response:
    """One message to the model; the position in the queue is told while it waits, and the answer at the end."""
    given = body.with_model(await model_or_default(request, body.model), **SAMPLING)
    given["messages"] = [{"role": "user", "content": given.pop("prompt")}]
    prepared = await _chat(request, given)
    row, replayed = await make_ticket(request, prepared, key=key)
    events = _events(request, row, prepared, body.prompt)
    return mark(await stream_until_final(request, row["id"], events, _error_event), row, prepared, replayed)


async def _chat(request: Request, given: dict[str, Any]) -> Prepared:
    """Raises AppError for whatever is wrong with it, naming the parameter."""
    if (limit := given.pop("max_new_tokens", None)) is not None and given.setdefault("max_tokens", limit) != limit:
        raise invalid("max_new_tokens", "differs from max_tokens; give one of them")
    return await prepare_chat(services_of(request), caller_of(request), given)


async def _events(request: Request, row: Row, prepared: Prepared, prompt: str) -> AsyncGenerator[bytes]:
    results, caller = services_of(request).results, caller_of(request)
    said: dict[str, Any] = {}
    while True:
        try:
            # At once the first time, then when it ends or after a while.
            row = await results.wait(caller, row["id"], POSITION_SECONDS if said else 0, never_gone)
            if Status(row["status"]).final:
                break
            state = _state(await results.waiting(row))
        except DatabaseUnavailable:
            await asyncio.sleep(DATABASE_RETRY_SECONDS)
            state = said
        if results.stopping:
            raise stopping(row)
        if state != said:
            said = state
            yield event_bytes(to_json(state))
    if row["status"] == Status.FAILED:
        raise failure(row)
    message = chat_render.render_chat(row, prepared.request)["choices"][0]["message"]
    yield event_bytes(
        to_json(
            {
                "status": "complete",
                "message": "Generation complete.",
                "output": message["content"] or "",
                "input": prompt,
                "model": model_of(row, prepared.request),
                "usage": usage_of(row),
            }
        )
    )


def _state(waiting: Waiting | None) -> dict[str, Any]:
    if waiting is None:
        return {"status": "processing", "message": "Generating..."}
    return {"status": "waiting", "message": f"Your position in the queue is: {waiting.position}"}


def _error_event(error: AppError) -> bytes:
    return event_bytes(to_json({"status": "error", "message": error.detail, "code": error.code}))


@router.get("/health", dependencies=[OPEN], responses={503: {"description": "Not ready"}})
async def health(request: Request) -> JSONResponse:
    """Whether this process can do its work."""
    ready = await is_ready(request)
    return JSONResponse({"status": "ok" if ready else "unready"}, 200 if ready else 503)


@router.get("/status", dependencies=[READ], responses=problems(422))
async def status(request: Request) -> dict[str, Any]:
    """The model that answers requests which name none, and how many tickets wait for it."""
    model = await model_or_default(request, None)
    state, _ = services_of(request).catalog.state_of(model)
    return {
        "status": state.upper(),
        # No server tells how its GPU is used.
        "gpu": None,
        "queue": await services_of(request).backlog.queued(model),
        "model": model,
        "type": "text",
    }


@router.get("/queue", dependencies=[READ], response_class=PlainTextResponse, responses=problems() | PLAIN)
async def queue(request: Request) -> str:
    """How many tickets wait, for all models."""
    return f"queue_size {await services_of(request).backlog.queued()}"


@router.get("/model-loaded", dependencies=[READ], response_model=bool, responses=problems(422))
async def model_loaded(request: Request) -> bool:
    """Whether a server has the model ready that answers requests which name none."""
    return services_of(request).catalog.state_of(await model_or_default(request, None))[0] == "ready"
