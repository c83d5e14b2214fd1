"""POST /v1/images/generations, for models that make an image from a prompt."""

from __future__ import annotations

from functools import partial

from fastapi import APIRouter, Request, Response

from app.api.dependencies import IdempotencyKey, caller_of, services_of
from app.api.holding import CLIENT_CLOSED_REQUEST, completed
from app.api.openai.answers import Json, hold_several, mark
from app.api.openai.documents import ANSWERS, OBJECT
from app.api.security import WORK, GuardedRoute
from app.openai.images import ImageRequest, prepare_images, render_images
from app.tasks.purposes import IMAGE, output_of

router = APIRouter(prefix="/v1/images", tags=["openai"], route_class=GuardedRoute, dependencies=[WORK])


@router.post("/generations", response_class=Response, responses=ANSWERS | OBJECT)
async def create_image(body: ImageRequest, request: Request, key: IdempotencyKey = None) -> Response:
    """Draws a prompt: a ticket for each image, and the files in base64 once all are there."""
    services, caller = services_of(request), caller_of(request)
    prepared = await prepare_images(services, caller, body)
    held = await hold_several(request, prepared, key, partial(completed, request))
    if held is None:
        return Response(status_code=CLIENT_CLOSED_REQUEST)
    rows, replayed = held
    images = []
    for row in rows:
        output = output_of(IMAGE, row["answer"], "image")
        images += [] if output is None else await services.outputs.elements(caller, row["id"], output)
    response = Json(render_images(int(rows[0]["created_at"].timestamp()), images, body.size))
    mark(response, prepared[0], replayed)
    return response
