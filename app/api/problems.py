"""Errors, all in one place: as application/problem+json (RFC 9457), below /v1 as OpenAI has them or, for its clients,
Anthropic, below /tgi as TGI."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic_core import to_json
from starlette.exceptions import HTTPException
from starlette.routing import Match
from starlette.types import Scope

from app.anthropic.failures import anthropic_error
from app.api.faces.tgi_render import tgi_error, tgi_status
from app.db.faults import is_unavailable
from app.errors import (
    AppError,
    DatabaseUnavailable,
    InvalidRequest,
    MalformedBody,
    MethodNotAllowed,
    NotFound,
    UnsupportedMediaType,
)
from app.openai.failures import LOCATIONS, openai_error, openai_status, parameter
from app.telemetry import logger

log = logger("api")

MEDIA_TYPE = "application/problem+json"
TYPE_PREFIX = "urn:triton-tickets:error:"
MESSAGE_CHARS = 500
OPENAI_PREFIX, TGI_PREFIX = "/v1", "/tgi"
MESSAGES_PREFIX, MODELS_PREFIX = "/v1/messages", "/v1/models"
# By the first Anthropic's clients are known where OpenAI's have the same path; the other has the request's id for them.
ANTHROPIC_VERSION, ANTHROPIC_ID = b"anthropic-version", "request-id"
# In a request's state.
RENDERS_ERRORS = "renders_errors"
# What vLLM's clients find beside it.
OPENAI_PATHS = ("/tokenize", "/detokenize")


def problem_document(error: AppError) -> dict[str, Any]:
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
    return document


def problem_response(error: AppError) -> Response:
    return Response(to_json(problem_document(error)), error.status, error.headers, MEDIA_TYPE)


def route_path(scope: Scope) -> str:
    """The path below ROOT_PATH."""
    path, root = str(scope["path"]), str(scope.get("root_path", ""))
    return path[len(root) :] if root and path.startswith(root + "/") else path


def is_openai(path: str) -> bool:
    return path in OPENAI_PATHS or _below(path, OPENAI_PREFIX)


def _below(path: str, prefix: str) -> bool:
    return path == prefix or path.startswith(prefix + "/")


def is_anthropic(scope: Scope) -> bool:
    path = route_path(scope)
    if _below(path, MODELS_PREFIX):
        return any(name == ANTHROPIC_VERSION for name, _ in scope["headers"])
    return _below(path, MESSAGES_PREFIX)


def error_response(scope: Scope, error: AppError) -> Response:
    """In the shape that the client expects; a route that renders its errors itself says so in the request's state."""
    rendered: Callable[[Scope, AppError], Response] | None = scope["state"].get(RENDERS_ERRORS)
    if rendered is not None:
        return rendered(scope, error)
    path = route_path(scope)
    if is_anthropic(scope):
        id_: str = scope["state"]["request_id"]
        headers = {**(error.headers or {}), ANTHROPIC_ID: id_}
        return Response(to_json(anthropic_error(error, id_)), openai_status(error), headers, "application/json")
    if is_openai(path):
        document = to_json({"error": openai_error(error)})
        return Response(document, openai_status(error), error.headers, "application/json")
    if _below(path, TGI_PREFIX):
        return Response(to_json(tgi_error(error)), tgi_status(error), error.headers, "application/json")
    return problem_response(error)


def install_handlers(app: FastAPI) -> None:
    @app.exception_handler(AppError)
    async def render(request: Request, error: Exception) -> Response:
        assert isinstance(error, AppError)
        return error_response(request.scope, error)

    @app.exception_handler(RequestValidationError)
    async def render_validation(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        return error_response(request.scope, _from_validation(request, error))

    @app.exception_handler(HTTPException)
    async def render_http(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        return error_response(request.scope, _from_http(request, error))

    @app.exception_handler(Exception)
    async def render_defect(request: Request, error: Exception) -> Response:
        failure: AppError = DatabaseUnavailable()
        if not is_unavailable(error):
            failure = AppError(
                "The service failed on this request. The cause is in its log; nothing is wrong with yours."
            )
        return error_response(request.scope, failure)


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
    return invalid_fields(problems, parameter if is_openai(route_path(request.scope)) else _field)


def invalid_fields(problems: Sequence[Any], name: Callable[[Sequence[Any]], str] | None = None) -> InvalidRequest:
    """What pydantic found; `name` makes the name of a field of its place."""
    name = name or _field
    errors = [{"field": name(problem["loc"]), "message": _message(problem)} for problem in problems[:20]]
    first = errors[0]
    return InvalidRequest(f"{first['field'] or 'The body'}: {first['message']}", errors=errors)


def _field(location: Sequence[Any]) -> str:
    parts = [str(part) for part in location]
    if parts[0] in LOCATIONS:
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
        for method in ("DELETE", "GET", "HEAD", "PATCH", "POST", "PUT")
        if any(route.matches(_asked_with(method, request))[0] is Match.FULL for route in request.app.routes)
    ]


def _asked_with(method: str, request: Request) -> Scope:
    # HEAD is routed as GET.
    return {**request.scope, "method": "GET" if method == "HEAD" else method}


def _from_http(request: Request, error: HTTPException) -> AppError:
    if error.status_code == 404:
        return NotFound("No route has this path; GET /docs shows those there are, trailing slashes included.")
    if error.status_code == 405:
        allowed = ", ".join(_methods(request))
        method = "HEAD" if getattr(request.state, "head", False) else request.method
        return MethodNotAllowed(
            f"{method} is not possible here; this path takes {allowed}.", headers={"Allow": allowed}
        )
    refused = MalformedBody(str(error.detail))
    refused.status = error.status_code  # type: ignore[misc]
    return refused
