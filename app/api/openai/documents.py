"""What the OpenAPI document says of the answers below /v1."""

from typing import Any

from app.api.dependencies import DESCRIPTIONS

ERROR = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "null"]},
            },
        }
    },
}
OF_GENERATIONS = {
    409: "It was cancelled, or is still pending",
    502: "The servers failed on it as often as it was tried",
    503: "Postgres cannot serve requests now, or this process stops; the message says what was stored",
    504: "It took longer than it may",
}
_CONTENT = {"application/json": {"schema": ERROR}}


def openai_errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The error answers of a route, for the OpenAPI document."""
    described = {400: "Not valid, or not possible; `param` names the parameter"} | DESCRIPTIONS | OF_GENERATIONS
    return {
        status: {"description": described.get(status, "An error"), "content": _CONTENT}
        for status in sorted({400, 401, 403, 404, 429, 503, *statuses})
    }


ANSWERS = openai_errors(409, 410, 413, 415, 500, 502, 504)
OBJECT: dict[int | str, dict[str, Any]] = {
    200: {"description": "OpenAI's object", "content": {"application/json": {"schema": {"type": "object"}}}}
}
STREAM_OR_JSON: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "OpenAI's object, or with `stream` its chunks as server-sent events",
        "content": {"application/json": {"schema": {"type": "object"}}, "text/event-stream": {}},
    }
}
