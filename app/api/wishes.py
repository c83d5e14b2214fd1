"""What the headers of a request wish of its server: for the forms of others, whose bodies have no words for it."""

from __future__ import annotations

from fastapi import Request

from app.errors import invalid
from app.services.wishes import Wish

SERVER_HEADER, KINDS_HEADER = "x-server", "x-server-kinds"


def wish_of(request: Request) -> Wish:
    """Raises InvalidRequest where both headers are there."""
    server, kinds = request.headers.get(SERVER_HEADER), request.headers.get(KINDS_HEADER)
    if server and kinds:
        raise invalid(SERVER_HEADER, f"give either {SERVER_HEADER} or {KINDS_HEADER}")
    return Wish(server or None, tuple(kind.strip() for kind in (kinds or "").split(",") if kind.strip()))
