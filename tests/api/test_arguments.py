"""What is read first is answered as FastAPI answers it, and the routes that are called most are read so."""

from __future__ import annotations

from itertools import product
from typing import Annotated, Any
from uuid import UUID

import httpx
from fastapi import Depends, FastAPI, Header, Path, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from pydantic import BaseModel, Field

from app.api.arguments import arguments_of
from app.api.body import StrictJsonRoute
from app.config import Settings
from app.main import create_app
from app.queue.ticket import Status

ID = "0198c0de-0000-7000-8000-000000000000"
PLAIN = [
    ("POST", "/models/send/{model_name}/{context_id}"),
    ("GET", "/results/{result_id}"),
    ("POST", "/v1/chat/completions"),
    ("POST", "/v1/responses"),
    ("POST", "/v1/messages"),
]


class Body(BaseModel):
    number: int = Field(ge=1)


async def _double(x_factor: Annotated[int | None, Header(le=9)] = None) -> int | None:
    return None if x_factor is None else 2 * x_factor


async def endpoint(
    name: Annotated[str, Path(max_length=4)],
    id_: Annotated[UUID, Path(alias="id")],
    request: Request,
    doubled: Annotated[int | None, Depends(_double)],
    key: Annotated[str | None, Header(alias="Some-Key", min_length=1, max_length=5)] = None,
    status: Annotated[Status | None, Query()] = None,
    body: Body | None = None,
) -> Response:
    return Response(repr((name, id_, doubled, key, status, body, request.method)), 202)


async def needed(body: Body) -> Response:
    return Response(repr(body))


async def _refused(_: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    return Response(repr(error.errors()), 422)


class ThroughFastAPI(StrictJsonRoute):
    def __init__(self, *arguments: Any, **options: Any) -> None:
        APIRoute.__init__(self, *arguments, **options)


def _app(route: type[APIRoute]) -> FastAPI:
    app = FastAPI(openapi_url=None)
    app.router.route_class = route
    app.post("/{name}/{id}")(endpoint)
    app.post("/needed")(needed)
    app.exception_handler(RequestValidationError)(_refused)
    return app


PATHS = [f"/name/{ID}", f"/toolong/{ID}", "/name/none", "/needed", f"/name/{ID}?status=failed"]
BODIES = [b"", b"null", b'{"number": 3}', b'{"number": 0}', b'{"number"', b"[]", b'{"number": "3"}', b"\xff"]
HEADERS = [
    [("content-type", "application/json")],
    # Of two headers with one name the first counts.
    [
        ("content-type", "application/json; charset=utf-8"),
        *(("some-key", "k"), ("some-key", "other"), ("x-factor", "2"), ("x-factor", "3")),
    ],
    [("content-type", "Application/JSON "), ("some-key", "too long")],
    [("content-type", "application/vnd.api+json"), ("x-factor", "10")],
    [("content-type", "text/plain")],
    [("content-type", "application/json/more"), ("some-key", "")],
    [],
]


async def test_answers_are_those_of_fastapi() -> None:
    first, through = (
        httpx.AsyncClient(transport=httpx.ASGITransport(_app(route)), base_url="http://here")
        for route in (StrictJsonRoute, ThroughFastAPI)
    )
    async with first, through:
        for path, body, headers in product(PATHS, BODIES, HEADERS):
            answers = [await client.post(path, content=body, headers=headers) for client in (first, through)]
            seen = [(answer.status_code, answer.headers, answer.text) for answer in answers]
            assert seen[0] == seen[1], (path, body, headers)


def test_routes_that_are_called_most_are_read_first() -> None:
    routes = {
        (method, route.path): route
        for route in create_app(Settings()).routes
        if isinstance(route, StrictJsonRoute)
        for method in route.methods or ()
    }
    assert [each for each in PLAIN if arguments_of(routes[each].dependant) is None] == []
