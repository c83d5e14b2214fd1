"""/tgi/v1: OpenAI's routes below TGI's base URL, where TGI's clients send chats."""

from __future__ import annotations

from typing import TypeVar

from fastapi import APIRouter, Request, Response

from app.api.dependencies import IdempotencyKey
from app.api.faces.tgi import ERRORS
from app.api.openai.chat import create_chat_completion
from app.api.openai.completions import create_completion
from app.api.openai.documents import STREAM_OR_JSON
from app.api.security import WORK, GuardedRoute
from app.openai.chat_request import ChatRequest
from app.openai.completions import CompletionRequest

# What clients call the one model of a TGI: text-generation the first, huggingface_hub the second.
ANY_MODEL = ("tgi", "dummy")

Body = TypeVar("Body", ChatRequest, CompletionRequest)

router = APIRouter(prefix="/tgi/v1", tags=["tgi"], route_class=GuardedRoute, dependencies=[WORK])


@router.post("/chat/completions", response_class=Response, responses=ERRORS | STREAM_OR_JSON)
async def chat_completions(body: ChatRequest, request: Request, key: IdempotencyKey = None) -> Response:
    """As /v1/chat/completions; `tgi` and `dummy` name the default model."""
    return await create_chat_completion(_without_placeholder(body), request, key)


@router.post("/completions", response_class=Response, responses=ERRORS | STREAM_OR_JSON)
async def completions(body: CompletionRequest, request: Request, key: IdempotencyKey = None) -> Response:
    """As /v1/completions; `tgi` and `dummy` name the default model."""
    return await create_completion(_without_placeholder(body), request, key)


def _without_placeholder(body: Body) -> Body:
    return body.model_copy(update={"model": None}) if body.model in ANY_MODEL else body
