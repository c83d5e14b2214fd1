from datetime import UTC, date, datetime, timedelta
from typing import Annotated, Any, Literal
from uuid import UUID

from fastapi import APIRouter, Query, Request
from pydantic import BaseModel, Field

from app.api.dependencies import caller_of, problems, services_of
from app.api.security import READ, GuardedRoute
from app.errors import InvalidRequest
from app.services.usage import GroupBy

router = APIRouter(tags=["usage"], route_class=GuardedRoute, dependencies=[READ])

DEFAULT_DAYS = 30


class Counts(BaseModel):
    requests: int = Field(description="results that became final")
    failures: int = Field(description="those of them that failed")
    prompt_tokens: int
    completion_tokens: int
    gpu_seconds: float = Field(description="what the runs had of their servers' time")
    cost: float | None = Field(description="dollars, for servers whose hourly price is known; null where none is")
    host_cost: float = Field(0.0, description="of it on rented hosts; with `owner=all`")
    overhead: float = Field(
        0.0,
        description="dollars that rented hosts cost besides, by day and in all: made, loading, idle; with `owner=all`",
    )


class UsageGroup(Counts):
    day: date | None = Field(None, description="UTC; when grouped by day")
    model: str | None = Field(None, description="when grouped by model")
    key_id: UUID | None = Field(None, description="when grouped by key; null for requests without one")
    key_name: str | None = None
    key_hint: str | None = None
    key_person: str | None = None
    owner: str | None = Field(None, description="when grouped by owner")


class KeyCap(BaseModel):
    limit: Literal["tokens_per_day", "tokens_per_month", "dollars_per_day", "dollars_per_month"]
    most: float
    used: float
    ends_at: datetime = Field(description="when the day or the month is over")


class UsageReport(BaseModel):
    group_by: GroupBy
    first_day: date
    last_day: date
    groups: list[UsageGroup]
    total: Counts
    limits: list[KeyCap] = Field(description="what the key that asks may spend, and has; empty where it has no cap")


@router.get("/usage", response_model=UsageReport, response_model_exclude_unset=True, responses=problems(404, 422))
async def get_usage(
    request: Request,
    group_by: Annotated[GroupBy, Query()] = GroupBy.DAY,
    first: Annotated[date | None, Query(alias="from", description="first day, in UTC; 29 days before `to`")] = None,
    last: Annotated[date | None, Query(alias="to", description="last day, included; today")] = None,
    owner: Annotated[
        str | None,
        Query(pattern=r"^[^\x00]+$", max_length=200, description="another's, or `all`; for the scope admin"),
    ] = None,
) -> dict[str, Any]:
    """What was used, counted once for each result when it became final."""
    last = last or datetime.now(UTC).date()
    first = first or last - timedelta(days=min(DEFAULT_DAYS - 1, last.toordinal() - 1))
    if first > last:
        message = "is later than `to`"
        raise InvalidRequest(f"from: {message}", errors=[{"field": "from", "message": message}])
    used = await services_of(request).usage.used(caller_of(request), group_by, first, last, owner)
    return {
        "group_by": group_by,
        "first_day": first,
        "last_day": last,
        "groups": [dict(row) for row in used.rows],
        "total": dict(used.total),
        "limits": [
            {"limit": cap.name, "most": cap.limit, "used": cap.used, "ends_at": cap.ends_at}
            for cap in await services_of(request).limits.caps(caller_of(request))
        ],
    }
