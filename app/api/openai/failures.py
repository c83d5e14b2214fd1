"""Failed results as OpenAI's errors."""

from collections.abc import Mapping
from typing import Any

from app.api.openai.ids import object_id
from app.errors import AppError

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


def failure_of(row: Mapping[str, Any], kind: str) -> GenerationFailed:
    """The error of a failed result's row."""
    code: str = row["error_code"]
    status = STATUSES.get(code, 400 if code in OF_THE_REQUEST else 502)
    param = PARAMS.get(kind) if code.startswith("prompt_") else None
    return GenerationFailed(
        CODES.get(code, code), status, f"{row['error_message']} ({object_id(kind, row['id'])})", param
    )
