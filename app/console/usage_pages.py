"""What was used and what it cost, by day, model, key and owner: as a page, and as CSV for a spreadsheet."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request, Response

from app.api.dependencies import caller_of, services_of
from app.api.security import READ
from app.console.charts import Line, bar_chart
from app.console.entrance import PREFIX, PageRoute
from app.console.pages import page
from app.console.render import HEADERS
from app.errors import invalid
from app.services.callers import EVERYBODY, Scope
from app.services.usage import GroupBy, Used
from app.storable import StorableText

DEFAULT_DAYS = 30
MOST_DAYS = 3660
# Of more days, a bar is a month.
MOST_BARS = 92
COUNTS = ("requests", "failures", "prompt_tokens", "completion_tokens", "gpu_seconds", "cost")
# What rented hosts cost beside their tickets, where the usage knows it.
OF_HOSTS = ("host_cost", "overhead")
NAMED_BY: dict[GroupBy, tuple[str, ...]] = {
    GroupBy.DAY: ("day",),
    GroupBy.MODEL: ("model",),
    GroupBy.KEY: ("key_id", "key_name", "key_person", "key_hint"),
    GroupBy.OWNER: ("owner",),
}
# A spreadsheet takes a cell that begins so for a formula.
FORMULA = ("=", "+", "-", "@", "\t", "\r")

router = APIRouter(prefix=f"{PREFIX}/usage", route_class=PageRoute, include_in_schema=False, dependencies=[READ])


@dataclass(frozen=True, slots=True)
class Span:
    """`first` to `last`, both included, in UTC; `owner` by name, EVERYBODY, or None for the caller's own."""

    first: date
    last: date
    group_by: GroupBy
    owner: str | None

    @property
    def days(self) -> list[date]:
        return [self.first + timedelta(days=each) for each in range((self.last - self.first).days + 1)]


async def _span(
    request: Request,
    first: Annotated[str, Query(alias="from", max_length=40)] = "",
    last: Annotated[str, Query(alias="to", max_length=40)] = "",
    by: Annotated[str, Query(max_length=40)] = GroupBy.MODEL,
    owner: Annotated[StorableText, Query(max_length=200)] = "",
) -> Span:
    """Admins see all owners together unless they choose one."""
    until = _day("to", last) or datetime.now(UTC).date()
    since = _day("from", first) or max(date.min, until - timedelta(days=DEFAULT_DAYS - 1))
    if since > until:
        raise invalid("from", "is later than `to`")
    if (until - since).days >= MOST_DAYS:
        raise invalid("from", f"is more than {MOST_DAYS:,} days before `to`")
    if by not in list(GroupBy):
        raise invalid("by", f"is one of {', '.join(GroupBy)}")
    everybody = EVERYBODY if Scope.ADMIN in caller_of(request).scopes else None
    return Span(since, until, GroupBy(by), owner or everybody)


def _day(name: str, text: str) -> date | None:
    try:
        return date.fromisoformat(text) if text else None
    except ValueError:
        raise invalid(name, "is a day, like 2026-01-31") from None


Spanned = Annotated[Span, Depends(_span)]


@router.get("")
async def usage(request: Request, span: Spanned) -> Response:
    services, caller = services_of(request), caller_of(request)

    async def gather() -> dict[str, Any]:
        by_day = await _used(request, span, GroupBy.DAY)
        groups = by_day if span.group_by is GroupBy.DAY else await _used(request, span, span.group_by)
        is_admin = Scope.ADMIN in caller.scopes
        return {
            "span": span,
            "total": by_day.total,
            "groups": sorted(groups.rows, key=lambda row: -row["requests"])
            if span.group_by is not GroupBy.DAY
            else list(reversed(groups.rows)),
            "hosts": any(dict(by_day.total).get(name) for name in OF_HOSTS),
            "kinds": [each for each in GroupBy if is_admin or each is not GroupBy.OWNER],
            "owners": sorted({row["owner"] for row in await services.keys.list()}) if is_admin else [],
            "caps": await services.limits.caps(caller),
            "everybody": EVERYBODY,
            "query_of": {"from": span.first, "to": span.last, "owner": "" if span.owner == EVERYBODY else span.owner},
            **_charts(span.days, by_day.rows),
        }

    return await page(request, "usage.html", gather)


@router.get(".csv")
async def table(request: Request, span: Spanned) -> Response:
    used = await _used(request, span, span.group_by)
    names = (*NAMED_BY[span.group_by], *COUNTS, *(each for each in OF_HOSTS if each in dict(used.total)))
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\r\n")
    writer.writerow(names)
    for row in used.rows:
        found = dict(row)
        writer.writerow([_cell(found.get(name)) for name in names])
    file = f"usage-by-{span.group_by}-{span.first}-{span.last}.csv"
    headers = HEADERS | {"Content-Disposition": f'attachment; filename="{file}"'}
    return Response(text.getvalue(), media_type="text/csv; charset=utf-8", headers=headers)


async def _used(request: Request, span: Span, group_by: GroupBy) -> Used:
    return await services_of(request).usage.used(caller_of(request), group_by, span.first, span.last, span.owner)


def _charts(days: Sequence[date], rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    a_bar, of_a = ("%Y-%m-%d", "day") if len(days) <= MOST_BARS else ("%Y-%m", "month")
    names = list(dict.fromkeys(f"{day:{a_bar}}" for day in days))

    def of(name: str) -> list[float]:
        sums = dict.fromkeys(names, 0.0)
        for row in rows:
            sums[f"{row['day']:{a_bar}}"] += float(dict(row).get(name) or 0)
        return list(sums.values())

    completed = [all_ - failed for all_, failed in zip(of("requests"), of("failures"), strict=True)]
    tickets = [Line("completed", "good", completed), Line("failed or cancelled", "warn", of("failures"))]
    tokens = [Line("prompts", "plain", of("prompt_tokens")), Line("answers", "good", of("completion_tokens"))]
    dollars = [Line("tickets", "plain", of("cost"))]
    if any(of("overhead")):
        dollars.append(Line("hosts besides", "warn", of("overhead")))
    return {
        "charts": [
            (f"Tickets a {of_a}", bar_chart(f"Tickets a {of_a}", tickets, names)),
            (f"Tokens a {of_a}", bar_chart(f"Tokens a {of_a}", tokens, names)),
            (f"Dollars a {of_a}", bar_chart(f"Dollars a {of_a}", dollars, names, "$")),
            (
                f"GPU seconds a {of_a}",
                bar_chart(f"GPU seconds a {of_a}", [Line("seconds", "plain", of("gpu_seconds"))], names, " s"),
            ),
        ]
    }


def _cell(value: Any) -> Any:
    if value is None:
        return ""
    return f"'{value}" if isinstance(value, str) and value.startswith(FORMULA) else value
