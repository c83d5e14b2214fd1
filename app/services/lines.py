"""What becomes of a batch's line: a request ready to be stored, an error, or neither."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any, ClassVar, Protocol

from pydantic_core import to_json

from app.db.tables.contexts import Prompt
from app.services.callers import Caller

DEFECTIVE = (
    "A defect of the service, or of the model's chat template, kept this request from being run; its cause is in the "
    "service's log. The other lines were not affected."
)


class PreparedLine(Protocol):
    """What a line asks of the engine, and what it is answered by."""

    @property
    def model(self) -> str: ...
    @property
    def prompt(self) -> Prompt: ...
    @property
    def engine_parameters(self) -> dict[str, Any]: ...
    @property
    def kind(self) -> str | None: ...
    @property
    def request(self) -> dict[str, Any] | None: ...
    @property
    def webhook(self) -> dict[str, Any] | None: ...
    @property
    def kept(self) -> bool: ...


class Unprepared:
    """A line that nothing could be made of: what was sent stands for its prompt, and is never run."""

    engine_parameters: ClassVar[dict[str, Any]] = {}
    kind = request = webhook = None
    kept = True

    def __init__(self, body: Mapping[str, Any]) -> None:
        model = body.get("model")
        self.model = model.replace("\x00", "") if isinstance(model, str) else ""
        self.prompt = Prompt(to_json(body).decode())


# Takes the endpoint and the body of a line; raises what the endpoint itself would answer.
Prepare = Callable[[Caller, str, Mapping[str, Any]], Awaitable[PreparedLine]]


class Undecided(Exception):
    """A checker knows too little to say what becomes of the line: the API itself has to."""


class LineError(Exception):
    def __init__(self, code: str, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.code, self.message, self.param = code, message, param


async def lines_of(parts: AsyncIterator[bytes], longest: int) -> AsyncIterator[tuple[int, bytes | None]]:
    """Lines with their numbers, from 1; None stands for one of more than `longest` bytes, which is not held."""
    number, rest, dropped = 1, b"", False
    async for part in parts:
        *whole, last = part.split(b"\n")
        for piece in whole:
            line = rest + piece
            yield number, None if dropped or len(line) > longest else line
            number, rest, dropped = number + 1, b"", False
        if not dropped:
            rest += last
            if len(rest) > longest:
                rest, dropped = b"", True
    if rest or dropped:
        yield number, None if dropped else rest
