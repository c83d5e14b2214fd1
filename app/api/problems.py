"""Errors as application/problem+json (RFC 9457), all in one place."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic_core import to_json
from starlette.exceptions import HTTPException
from starlette.routing import Match

from app.db.engine import is_passing
from app.errors import (
    AppError,
    DatabaseUnavailable,
    InvalidRequest,
    MalformedBody,
    MethodNotAllowed,
    NotFound,
    UnsupportedMediaType,
)
from app.telemetry import logger

log = logger("api")

MEDIA_TYPE = "application/problem+json"
TYPE_PREFIX = "urn:triton-tickets:error:"
MESSAGE_CHARS = 500


def problem_response(error: AppError) -> Response:
    document: dict[str, Any] = {
        "type": TYPE_PREFIX + error.code,
        "title": error.title,
        "status": error.status,
        "code": error.code,
        "detail": error.detail,
    }
    if error.errors:
        document["errors"] = error.errors
    document.update(error.extra)
    return Response(to_json(document), error.status, error.headers, MEDIA_TYPE)


def install_handlers(app: FastAPI) -> None:
    @app.exception_handler(AppError)
    async def render(_: Request, error: Exception) -> Response:
        assert isinstance(error, AppError)
        return problem_response(error)

    @app.exception_handler(RequestValidationError)
    async def render_validation(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        return problem_response(_from_validation(request, error))

    @app.exception_handler(HTTPException)
    async def render_http(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        return problem_response(_from_http(request, error))

    @app.exception_handler(Exception)
    async def render_defect(request: Request, error: Exception) -> Response:
        if is_passing(error):
            return problem_response(DatabaseUnavailable())
        return problem_response(
            AppError("The service failed on this request. The cause is in its log; nothing is wrong with yours.")
        )


def _from_validation(request: Request, error: RequestValidationError) -> AppError:
    problems = error.errors()
    malformed = next((problem for problem in problems if problem["type"] == "json_invalid"), None)
    if malformed is not None:
        reason = str(malformed.get("ctx", {}).get("error", "not JSON")).removeprefix("Invalid JSON: ")
        return MalformedBody(f"The body is not valid JSON: {reason}.")
    content_type = request.headers.get("content-type", "")
    if any(problem["loc"] == ("body",) and isinstance(problem.get("input"), bytes) for problem in problems):
        declared = f"declared as {content_type.split(';')[0]}" if content_type else "without a Content-Type"
        return UnsupportedMediaType(f"The body came {declared}; send JSON with Content-Type: application/json.")
    errors = [{"field": _field(problem["loc"]), "message": _message(problem)} for problem in problems[:20]]
    first = errors[0]
    return InvalidRequest(f"{first['field']}: {first['message']}", errors=errors)


def _field(location: Sequence[Any]) -> str:
    parts = [str(part) for part in location]
    if parts[0] in ("body", "query", "path", "header"):
        parts = parts[1:] or parts
    return ".".join(parts)[:200]


def _message(problem: dict[str, Any]) -> str:
    if problem["type"] == "extra_forbidden":
        return "there is no such field; check its spelling"
    if problem["type"] == "missing":
        return "is required"
    text = str(problem["msg"]).removeprefix("Value error, ")
    return text[:MESSAGE_CHARS]


def _methods(request: Request) -> list[str]:
    """All methods that some route takes at this path."""
    return [
        method
        for method in ("DELETE", "GET", "PATCH", "POST", "PUT")
        if any(route.matches({**request.scope, "method": method})[0] is Match.FULL for route in request.app.routes)
    ]


def _from_http(request: Request, error: HTTPException) -> AppError:
    if error.status_code == 404:
        return NotFound("No route has this path; GET /docs shows those there are, trailing slashes included.")
    if error.status_code == 405:
        allowed = ", ".join(_methods(request))
        return MethodNotAllowed(
            f"{request.method} is not possible here; this path takes {allowed}.", headers={"Allow": allowed}
        )
    refused = MalformedBody(str(error.detail))
    refused.status = error.status_code  # type: ignore[misc]
    return refused
