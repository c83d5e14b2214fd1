"""Errors in Anthropic's form."""

from __future__ import annotations

from typing import Any

from app.errors import AppError

TYPES = {
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}
# The words by which clients know that they have to shorten the conversation.
TOO_LONG = "prompt is too long"
_OVERFLOWS = ("prompt_too_long", "context_length_exceeded")


def anthropic_error(error: AppError, request_id: str) -> dict[str, Any]:
    """The document; `code` is ours, beside what the form has."""
    kind = TYPES.get(error.status, "api_error" if error.status >= 500 else "invalid_request_error")
    message = f"{TOO_LONG}: {error.detail}" if error.code in _OVERFLOWS else error.detail
    return {
        "type": "error",
        "error": {"type": kind, "message": message, "code": error.code},
        "request_id": request_id,
    }
