"""/api: the routes of SEMOSS's remote client server, on the same tickets; /api/generate is in semoss_generate.py."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse, PlainTextResponse

from app.api.dependencies import IdempotencyKey, caller_of, problems, services_of
from app.api.faces.semoss_request import ChatBody, EmbeddingBody, prepare_body_chat
from app.api.faces.tickets import ERRORS
from app.api.health import is_ready
from app.api.openai.answers import submit
from app.api.openai.documents import OBJECT, STREAM_OR_JSON
from app.api.security import OPEN, READ, WORK, GuardedRoute
from app.openai import chat_render, embeddings
from app.openai.default_model import model_or_default
from app.openai.embeddings import prepare_embedding
from app.tasks.purposes import purpose_of

router = APIRouter(prefix="/api", tags=["semoss"], route_class=GuardedRoute)
PLAIN: dict[int | str, dict[str, Any]] = {200: {"content": {"text/plain": {"schema": {"type": "string"}}}}}


@router.post("/chat/completions", dependencies=[WORK], response_class=Response, responses=ERRORS | STREAM_OR_JSON)
async def chat_completions(body: ChatBody, request: Request, key: IdempotencyKey = None) -> Response:
    """A chat, held or streamed, in OpenAI's shapes."""
    prepared = await prepare_body_chat(request, body)
    return await submit(request, chat_render.FACE, prepared, key, stream=bool(body.stream))


@router.post("/embeddings", dependencies=[WORK], response_class=Response, responses=ERRORS | OBJECT)
async def create_embeddings(body: EmbeddingBody, request: Request, key: IdempotencyKey = None) -> Response:
    """Texts to vectors, in OpenAI's shape."""
    services, caller = services_of(request), caller_of(request)
    model = await model_or_default(services, caller, body.model, embeds=True)
    prepared = await prepare_embedding(services, caller, body.given() | {"model": model})
    return await submit(request, embeddings.FACE, prepared, key)


@router.get("/health", dependencies=[OPEN], responses={503: {"description": "Not ready"}})
async def health(request: Request) -> JSONResponse:
    """Whether this process can do its work."""
    ready = await is_ready(request)
    return JSONResponse({"status": "ok" if ready else "unready"}, 200 if ready else 503)


@router.get("/status", dependencies=[READ], responses=problems(422))
async def status(request: Request) -> dict[str, Any]:
    """The model that answers requests which name none, and how many tickets wait for it."""
    services = services_of(request)
    model = await model_or_default(services, caller_of(request), None)
    described = await services.inputs.look(model)
    purpose = None if described is None else purpose_of(described)
    return {
        "status": services.catalog.state_of(model)[0].upper(),
        # No server tells how its GPU is used.
        "gpu": None,
        "queue": await services.backlog.queued(model),
        "model": model,
        "type": "text" if purpose is None else purpose.name,
    }


@router.get("/queue", dependencies=[READ], response_class=PlainTextResponse, responses=problems() | PLAIN)
async def queue(request: Request) -> str:
    """How many tickets wait, for all models."""
    return f"queue_size {await services_of(request).backlog.queued()}"


@router.get("/model-loaded", dependencies=[READ], response_model=bool, responses=problems(422))
async def model_loaded(request: Request) -> bool:
    """Whether a server has the model ready that answers requests which name none."""
    services = services_of(request)
    return services.catalog.state_of(await model_or_default(services, caller_of(request), None))[0] == "ready"
