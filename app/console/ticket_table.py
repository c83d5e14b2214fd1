"""Tickets as a table for a spreadsheet program."""

from __future__ import annotations

import csv
import io
from collections.abc import AsyncIterator, Mapping
from typing import Any

from app.console.usage_pages import FORMULA
from app.openai.batch_lines import json_line
from app.services.ticket_list import EXPORTED, EXPORTED_OF_PROMPT

NAMES = (*EXPORTED, *EXPORTED_OF_PROMPT)
MEDIA_TYPE = "text/csv; charset=utf-8"


async def csv_of(rows: AsyncIterator[Mapping[str, Any]]) -> AsyncIterator[str]:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\r\n")
    writer.writerow(NAMES)
    async for row in rows:
        writer.writerow([_cell(row[name]) for name in NAMES])
        yield text.getvalue()
        text.seek(0)
        text.truncate()
    # The header, where there was no row.
    yield text.getvalue()


def _cell(value: Any) -> Any:
    if isinstance(value, dict | list):
        return json_line({"": value})[4:-2].decode()
    return f"'{value}" if isinstance(value, str) and value.startswith(FORMULA) else value
