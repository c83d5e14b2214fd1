"""Ratings: what people think of answers."""

from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, Any, Literal, Self
from uuid import UUID

from fastapi import APIRouter, Query, Request, Response
from pydantic import BaseModel, Field

from app.api.dependencies import WindowDep, caller_of, link_next, problems, services_of
from app.api.schemas import RequestBody
from app.api.security import READ, SUBMIT, GuardedRoute
from app.services.ratings import MOST_COMMENT_CHARS, RATINGS
from app.storable import StorableText

router = APIRouter(tags=["ratings"], route_class=GuardedRoute)

Word = Literal["good", "bad"]


class RatingPut(RequestBody):
    rating: Word
    comment: StorableText | None = Field(None, max_length=MOST_COMMENT_CHARS)


class Rating(BaseModel):
    id: UUID = Field(description="another one each time that the rating changes")
    result_id: UUID
    rating: Word
    comment: str | None
    model: str = Field(description="whose answer it is")
    key_id: UUID | None = Field(description="who rated; null for a caller without a key")
    created_at: datetime

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> Self:
        word = next(name for name, value in RATINGS.items() if value == row["rating"])
        return cls(**{name: row[name] for name in cls.model_fields} | {"rating": word})


@router.put(
    "/results/{result_id}/rating",
    dependencies=[SUBMIT],
    response_model=Rating,
    responses=problems(400, 404, 409, 410, 413, 415, 422),
)
async def rate_answer(result_id: UUID, body: RatingPut, request: Request) -> object:
    """Says what the caller's key thinks of an answer, in place of what it said before; 409 while it is pending."""
    ratings, caller = services_of(request).ratings, caller_of(request)
    return Rating.of(await ratings.set(caller, result_id, RATINGS[body.rating], body.comment))


@router.delete("/results/{result_id}/rating", dependencies=[SUBMIT], status_code=204, responses=problems(404, 410, 422))
async def take_rating_back(result_id: UUID, request: Request) -> None:
    """Removes the rating of this key, if there is one."""
    await services_of(request).ratings.remove(caller_of(request), result_id)


@router.get("/ratings/", dependencies=[READ], response_model=list[Rating], responses=problems(422))
async def list_ratings(
    window: WindowDep,
    request: Request,
    response: Response,
    model: Annotated[StorableText | None, Query(min_length=1, max_length=255)] = None,
    rating: Word | None = None,
) -> object:
    """Ratings by all keys of the owner, newest first; one goes with its result."""
    value = None if rating is None else RATINGS[rating]
    page = await services_of(request).ratings.page(caller_of(request), window, model=model, rating=value)
    link_next(request, response, page)
    return [Rating.of(row) for row in page.rows]
