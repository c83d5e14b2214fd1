"""Which servers there are: those of the settings, and those of a file that changes while the service runs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator

from app.engines.base import Credential, Endpoint, Timeouts
from app.engines.registry import ENGINES, TRITON
from app.settings_checks import server_address
from app.telemetry import logger

log = logger("servers")

ModelName = Annotated[str, Field(min_length=1, max_length=255)]


Seconds = Annotated[float, Field(gt=0)]
MOST_CONCURRENCY = 4096


def web_address(text: str) -> str:
    """The text again.

    Raises:
        ValueError: it is no URL that paths can be appended to.
    """
    try:
        url = urlsplit(text)
        usable = url.scheme in ("http", "https") and url.hostname and (url.port is None or url.port > 0)
    except ValueError:
        usable = False
    if not usable or "@" in text or "?" in text or "#" in text or not text.isprintable() or " " in text:
        # It may hold a secret, which is not repeated.
        raise ValueError("the address must be like https://api.example.org/v1; a credential has a field of its own")
    return text


class ServerTimeouts(BaseModel):
    """In seconds; what is left out is the service's own."""

    model_config = ConfigDict(frozen=True, strict=True, allow_inf_nan=False)

    connect: Seconds | None = None
    first_token: Seconds | None = None
    between_tokens: Seconds | None = None
    total: Seconds | None = None


class ServerEntry(BaseModel):
    """A server: its address, what people call it, and its price in dollars an hour.

    The address is a gRPC address `host:port` for Triton, a URL for other kinds. `models` are aliases, their name to
    ours: where there are some, only those models are offered. `credential` says where the secret is.
    """

    model_config = ConfigDict(frozen=True, strict=True, allow_inf_nan=False)

    kind: str = TRITON
    url: str
    name: str | None = None
    hourly_price: float | None = Field(None, ge=0)
    models: dict[ModelName, ModelName] = Field(default_factory=dict)
    credential: str | None = None
    timeouts: ServerTimeouts = ServerTimeouts()
    # Requests of each model at once; None for MODEL_CONCURRENCY.
    concurrency: int | None = Field(None, ge=1, le=MOST_CONCURRENCY)
    # Dollars for a million tokens.
    prompt_token_price: float | None = Field(None, ge=0)
    completion_token_price: float | None = Field(None, ge=0)

    @field_validator("kind")
    @classmethod
    def _is_a_kind(cls, kind: str) -> str:
        if kind not in ENGINES:
            raise ValueError(f"{kind!r} is none of {', '.join(ENGINES)}")
        return kind

    @field_validator("url")
    @classmethod
    def _is_an_address(cls, url: str, info: ValidationInfo) -> str:
        # Without a kind that is one, the other complaint is enough.
        return {TRITON: server_address}.get(info.data["kind"], web_address)(url) if "kind" in info.data else url

    @field_validator("models")
    @classmethod
    def _are_different(cls, models: dict[str, str]) -> dict[str, str]:
        if len(set(models.values())) < len(models):
            raise ValueError("two models have the same alias")
        return models

    @field_validator("credential")
    @classmethod
    def _is_a_reference(cls, credential: str | None) -> str | None:
        if credential is not None:
            Credential(credential)
        return credential

    def endpoint(self, credential_directory: Path) -> Endpoint:
        credential = None if self.credential is None else Credential(self.credential, credential_directory)
        return Endpoint(self.kind, self.url, Timeouts(**self.timeouts.model_dump()), credential)


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

    def origin_of(self, entry: ServerEntry) -> str:
        """Where it stands: `environment`, also where the file describes it, or `file`."""
        return "environment" if any(each.url == entry.url for each in self._fixed) else "file"

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
