"""What the forms that ask a model share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

from fastapi import Form, Request

from app.api.dependencies import caller_of, services_of
from app.errors import AppError, invalid
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


def faults_of(error: AppError, fields: Mapping[str, str], rest: str = "") -> dict[str, str]:
    """What is wrong, by fields of the form: `fields` has the one of each part of the request; others are in `rest`."""
    faults: dict[str, str] = {}
    for each in error.errors or ():
        name = each["field"].split(".")[0].split("[")[0]
        field = fields.get(name, rest)
        faults.setdefault(field, each["message"] if name in fields else f"{each['field']}: {each['message']}")
    return faults
