"""Picks: which answer of a comparison somebody found the best."""

from uuid import UUID

from fastapi import APIRouter, Request, Response

from app.api.comparison_schemas import Pick, PickCreate
from app.api.dependencies import WindowDep, caller_of, link_next, problems, services_of
from app.api.security import READ, SUBMIT, GuardedRoute

router = APIRouter(tags=["comparisons"], route_class=GuardedRoute)


@router.put(
    "/comparisons/{comparison_id}/pick",
    dependencies=[SUBMIT],
    response_model=Pick,
    responses=problems(400, 404, 409, 410, 413, 415, 422),
)
async def pick_answer(comparison_id: UUID, body: PickCreate, request: Request) -> object:
    """Says which answer is the best, in place of what the same key said before; 409 while one is pending."""
    return Pick.of(await services_of(request).picks.set(caller_of(request), comparison_id, body.result_id))


@router.delete(
    "/comparisons/{comparison_id}/pick",
    dependencies=[SUBMIT],
    status_code=204,
    responses=problems(404, 410, 422),
)
async def take_pick_back(comparison_id: UUID, request: Request) -> None:
    """Removes the pick of this key, if there is one."""
    await services_of(request).picks.remove(caller_of(request), comparison_id)


@router.get("/picks/", dependencies=[READ], response_model=list[Pick], responses=problems(422))
async def list_picks(window: WindowDep, request: Request, response: Response) -> object:
    """Picks, newest first; they stay when the retention removes their comparison."""
    page = await services_of(request).picks.page(caller_of(request), window)
    link_next(request, response, page)
    return [Pick.of(row) for row in page.rows]
