"""From what a page shows to HTML: templates, the words of times and numbers, static files, and errors as pages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from decimal import Decimal
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any
from urllib.parse import urlencode, urlsplit

import nh3
from fastapi import Response
from fastapi.responses import HTMLResponse, RedirectResponse
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markdown_it import MarkdownIt
from markupsafe import Markup
from starlette.types import Scope as Connection

from app.api.problems import route_path
from app.console.navigation import entries
from app.errors import AppError
from app.key_errors import Unauthorized
from app.queue.ticket import CANCELLED
from app.services.callers import Scope
from app.services.results import phase

HERE = Path(__file__).parent
STATIC = HERE / "static"
# Nothing but what comes from here runs or is shown, and no page elsewhere can put a frame around it.
HEADERS = {
    "Content-Security-Policy": "default-src 'self'; img-src 'self' data:; object-src 'none'; base-uri 'none'; "
    "form-action 'self'; frame-ancestors 'none'",
    "Referrer-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
}
# A link from elsewhere comes without the cookie, which is for our pages alone: from this one the browser sends it.
ONCE_MORE = '<!doctype html><meta http-equiv="refresh" content="0"><title>Tickets</title>'
MARKDOWN = MarkdownIt("commonmark", {"html": False}).enable(["table", "strikethrough"])
WITHOUT_TABLES = MarkdownIt("commonmark", {"html": False}).enable("strikethrough")
# What a longer text or a larger table takes to make would keep all other requests waiting.
MAX_MARKDOWN_CHARS, MAX_CELLS = 50_000, 20_000
TAGS = {
    *("a", "blockquote", "br", "code", "del", "em", "h1", "h2", "h3", "h4", "h5", "h6", "hr", "li", "ol", "p", "pre"),
    *("s", "strong", "table", "tbody", "td", "th", "thead", "tr", "ul"),
}
CLEANER = nh3.Cleaner(tags=TAGS, attributes={"a": {"href"}, "ol": {"start"}}, link_rel="noopener noreferrer nofollow")


@cache
def asset_version(name: str) -> str:
    return sha256((STATIC / name).read_bytes()).hexdigest()[:12]


def markdown(text: str) -> Markup:
    """What a model wrote, as HTML that can do nothing; a long text is shown as it stands."""
    if len(text) > MAX_MARKDOWN_CHARS:
        return Markup('<div class="text">{}</div>').format(text)
    lines = text.splitlines()
    # A row has as many cells as the head of its table, however short it is.
    cells = len(lines) * max((line.count("|") for line in lines), default=0)
    parser = MARKDOWN if cells <= MAX_CELLS else WITHOUT_TABLES
    return Markup(CLEANER.clean(parser.render(text)))  # noqa: S704 - cleaned


def moment(value: datetime | None) -> Markup:
    """A time, which the page's script shows in the reader's zone."""
    if value is None:
        return Markup("–")
    utc = value.astimezone(UTC)
    return Markup('<time datetime="{}">{}</time>').format(
        utc.isoformat(timespec="milliseconds"), f"{utc:%Y-%m-%d %H:%M:%S} UTC"
    )


def duration(seconds: float | None) -> str:
    if seconds is None:
        return "–"
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(int(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours < 48 else f"{hours // 24} days {hours % 24} h"


def number(value: float | Decimal | None) -> str:
    """Whole ones, as sums of them are too, without a fraction."""
    return "–" if value is None else f"{value:,}" if isinstance(value, int | Decimal) else f"{value:,.2f}"


def dollars(value: float | None) -> str:
    """To the cent, and what is less than a dollar to a hundredth of one."""
    if value is None:
        return "–"
    return f"${value:,.2f}" if value == 0 or abs(value) >= 1 else f"${value:.4f}"


def query(given: Mapping[str, Any], **changes: Any) -> str:
    """The filters of an address with these changes, empty ones left out."""
    kept = {name: value for name, value in (dict(given) | changes).items() if value not in (None, "")}
    return f"?{urlencode(kept)}" if kept else "?"


def took(row: Mapping[str, Any]) -> float:
    """Seconds from the submit to the end, or until now."""
    seconds: float = ((row["completed_at"] or datetime.now(UTC)) - row["created_at"]).total_seconds()
    return seconds


def badge(state: str) -> Markup:
    return Markup('<span class="badge is-{0}">{0}</span>').format(state)


def state_of(row: Mapping[str, Any]) -> str:
    """Status and phase in one word; what was cancelled on request did not fail."""
    return phase(row) or (CANCELLED if row["error_code"] == CANCELLED else str(row["status"]))


ENVIRONMENT = Environment(
    loader=FileSystemLoader(HERE / "templates"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
ENVIRONMENT.filters.update(markdown=markdown, moment=moment, duration=duration, number=number, dollars=dollars)
ENVIRONMENT.globals.update(query=query, took=took, badge=badge, state_of=state_of)


def root(scope: Connection) -> str:
    return str(scope.get("root_path", ""))


def common(scope: Connection) -> dict[str, Any]:
    """What every page knows."""
    caller = scope["state"].get("caller")
    scopes: Sequence[Scope] = () if caller is None else sorted(caller.scopes)
    base = root(scope)
    return {
        "root": base,
        "page": route_path(scope).removeprefix("/console") or "/",
        "entries": entries(scopes),
        "console": f"{base}/console",
        "asset": lambda name: f"{base}/console/static/{name}?v={asset_version(name)}",
        "form_page": _page_before(scope) if scope["method"] == "POST" else "",
        "logged_in": caller is not None and caller.key_id is not None,
        "may_submit": Scope.SUBMIT in scopes,
        "may_admin": Scope.ADMIN in scopes,
    }


def html(scope: Connection, template: str, status: int = 200, **values: Any) -> HTMLResponse:
    page = ENVIRONMENT.get_template(template).render(**common(scope), **values)
    return HTMLResponse(page, status, HEADERS)


def error_page(scope: Connection, error: AppError) -> Response:
    """A refusal as people read it; whoever is not known is led to the log-in."""
    headers = _headers(scope)
    if isinstance(error, Unauthorized) and "text/event-stream" not in headers.get("accept", ""):
        if "cookie" not in headers and headers.get("sec-fetch-site") == "cross-site" and scope["method"] == "GET":
            return HTMLResponse(ONCE_MORE, headers=HEADERS)
        text = scope["query_string"].decode("latin-1")
        came = _page_before(scope)
        back = route_path(scope) + (f"?{text}" if text else "") if scope["method"] == "GET" else came or "/console/"
        to = {"to": back} | ({"ended": "yes"} if came else {})
        return RedirectResponse(f"{root(scope)}/console/login?{urlencode(to)}", 303, headers=HEADERS)
    return with_retry_after(html(scope, "error.html", error.status, error=error, form=None), error)


def _headers(scope: Connection) -> dict[str, str]:
    return {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}


def _page_before(scope: Connection) -> str:
    """The page of the console that led here, which only somebody who was logged in had; empty where there is none."""
    headers = _headers(scope)
    address = urlsplit(headers.get("referer", ""))
    path = address.path.removeprefix(root(scope))
    # Without HTTPS a browser says of other machines' pages only which one led here.
    site = "same-origin" if address.netloc == headers.get("host") else ""
    if headers.get("sec-fetch-site", site) != "same-origin" or not path.startswith("/console/"):
        return ""
    return "" if path == "/console/login" else path + (f"?{address.query}" if address.query else "")


def with_retry_after(page: Response, error: AppError) -> Response:
    if "Retry-After" in error.headers:
        page.headers["Retry-After"] = error.headers["Retry-After"]
    return page
