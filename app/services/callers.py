"""On whose behalf a request is made."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Any
from uuid import UUID


class Scope(StrEnum):
    """What a key may do: look, make and end work, manage keys."""

    READ = "read"
    SUBMIT = "submit"
    ADMIN = "admin"


@dataclass(frozen=True, slots=True)
class Caller:
    """`owner_id` bounds what a request can see; the limits are those of its key, None for none."""

    owner_id: int
    key_id: UUID | None = None
    scopes: frozenset[Scope] = frozenset()
    requests_per_minute: int | None = None
    pending_limit: int | None = None
    tokens_per_day: int | None = None
    webhook: dict[str, Any] | None = None

    @property
    def limited(self) -> bool:
        return (self.requests_per_minute, self.pending_limit, self.tokens_per_day) != (None, None, None)


# Asks for all owners together; none can have this name.
EVERYBODY = "all"

# Callers without a key: from anywhere, and from this machine.
ANONYMOUS = Caller(owner_id=0, scopes=frozenset({Scope.READ, Scope.SUBMIT}))
LOCAL = Caller(owner_id=0, scopes=frozenset(Scope))
