"""Errors in OpenAI's form, those of failed results among them."""

import re
from collections.abc import Iterable, Mapping
from typing import Any

from app.errors import AppError
from app.openai.ids import object_id

# What the request itself brought about; everything else is the servers' trouble.
OF_THE_REQUEST = frozenset(
    {
        "prompt_too_long",
        "prompt_empty",
        "prompt_not_text",
        "invalid_parameters",
        "lora_not_enabled",
        "lora_not_found",
        "not_supported_by_model",
        "model_contract",
        "model_refused",
        "inputs_refused",
        "invalid_request",
        "request_refused",
        "message_too_large",
        "answer_not_storable",
        "answer_too_large",
    }
)
STATUSES = {"cancelled": 409, "expired": 504, "idle_timeout": 504, "run_timeout": 504}
CODES = {"prompt_too_long": "context_length_exceeded"}
PARAMS = {"chat.completion": "messages", "text_completion": "prompt", "embedding": "input", "response": "input"}
_CONTEXT = re.compile(r"maximum context length is (\d+) tokens")
OPENAI_TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
# What a framework puts before the name of a field.
LOCATIONS = ("body", "query", "path", "header")


class GenerationFailed(AppError):
    """A ticket that ended as failed."""

    title = "The generation failed"

    def __init__(self, code: str, status: int, detail: str, param: str | None) -> None:
        # The ticket was tried as often as it may be: sending it again is for whoever knows why it failed.
        super().__init__(detail, headers={"x-should-retry": "false"})
        self.code = code  # type: ignore[misc]
        self.status = status  # type: ignore[misc]
        if param is not None:
            self.errors = [{"field": param, "message": detail}]


class CallsUnreadable(AppError):
    """A call was required, and what the model wrote is none."""

    code = "tool_calls_unreadable"
    status = 502
    title = "The model called no function"

    def __init__(self, id_: str, finish_reason: str | None) -> None:
        cut = finish_reason == "length"
        why = "ended at max_tokens before it named one; allow more tokens" if cut else "is no call; send it again"
        super().__init__(
            f"tool_choice asks for a function to be called, and the answer {why} ({id_}).",
            headers={"x-should-retry": "false"},
        )
        if cut:
            self.status = 400  # type: ignore[misc]


def failure_of(row: Mapping[str, Any], kind: str) -> GenerationFailed:
    """The error of a failed result's row."""
    code: str = row["error_code"]
    message: str = row["error_message"]
    if code == "prompt_too_long" and (limit := _CONTEXT.search(message)):
        # Frameworks look for these words to shorten the conversation and go on.
        message = (
            f"This model's maximum context length is {limit[1]} tokens, and the prompt is longer: shorten it, or lower "
            "max_tokens."
        )
    status = STATUSES.get(code, 400 if code in OF_THE_REQUEST else 502)
    param = PARAMS.get(kind) if code.startswith("prompt_") else None
    return GenerationFailed(CODES.get(code, code), status, f"{message} ({object_id(kind, row['id'])})", param)


def openai_status(error: AppError) -> int:
    """OpenAI's clients know no 422."""
    return 400 if error.status == 422 else error.status


def openai_error(error: AppError) -> dict[str, Any]:
    """The `error` object of OpenAI's API."""
    document: dict[str, Any] = {
        "message": error.detail,
        "type": OPENAI_TYPES.get(error.status, "server_error" if error.status >= 500 else "invalid_request_error"),
        "param": error.errors[0]["field"] or None if error.errors else None,
        "code": error.code,
    }
    return document


def parameter(location: Iterable[str | int]) -> str:
    """The parameter's name as a client writes it; the branches of unions, which pydantic names too, are left out."""
    parts, text = list(location), ""
    if parts[:1] == ["header"]:
        return str(parts[1])
    for place, part in enumerate(parts):
        if place == 0 and part in LOCATIONS:
            continue
        if isinstance(part, int):
            text += f"[{part}]"
        elif not part.isidentifier() or part in ("str", "int", "float", "bool", "dict", "list"):
            break
        else:
            text += f".{part}" if text else part
    return text
