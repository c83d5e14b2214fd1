"""What the forms that ask a model share."""

from __future__ import annotations

from typing import Annotated

from fastapi import Form, Request

from app.api.dependencies import caller_of, services_of
from app.errors import invalid
from app.services.catalog import CatalogEntry

LONGEST = 1_000_000

Text = Annotated[str, Form(max_length=LONGEST)]
Word = Annotated[str, Form(max_length=255)]


async def text_models(request: Request) -> list[CatalogEntry]:
    """Those that chat, as far as it is known, and that the caller may use."""
    services, caller = services_of(request), caller_of(request)
    entries = [entry for entry in await services.catalog.models() if caller.sees(entry.name)]
    able = {entry.name: services.profiles.of(entry.name).capabilities for entry in entries}
    return [entry for entry in entries if (can := able[entry.name]) is None or can.chat]


def number_of(name: str, text: str, kind: type[int] | type[float]) -> float:
    """Raises InvalidRequest, naming the field."""
    try:
        return kind(text.strip())
    except ValueError:
        raise invalid(name, f"{text[:20]!r} is no {'whole number' if kind is int else 'number'}") from None
