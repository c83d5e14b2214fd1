"""Which servers there are: those of the settings, and those of a file that changes while the service runs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from app.config import server_address
from app.engines.base import Endpoint
from app.telemetry import logger

log = logger("servers")


class ServerEntry(BaseModel):
    """A server: its gRPC address `host:port`, what people call it, and its price in dollars an hour."""

    model_config = ConfigDict(frozen=True, strict=True, allow_inf_nan=False)

    url: Annotated[str, AfterValidator(server_address)]
    name: str | None = None
    hourly_price: float | None = Field(None, ge=0)

    @property
    def endpoint(self) -> Endpoint:
        return Endpoint("triton", self.url)


class _Contents(BaseModel):
    servers: list[ServerEntry]


class ServerList:
    """The `fixed` addresses and the entries of `file`, which may describe a fixed one."""

    def __init__(self, fixed: Sequence[str], file: Path | None) -> None:
        self._fixed = [ServerEntry(url=url) for url in fixed]
        self._file = file
        self._listed: list[ServerEntry] = []
        self._refused: bytes | str | None = None

    def read(self) -> list[ServerEntry]:
        """The servers as they are listed now, each address once.

        A missing file lists none; one that cannot be used leaves what it listed before.
        """
        if self._file is not None:
            self._follow(self._file)
        return list({entry.url: entry for entry in (*self._fixed, *self._listed)}.values())

    def _follow(self, file: Path) -> None:
        content: bytes | str
        try:
            content = file.read_bytes()
            self._listed = _Contents.model_validate_json(content).servers
        except FileNotFoundError:
            self._listed = []
        except OSError as error:
            content = reason = error.strerror or type(error).__name__
            self._refuse(content, f"it cannot be read: {reason}")
            return
        except ValidationError as error:
            self._refuse(content, _first_of(error))
            return
        self._refused = None

    def _refuse(self, content: bytes | str, reason: str) -> None:
        """Says it once, not with every look."""
        if content != self._refused:
            log.warning("TRITON_SERVERS_FILE cannot be used, the servers stay as they were", reason=reason)
        self._refused = content


def _first_of(error: ValidationError) -> str:
    problem = error.errors(include_url=False, include_input=False)[0]
    place = ".".join(str(part) for part in problem["loc"])
    message = problem["msg"].removeprefix("Value error, ")
    return f"{place}: {message}" if place else message
