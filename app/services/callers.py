"""On whose behalf a request is made."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Any
from uuid import UUID

from app.key_errors import ModelNotAllowed


class Scope(StrEnum):
    """What a key may do: look, make and end work, manage keys."""

    READ = "read"
    SUBMIT = "submit"
    ADMIN = "admin"


@dataclass(frozen=True, slots=True)
class Caller:
    """`owner_id` bounds what a request can see; the limits are those of its key, None for none.

    `models` are ids as in GET /v1/models; a model's own name stands for its adapters too.
    """

    owner_id: int
    key_id: UUID | None = None
    scopes: frozenset[Scope] = frozenset()
    requests_per_minute: int | None = None
    pending_limit: int | None = None
    tokens_per_day: int | None = None
    tokens_per_month: int | None = None
    dollars_per_day: float | None = None
    dollars_per_month: float | None = None
    storage_bytes: int | None = None
    models: tuple[str, ...] | None = None
    webhook: dict[str, Any] | None = None

    @property
    def limited(self) -> bool:
        return self.requests_per_minute is not None or self.pending_limit is not None or self.capped

    @property
    def capped(self) -> bool:
        """Whether what it spends in a day or a month is bounded."""
        daily = self.tokens_per_day is not None or self.dollars_per_day is not None
        return daily or self.capped_by_month

    @property
    def capped_by_month(self) -> bool:
        return self.tokens_per_month is not None or self.dollars_per_month is not None

    def sees(self, model: str) -> bool:
        """Whether it may use the model, or some adapter of it."""
        return self.models is None or any(each == model or each.startswith(f"{model}:") for each in self.models)

    def may_use(self, model: str, adapter: str | None = None) -> bool:
        return self.models is None or model in self.models or f"{model}:{adapter}" in self.models

    def require_model(self, model: str, adapter: str | None = None) -> None:
        """Raises ModelNotAllowed."""
        if not self.may_use(model, adapter):
            asked = model if adapter is None else f"{model}:{adapter}"
            allowed = ", ".join(self.models or ())
            raise ModelNotAllowed(
                f"This key may use {allowed}, and not {asked!r}. Whoever runs the service makes keys for other models."
            )


# The columns of a key that bound it.
LIMITS = (
    "requests_per_minute",
    "pending_limit",
    "tokens_per_day",
    "tokens_per_month",
    "dollars_per_day",
    "dollars_per_month",
    "storage_bytes",
)

# Asks for all owners together; none can have this name.
EVERYBODY = "all"

# Callers without a key: from anywhere, and from this machine.
ANONYMOUS = Caller(owner_id=0, scopes=frozenset({Scope.READ, Scope.SUBMIT}))
LOCAL = Caller(owner_id=0, scopes=frozenset(Scope))
