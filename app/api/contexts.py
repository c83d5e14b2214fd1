from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any
from uuid import UUID

from fastapi import APIRouter, Request, Response

from app.api.dependencies import (
    IdempotencyKey,
    WindowDep,
    caller_of,
    link_next,
    mark_replayed,
    problems,
    root_of,
    services_of,
)
from app.api.schemas import Context, ContextCreate
from app.api.security import READ, SUBMIT, GuardedRoute
from app.api.tensor_files import filled
from app.db.tables.contexts import Prompt
from app.errors import AppError, InvalidRequest
from app.openai.rendering import chat_prompt
from app.services.inputs import stored

router = APIRouter(prefix="/contexts", tags=["contexts"], route_class=GuardedRoute)


@router.post(
    "/", dependencies=[SUBMIT], status_code=201, response_model=Context, responses=problems(400, 413, 415, 422)
)
async def create_context(
    body: ContextCreate, request: Request, response: Response, key: IdempotencyKey = None
) -> object:
    """Stores a prompt: a text, or the tensors that a model takes."""
    longest = services_of(request).settings.max_content_chars
    if len(body.content or "") > longest:
        message = f"is longer than {longest:,} characters"
        raise InvalidRequest(f"content: {message}", errors=[{"field": "content", "message": message}])
    tensors = None if body.inputs is None else stored(await filled(request, body.inputs))
    prompt = Prompt(body.content, inputs=tensors, metadata=body.metadata)
    context, replayed = await services_of(request).contexts.create(caller_of(request), prompt, key)
    mark_replayed(response, replayed)
    response.headers["Location"] = f"{root_of(request)}/contexts/{context['id']}"
    return context


@router.get("/", dependencies=[READ], response_model=list[Context], responses=problems(422))
async def list_contexts(window: WindowDep, request: Request, response: Response) -> object:
    """Stored prompts, newest first."""
    page = await services_of(request).contexts.page(caller_of(request), window)
    link_next(request, response, page)
    return await _shown(request, page.rows)


@router.get("/{context_id}", dependencies=[READ], response_model=Context, responses=problems(404, 410, 422))
async def get_context(context_id: UUID, request: Request) -> object:
    """One stored prompt."""
    row = await services_of(request).contexts.get(caller_of(request), context_id)
    return (await _shown(request, [row]))[0]


@router.delete("/{context_id}", dependencies=[SUBMIT], status_code=204, responses=problems(404, 409, 410, 422))
async def delete_context(context_id: UUID, request: Request) -> None:
    """Removes a prompt with its results and attempts; 409 while any is pending or a line of a batch that runs."""
    await services_of(request).contexts.delete(caller_of(request), context_id)


async def _shown(request: Request, rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Contexts with the prompt of each chat, as its model's template makes it now; null where it makes none."""
    services = services_of(request)
    chats = [row["id"] for row in rows if row["content"] is None and row["messages"] is not None]
    asked = await services.contexts.requests(chats) if chats else {}
    prompts: dict[UUID, str] = {}
    for row in rows:
        if sent := asked.get(row["id"]):
            with suppress(AppError):
                prompts[row["id"]] = await chat_prompt(
                    services.templates, sent["model"], row["messages"], sent["kind"], sent["request"]
                )
    return [{**row, "content": prompts[row["id"]]} if row["id"] in prompts else row for row in rows]
