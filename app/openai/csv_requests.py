"""A table as the requests of a batch: one chat for each row, its prompt written by a template."""

from __future__ import annotations

import csv
import re
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from io import TextIOWrapper
from typing import IO, Any

from app.background import Pace
from app.errors import InvalidRequest, invalid
from app.openai import chat_render
from app.openai.batch_lines import json_line

# `{column}` stands for a cell, `{{` and `}}` for the braces themselves.
PLACE = re.compile(r"\{\{|\}\}|\{([^{}\r\n]*)\}")
DELIMITERS = ",;\t"
ID_COLUMN = "custom_id"
PROBLEMS_SHOWN = 100
NAMES_SHOWN = 20


@dataclass(frozen=True, slots=True)
class Asking:
    """What every request of a table says."""

    model: str
    template: str
    system: str = ""
    parameters: Mapping[str, Any] = field(default_factory=dict)


class CsvRequests:
    """The rows of a CSV as lines of a batch's input; the file is read anew each time.

    Raises:
        InvalidRequest: the file is no table with a header, or the template names what is no column of it.
    """

    def __init__(self, file: IO[bytes], asking: Asking) -> None:
        self._file = file
        self._asking = asking
        with _text(file) as text:
            first = text.readline()
        # Whatever separates most of the header's names; spreadsheets choose it by country.
        self._delimiter = max(DELIMITERS, key=first.count)
        self.columns = next((row for _, row in self._read()), [])
        self._require_columns()
        self._require_template()

    def problems(self) -> tuple[int, list[dict[str, Any]]]:
        """How many rows do not fit the header, and the first of them, as the lines of a batch are refused."""
        count = 0
        shown: list[dict[str, Any]] = []
        for number, row in self._rows():
            if len(row) != len(self.columns):
                count += 1
                if count <= PROBLEMS_SHOWN:
                    message = f"The row has {len(row):,} cells, and the header has {len(self.columns):,}."
                    shown.append({"line": number, "code": "cells_do_not_fit", "message": message, "param": None})
        return count, shown

    def prompts(self, most: int) -> list[str]:
        """Of the first rows."""
        prompts: list[str] = []
        for _, row in self._rows():
            if len(prompts) == most:
                break
            prompts.append(self._prompt(row))
        return prompts

    async def lines(self) -> AsyncIterator[bytes]:
        pace = Pace()
        for number, row in self._rows():
            yield json_line(self._line(number, row))
            await pace.step()

    def _line(self, number: int, row: Sequence[str]) -> dict[str, Any]:
        asking = self._asking
        messages = [{"role": "system", "content": asking.system}] if asking.system.strip() else []
        messages.append({"role": "user", "content": self._prompt(row)})
        named = dict(zip(self.columns, row, strict=False)).get(ID_COLUMN)
        return {
            "custom_id": named or f"row-{number}",
            "method": "POST",
            "url": chat_render.FACE.path,
            "body": {"model": asking.model, "messages": messages, **asking.parameters},
        }

    def _prompt(self, row: Sequence[str]) -> str:
        cells = dict(zip(self.columns, row, strict=False))

        def written(place: re.Match[str]) -> str:
            name = place.group(1)
            return place.group(0)[0] if name is None else cells.get(name.strip(), "")

        return PLACE.sub(written, self._asking.template)

    def _require_columns(self) -> None:
        if not any(name.strip() for name in self.columns):
            raise invalid("file", "has no header: its first line names the columns")
        self.columns = [name.strip() for name in self.columns]
        twice = next((name for name in self.columns if self.columns.count(name) > 1), None)
        if twice is not None:
            raise invalid("file", f"names the column {_short(twice)!r} twice")

    def _require_template(self) -> None:
        template = self._asking.template
        there = ", ".join(f"{{{_short(name)}}}" for name in self.columns[:NAMES_SHOWN])
        if not template.strip():
            raise invalid("template", f"write the prompt of each row; the columns are {there}")
        names = [place.group(1).strip() for place in PLACE.finditer(template) if place.group(1) is not None]
        for name in names:
            if name not in self.columns:
                raise invalid(
                    "template",
                    f"{{{_short(name)}}} is no column, and the columns are {there}; the braces themselves are written "
                    "{{ and }}",
                )
        if not names:
            raise invalid("template", f"names no column, so all prompts would be the same; the columns are {there}")

    def _rows(self) -> Iterator[tuple[int, list[str]]]:
        """The rows below the header with their numbers, from 1; empty ones are left out."""
        for number, row in self._read():
            if number and any(cell.strip() for cell in row):
                yield number, row

    def _read(self) -> Iterator[tuple[int, list[str]]]:
        number = -1
        with _text(self._file) as text:
            try:
                for row in csv.reader(text, delimiter=self._delimiter, strict=True):
                    number += 1
                    yield number, row
            except csv.Error as error:
                raise invalid("file", f"row {number + 1:,} is no CSV: {error}") from None


@contextmanager
def _text(file: IO[bytes]) -> Iterator[TextIOWrapper]:
    """The file from its beginning; it stays open."""
    file.seek(0)
    text = TextIOWrapper(file, "utf-8-sig", newline="")
    try:
        yield text
    except UnicodeDecodeError:
        raise _not_utf8() from None
    finally:
        if not file.closed:
            text.detach()


def _not_utf8() -> InvalidRequest:
    return invalid("file", "is not text in UTF-8: save the table as CSV UTF-8, or a batch as JSON Lines")


def _short(name: str) -> str:
    return name[:60]
