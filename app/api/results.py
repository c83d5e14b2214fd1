from dataclasses import asdict
from datetime import datetime
from typing import Annotated
from urllib.parse import quote
from uuid import UUID

from fastapi import APIRouter, Path, Query, Request, Response
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, Field

from app.api.dependencies import (
    IdempotencyKey,
    WaitDep,
    WindowDep,
    caller_of,
    link_next,
    problems,
    services_of,
)
from app.api.schemas import Attempt, ClientReference, Result, Ticket
from app.api.security import READ, SUBMIT, WORK, GuardedRoute
from app.api.tickets import POLL_AGAIN_SECONDS, JsonBytes, answer_with_ticket
from app.errors import invalid
from app.queue.ticket import Status
from app.services.meaning import MOST_SHOWN, SimilarStatus
from app.services.results import Filters
from app.services.ticket_words import has_words
from app.storable import StorableText

# Of these, none is run as a page or a script.
SHOWN_BY_BROWSERS = ("image/", "audio/", "video/")

router = APIRouter(prefix="/results", tags=["results"], route_class=GuardedRoute)


@router.get("/", dependencies=[READ], response_model=list[Result], responses=problems(422))
async def list_results(
    window: WindowDep,
    request: Request,
    response: Response,
    status: Status | None = None,
    model: Annotated[StorableText | None, Query(min_length=1, max_length=255)] = None,
    context_id: UUID | None = None,
    client_reference: Annotated[ClientReference | None, Query()] = None,
    text: Annotated[
        StorableText | None,
        Query(
            min_length=1,
            max_length=255,
            description="words that prompt, answer and error together have, whatever their case; a page may then be "
            "short, or empty, where there is another",
        ),
    ] = None,
) -> object:
    """Results, newest first. Of several filters together a page may be short, or empty, where there is another."""
    if text is not None and not has_words(text):
        raise invalid("text", "has no word: a letter or a digit at least is needed to look for")
    page = await services_of(request).results.page(
        caller_of(request), Filters(status, model, context_id, client_reference, text), window
    )
    link_next(request, response, page)
    return [Result.of(row) for row in page.rows]


@router.get("/{result_id}", dependencies=[READ], response_model=Result, responses=problems(404, 410, 422))
async def get_result(result_id: UUID, wait: WaitDep, request: Request) -> Response:
    """One result as it stands; `Prefer: wait=N` holds the answer until it is final or N seconds are over."""
    results = services_of(request).results
    if wait is None:
        row = await results.get_placed(caller_of(request), result_id)
    else:
        row = await results.wait(caller_of(request), result_id, wait, request.is_disconnected)
    response = JsonBytes(Result.of(row, await results.waiting(row)))
    if wait is not None:
        response.headers["Preference-Applied"] = f"wait={wait}"
    if not Status(row["status"]).final:
        response.headers["Retry-After"] = POLL_AGAIN_SECONDS
    return response


class SimilarQuestion(BaseModel):
    result_id: UUID
    chat_id: UUID
    title: str | None = Field(description="of the chat; null where that was removed")
    question: str = Field(description="its first 400 characters")
    model: str = Field(description="who answered")
    created_at: datetime
    likeness: float = Field(description="1 for the same meaning, about 0 for another subject")


class SimilarQuestions(BaseModel):
    status: SimilarStatus = Field(
        description="pending: ask again in a few seconds; off: SEARCH_EMBEDDING_MODEL is not set"
    )
    questions: list[SimilarQuestion]


@router.get(
    "/{result_id}/similar", dependencies=[READ], response_model=SimilarQuestions, responses=problems(404, 410, 422)
)
async def list_similar(
    result_id: UUID, request: Request, limit: Annotated[int, Query(ge=1, le=MOST_SHOWN)] = 5
) -> object:
    """Earlier questions of other chats that are like what this ticket of a chat asked; the most alike first."""
    similar = await services_of(request).meaning.similar(caller_of(request), result_id, limit)
    questions = [SimilarQuestion(**asdict(each)) for each in similar.questions]
    return SimilarQuestions(status=similar.status, questions=questions)


@router.post("/{result_id}/cancel", dependencies=[SUBMIT], response_model=Result, responses=problems(404, 410, 422))
async def cancel_result(result_id: UUID, request: Request) -> object:
    """Cancels: at once while queued, through the engine while running; a final result is returned unchanged."""
    return Result.of(await services_of(request).results.cancel(caller_of(request), result_id))


@router.post(
    "/{result_id}/retry",
    dependencies=[WORK],
    status_code=202,
    response_model=Ticket,
    responses=problems(404, 409, 410, 422),
)
async def retry_result(result_id: UUID, request: Request, key: IdempotencyKey = None) -> Response:
    """A new ticket for what a final result asked for; the old result stays as it is."""
    row, replayed = await services_of(request).submissions.retry(caller_of(request), result_id, key)
    return answer_with_ticket(request, row, replayed)


@router.get(
    "/{result_id}/outputs/{name}",
    dependencies=[READ],
    response_class=Response,
    responses={200: {"description": "The file", "content": {"*/*": {}}}, **problems(404, 410, 422)},
)
async def get_output(
    result_id: UUID,
    name: Annotated[StorableText, Path(max_length=255)],
    request: Request,
    response: Annotated[int, Query(ge=0, lt=2**31, description="of a decoupled model, the number of it")] = 0,
    element: Annotated[int, Query(ge=0, lt=2**31, description="of a tensor of BYTES")] = 0,
) -> Response:
    """An output that is binary or large, as a file."""
    outputs = services_of(request).outputs
    file = await outputs.get(caller_of(request), result_id, response, name, element)
    inline = file.media_type.startswith(SHOWN_BY_BROWSERS)
    headers = {
        "Content-Length": str(file.bytes),
        "Content-Disposition": f"{'inline' if inline else 'attachment'}; filename*=utf-8''{quote(name, safe='')}",
        "X-Content-Type-Options": "nosniff",
    }
    if getattr(request.state, "head", False):
        return Response(headers=headers, media_type=file.media_type)
    return StreamingResponse(outputs.content(file), headers=headers, media_type=file.media_type)


@router.get(
    "/{result_id}/attempts", dependencies=[READ], response_model=list[Attempt], responses=problems(404, 410, 422)
)
async def list_attempts(result_id: UUID, request: Request) -> object:
    """The ended attempts of a result, first to last."""
    return [Attempt.of(row) for row in await services_of(request).results.attempts(caller_of(request), result_id)]
