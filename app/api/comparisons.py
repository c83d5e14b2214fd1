from typing import Any
from uuid import UUID

from fastapi import APIRouter, Request, Response

from app.api.comparison_schemas import ComparisonCreate, ComparisonSummary, ComparisonTable
from app.api.dependencies import (
    IdempotencyKey,
    Services,
    WaitDep,
    WindowDep,
    caller_of,
    link_next,
    mark_replayed,
    problems,
    root_of,
    services_of,
)
from app.api.security import READ, SUBMIT, WORK, GuardedRoute
from app.api.tickets import POLL_AGAIN_SECONDS, JsonBytes
from app.db.tables.contexts import Prompt
from app.errors import invalid
from app.openai.chat_request import taken_chat
from app.openai.messages import plain
from app.queue.ticket import Idempotency, Status
from app.services.callers import Caller
from app.services.comparisons import Comparison, Contender, naming
from app.services.idempotency import idempotency_of
from app.services.webhooks import accepted

router = APIRouter(prefix="/comparisons", tags=["comparisons"], route_class=GuardedRoute)


@router.post(
    "/",
    dependencies=[WORK],
    status_code=202,
    response_model=ComparisonTable,
    responses=problems(400, 404, 410, 413, 415, 422),
)
async def create_comparison(
    body: ComparisonCreate, request: Request, wait: WaitDep, key: IdempotencyKey = None
) -> object:
    """Sends one prompt to up to 16 models: a ticket for each, all or none."""
    idempotency = idempotency_of(key, "comparison", body.model_dump(mode="json", by_alias=True, exclude_unset=True))
    id_, replayed = await send_comparison(services_of(request), caller_of(request), body, idempotency)
    response = await _table(request, id_, wait, 202)
    response.headers["Location"] = f"{root_of(request)}/comparisons/{id_}"
    mark_replayed(response, replayed)
    return response


@router.get("/", dependencies=[READ], response_model=list[ComparisonSummary], responses=problems(422))
async def list_comparisons(window: WindowDep, request: Request, response: Response) -> object:
    """Comparisons without the answers, newest first."""
    rows, page = await services_of(request).comparisons.page(caller_of(request), window)
    link_next(request, response, page)
    return [ComparisonSummary.of(row) for row in rows]


@router.get("/{comparison_id}", dependencies=[READ], response_model=ComparisonTable, responses=problems(404, 410, 422))
async def get_comparison(comparison_id: UUID, wait: WaitDep, request: Request) -> object:
    """The answers side by side; `Prefer: wait=N` holds them until all are final or N seconds are over."""
    return await _table(request, comparison_id, wait)


@router.post(
    "/{comparison_id}/cancel",
    dependencies=[SUBMIT],
    response_model=ComparisonTable,
    responses=problems(404, 410, 422),
)
async def cancel_comparison(comparison_id: UUID, request: Request) -> object:
    """Cancels every result that is not final, as `POST /results/{id}/cancel` does."""
    return _rendered(request, await services_of(request).comparisons.cancel(caller_of(request), comparison_id))


@router.delete("/{comparison_id}", dependencies=[SUBMIT], status_code=204, responses=problems(404, 409, 410, 422))
async def delete_comparison(comparison_id: UUID, request: Request) -> None:
    """Removes a comparison with its results, and the prompt that came with it; 409 while a result is pending."""
    await services_of(request).comparisons.delete(caller_of(request), comparison_id)


async def send_comparison(
    services: Services, caller: Caller, body: ComparisonCreate, idempotency: Idempotency | None = None
) -> tuple[UUID, bool]:
    """The id of the comparison, committed; True when an earlier request with the key had made it.

    Raises:
        AppError: whatever is wrong with it, naming the field.
    """
    if earlier := await services.comparisons.made_before(caller, idempotency):
        return earlier, True
    contenders = body.contenders()
    prompt, messages = await _prompt(services, caller, body)
    await _require(services, caller, contenders, messages)
    return await services.comparisons.create(
        caller,
        prompt,
        contenders,
        priority=body.priority,
        expires_in=body.expires_in,
        client_reference=body.client_reference,
        streamed=body.stream,
        webhook=accepted(body.webhook, services.settings),
        idempotency=idempotency,
    )


async def _prompt(
    services: Services, caller: Caller, body: ComparisonCreate
) -> tuple[Prompt | UUID, list[dict[str, Any]] | None]:
    """What is compared, and its messages where it is a chat."""
    if body.context_id is not None:
        context = await services.contexts.get(caller, body.context_id)
        if context["inputs"] is not None:
            raise invalid("context_id", "the context holds tensors, and no text or chat")
        stored = context["messages"] if context["content"] is None else None
        return body.context_id, stored
    longest = services.settings.max_content_chars
    if body.content is not None and len(body.content) > longest:
        raise invalid("content", f"is longer than {longest:,} characters")
    messages = None if body.messages is None else plain(body.messages)
    return Prompt(body.content, messages=messages, metadata=body.metadata), messages


async def _require(
    services: Services, caller: Caller, contenders: list[Contender], messages: list[dict[str, Any]] | None
) -> None:
    """
    Raises:
        AppError: the key may not use a model, there is none of that name, or it takes no such chat.
    """
    for place, contender in enumerate(contenders):
        with naming(place):
            adapter = contender.parameters.lora_name
            caller.require_model(contender.model, adapter)
            await services.catalog.require(contender.model)
            await services.wishes.require(contender.wish)
            await services.adapters.require(contender.model, adapter)
            if messages is not None:
                await taken_chat(services, contender.model, messages, {})


async def _table(request: Request, id_: UUID, wait: int | None, status: int = 200) -> Response:
    comparisons = services_of(request).comparisons
    if wait is None:
        comparison = await comparisons.get(caller_of(request), id_)
    else:
        comparison = await comparisons.wait(caller_of(request), id_, wait, request.is_disconnected)
    response = _rendered(request, comparison, status)
    if wait is not None:
        response.headers["Preference-Applied"] = f"wait={wait}"
    return response


def _rendered(request: Request, comparison: Comparison, status: int = 200) -> Response:
    response = JsonBytes(ComparisonTable.of(comparison, root_of(request)), status)
    if comparison.status is Status.PENDING:
        response.headers["Retry-After"] = POLL_AGAIN_SECONDS
    return response
