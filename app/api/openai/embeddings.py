"""POST /v1/embeddings, for models that turn text into a vector."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from app.api.dependencies import IdempotencyKey, caller_of, services_of
from app.api.openai.answers import submit
from app.api.openai.documents import ANSWERS, OBJECT
from app.api.security import WORK, GuardedRoute
from app.openai.embeddings import FACE, EmbeddingRequest, prepare_embedding

router = APIRouter(prefix="/v1/embeddings", tags=["openai"], route_class=GuardedRoute, dependencies=[WORK])


@router.post("", response_class=Response, responses=ANSWERS | OBJECT)
async def create_embedding(body: EmbeddingRequest, request: Request, key: IdempotencyKey = None) -> Response:
    """Turns texts into vectors, as a ticket; the usage is 0 for a model that counts no tokens."""
    prepared = await prepare_embedding(services_of(request), caller_of(request), body)
    return await submit(request, FACE, prepared, key)
