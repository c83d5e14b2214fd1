"""A table as the requests of a batch: one chat for each row, its prompt written by a template."""

from __future__ import annotations

import csv
import re
from collections import Counter
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

    A row and a prompt have `most_chars` characters at most, and all prompts `most_in_all`: a template may name a long
    cell thousands of times.

    Raises:
        InvalidRequest: the file is no table with a header, or the template names what is no column of it.
    """

    def __init__(self, file: IO[bytes], asking: Asking, most_chars: int, most_in_all: int) -> None:
        self._file = file
        self._asking = asking
        self._most_chars, self._most_in_all = most_chars, most_in_all
        # How often the template names each column, and what else each request has.
        self._places = Counter(_names(asking.template))
        self._rest = len(PLACE.sub(lambda place: "{" if place.group(1) is None else "", asking.template))
        self._rest += len(asking.system)
        with _text(file) as text:
            first = text.readline(most_chars)
        # Whatever separates most of the header's names; spreadsheets choose it by country.
        self._delimiter = max(DELIMITERS, key=first.count)
        self.columns = next((row for _, row in self._read()), [])
        self._require_columns()
        self._require_template()

    async def problems(self) -> tuple[int, list[dict[str, Any]]]:
        """How many rows can be no request, and the first of them, as the lines of a batch are refused.

        Raises:
            InvalidRequest: all prompts together are too long.
        """
        count, chars = 0, 0
        shown: list[dict[str, Any]] = []
        pace = Pace()
        for number, row in self._rows():
            await pace.step()
            if (problem := self._problem(row)) is not None:
                count += 1
                if count <= PROBLEMS_SHOWN:
                    code, message = problem
                    shown.append({"line": number, "code": code, "message": message, "param": None})
            else:
                chars += self._chars(row)
                if chars > self._most_in_all:
                    raise invalid(
                        "template",
                        f"makes prompts of more than {self._most_in_all:,} characters in all, at row {number:,}: "
                        "shorten it, or make several batches of the table",
                    )
        return count, shown

    def _chars(self, row: Sequence[str]) -> int:
        """Of the row's prompt, with the instructions."""
        cells = dict(zip(self.columns, row, strict=True))
        return self._rest + sum(times * len(cells[name]) for name, times in self._places.items())

    def _problem(self, row: Sequence[str]) -> tuple[str, str] | None:
        """Its code, and a sentence; None where there is none."""
        if len(row) != len(self.columns):
            return "cells_do_not_fit", f"The row has {len(row):,} cells, and the header has {len(self.columns):,}."
        if (chars := self._chars(row)) > self._most_chars:
            return "prompt_too_long", f"Its prompt would have {chars:,} characters: {self._most_chars:,} are allowed."
        return None

    def prompts(self, most: int) -> list[str]:
        """Of the first rows."""
        prompts: list[str] = []
        for _, row in self._rows():
            if len(prompts) == most:
                break
            if self._problem(row) is None:
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
        if twice := [name for name, times in Counter(self.columns).items() if times > 1]:
            raise invalid("file", f"names the column {_short(twice[0])!r} twice")

    def _require_template(self) -> None:
        template = self._asking.template
        there = ", ".join(f"{{{_short(name)}}}" for name in self.columns[:NAMES_SHOWN])
        if not template.strip():
            raise invalid("template", f"write the prompt of each row; the columns are {there}")
        columns = set(self.columns)
        for name in self._places:
            if name not in columns:
                raise invalid(
                    "template",
                    f"{{{_short(name)}}} is no column, and the columns are {there}; the braces themselves are written "
                    "{{ and }}",
                )
        if not self._places:
            raise invalid("template", f"names no column, so all prompts would be the same; the columns are {there}")

    def _rows(self) -> Iterator[tuple[int, list[str]]]:
        """The rows below the header with their numbers, from 1; empty ones are left out."""
        for number, row in self._read():
            if number and any(cell.strip() for cell in row):
                yield number, row

    def _read(self) -> Iterator[tuple[int, list[str]]]:
        number, chars = -1, 0
        with _text(self._file) as text:

            def lines() -> Iterator[str]:
                nonlocal chars
                while line := text.readline(self._most_chars + 1):
                    chars += len(line)
                    if chars > self._most_chars:
                        most = f"{self._most_chars:,}"
                        raise invalid("file", f"row {number + 1:,} is no CSV, or is longer than {most} characters")
                    yield line

            try:
                for row in csv.reader(lines(), delimiter=self._delimiter, strict=True):
                    number, chars = number + 1, 0
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


def _names(template: str) -> Iterator[str]:
    """The columns that a template names, as often as it does."""
    return (place.group(1).strip() for place in PLACE.finditer(template) if place.group(1) is not None)


def _not_utf8() -> InvalidRequest:
    return invalid("file", "is not text in UTF-8: save the table as CSV UTF-8, or a batch as JSON Lines")


def _short(name: str) -> str:
    return name[:60]
