"""/tokenize and /detokenize, as vLLM has them."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request

from app.api.dependencies import caller_of, services_of
from app.api.openai.documents import openai_errors
from app.api.security import READ, GuardedRoute
from app.openai.tokens import DetokenizeRequest, TokenizeRequest, tokens_of

router = APIRouter(tags=["openai"], route_class=GuardedRoute, dependencies=[READ])


@router.post("/tokenize", responses=openai_errors())
async def tokenize(body: TokenizeRequest, request: Request) -> dict[str, Any]:
    """The tokens of a prompt, or of what the model's template makes of a chat."""
    services = services_of(request)
    model, ids = await tokens_of(services, caller_of(request), body)
    names = await services.tokenizers.names(model, ids) if body.return_token_strs else None
    length = services.profiles.of(model).max_model_len
    return {"count": len(ids), "max_model_len": length, "tokens": ids, "token_strs": names}


@router.post("/detokenize", responses=openai_errors())
async def detokenize(body: DetokenizeRequest, request: Request) -> dict[str, Any]:
    """The text of tokens."""
    services = services_of(request)
    chosen = await services.adapters.resolve(caller_of(request), body.model)
    return {"prompt": await services.tokenizers.decode(chosen.model, body.tokens, "tokens")}
