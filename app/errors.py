"""Errors a user can meet: each has a stable code, an HTTP status and a sentence that says what to do."""

from typing import Any, ClassVar


class AppError(Exception):
    """Base of all errors the API renders.

    `detail` is shown to the user as it stands: no path, no secret, no trace.
    """

    code: ClassVar[str] = "internal_error"
    status: ClassVar[int] = 500
    title: ClassVar[str] = "Internal error"

    def __init__(
        self,
        detail: str,
        *,
        errors: list[dict[str, Any]] | None = None,
        headers: dict[str, str] | None = None,
        **extra: Any,
    ) -> None:
        super().__init__(detail)
        self.detail = detail
        self.errors = errors
        self.headers = headers or {}
        self.extra = extra


class InvalidRequest(AppError):
    code = "invalid_request"
    status = 422
    title = "The request does not have the form this route takes"


class MalformedBody(AppError):
    code = "malformed_body"
    status = 400
    title = "The body is not JSON"


class UnsupportedMediaType(AppError):
    code = "unsupported_media_type"
    status = 415
    title = "The body is not declared as JSON"


class BodyTooLarge(AppError):
    code = "body_too_large"
    status = 413
    title = "The body is too large"


class InvalidParameters(AppError):
    code = "invalid_parameters"
    status = 422
    title = "The sampling parameters are not valid"


class NotFound(AppError):
    code = "not_found"
    status = 404
    title = "There is nothing at this address"


class MethodNotAllowed(AppError):
    code = "method_not_allowed"
    status = 405
    title = "This address does not take that method"


class ContextNotFound(NotFound):
    code = "context_not_found"
    title = "No such context"


class ResultNotFound(NotFound):
    code = "result_not_found"
    title = "No such result"


class ModelNotFound(NotFound):
    code = "model_not_found"
    title = "No such model"


class IdempotencyMismatch(AppError):
    code = "idempotency_mismatch"
    status = 422
    title = "The Idempotency-Key was used for another request"


class ResultPending(AppError):
    code = "result_pending"
    status = 409
    title = "The result is not final yet"


class ContextInUse(AppError):
    code = "context_in_use"
    status = 409
    title = "Results of this context are pending"


class Removed(AppError):
    code = "removed"
    status = 410
    title = "It was here and has been removed"


class DatabaseUnavailable(AppError):
    code = "database_unavailable"
    status = 503
    title = "The database cannot serve requests now"

    def __init__(self, *, stored_nothing: bool = False) -> None:
        outcome = (
            "Nothing of this request was stored; send it again."
            if stored_nothing
            else "It was lost in the middle of this request, which may have been stored: look for it by its "
            "client_reference, or send it again with the Idempotency-Key it had."
        )
        super().__init__(f"Postgres cannot serve requests at the moment. {outcome}", headers={"Retry-After": "2"})
