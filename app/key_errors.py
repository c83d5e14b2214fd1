"""Errors of API keys: who may ask, and for how much."""

from math import ceil

from app.errors import AppError, NotFound


class Unauthorized(AppError):
    """Whoever asks has shown no key that counts."""

    code = "invalid_api_key"
    status = 401
    title = "A valid API key is needed"

    def __init__(self, detail: str, challenge: str = 'Bearer error="invalid_token"') -> None:
        super().__init__(detail, headers={"WWW-Authenticate": challenge})


class ApiKeyExpired(Unauthorized):
    code = "api_key_expired"
    title = "The API key has expired"


class ApiKeyRevoked(Unauthorized):
    code = "api_key_revoked"
    title = "The API key was revoked"


class ScopeMissing(AppError):
    code = "scope_missing"
    status = 403
    title = "The API key may not do this"


class KeyNotFound(NotFound):
    code = "key_not_found"
    title = "No such API key"


class KeyExists(AppError):
    code = "key_exists"
    status = 409
    title = "This API key was made already"


class OwnerNotFound(NotFound):
    code = "owner_not_found"
    title = "No such owner"


class ModelNotAllowed(AppError):
    code = "model_not_allowed"
    status = 403
    title = "The API key is not for this model"


class TooManyGuesses(AppError):
    code = "too_many_guesses"
    status = 429
    title = "Too many wrong keys"


class ForeignForm(AppError):
    code = "foreign_form"
    status = 403
    title = "The form was not made for this browser"


class LimitReached(AppError):
    """A limit of the key; nothing was stored. `seconds` until it is worth trying again, `limit` is the key's field."""

    status = 429
    title = "A limit of the API key is reached"

    def __init__(self, detail: str, seconds: float, limit: str) -> None:
        super().__init__(detail, headers={"Retry-After": str(max(1, ceil(seconds)))}, limit=limit)


class RequestLimitReached(LimitReached):
    code = "request_limit_reached"


class PendingLimitReached(LimitReached):
    code = "pending_limit_reached"


class TokenLimitReached(LimitReached):
    code = "token_limit_reached"


class SpendingLimitReached(LimitReached):
    code = "spending_limit_reached"


class StorageQuotaReached(AppError):
    code = "storage_quota_reached"
    status = 413
    title = "The owner's files have reached their quota"
