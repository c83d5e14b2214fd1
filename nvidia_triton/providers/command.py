"""A provider of the user's own: four commands that read JSON and write JSON (docs/vast.md has an example)."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shlex
import signal
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from nvidia_triton.providers import base
from nvidia_triton.providers.market import fitting
from nvidia_triton.vast import instances
from nvidia_triton.vast.definition import InstanceDefinition
from nvidia_triton.vast.query import Query
from nvidia_triton.vast.settings import VastSettings

EXIT_SECONDS = 5.0
SAID_CHARS = 500
# What a command may answer in place of what it was asked for.
FAILURES = {"gone": base.OfferGone, "refused": base.Refused, "unavailable": base.Unavailable}


def _words(value: Any) -> Any:
    return shlex.split(value) if isinstance(value, str) else value


Words = Annotated[tuple[str, ...], BeforeValidator(_words), Field(min_length=1)]
Amount = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class CommandOptions(BaseModel):
    """Programs with their arguments, as one text or a list of words, and the seconds that each may take."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    offers: Words
    create: Words
    list: Words
    destroy: Words
    timeout: float = Field(60, gt=0, le=3600)


class _Failure(BaseModel):
    error: Literal["gone", "refused", "unavailable"]
    message: str = ""


class _Offer(BaseModel):
    id: str = Field(min_length=1)
    machine: str = ""
    gpu: str = "?"
    gpus: int = Field(1, ge=0)
    vram_gb: Amount = 0.0
    price: Amount
    storage_price: Amount = 0.0
    driver: str = ""
    cuda: str = ""
    region: str = ""
    interruptible: bool = False


class _Offers(BaseModel):
    offers: tuple[_Offer, ...]


class _Made(BaseModel):
    id: str = Field(min_length=1)


class _Address(BaseModel):
    host: str = Field(min_length=1)
    port: int = Field(22, ge=1, le=65535)
    user: str = "root"


class _Host(BaseModel):
    id: str = Field(min_length=1)
    label: str
    state: base.HostState
    detail: str = ""
    machine: str = ""
    price: Amount
    address: _Address | None = None
    gpu: str = ""
    gpus: int = Field(0, ge=0)
    interrupted: bool = False
    started_at: float | None = None


class _Hosts(BaseModel):
    hosts: tuple[_Host, ...]


class _Destroyed(BaseModel):
    """Nothing is asked of the answer, which may be empty."""


Answer = TypeVar("Answer", bound=BaseModel)


class CommandProvider:
    """A command that fails, takes too long or answers something else has, for all we know, done nothing; but a create
    may have made a host."""

    name = "command"
    keeps_storage = False

    def __init__(self, options: Mapping[str, Any], settings: VastSettings) -> None:
        """
        Raises:
            Refused: the options are not those of `CommandOptions`.
        """
        try:
            self._options = CommandOptions.model_validate(dict(options))
        except ValidationError as error:
            raise base.Refused(f"The settings of the provider command cannot be used: {_problems(error)}.") from None
        self._settings = settings

    async def offers(self, query: Query) -> Sequence[base.Offer]:
        answer = await self._ask("offers", {"query": asdict(query)}, _Offers)
        offers = [base.Offer(**each.model_dump() | {"machine": each.machine or each.id}) for each in answer.offers]
        return fitting(offers, query)

    async def create(self, offer: base.Offer, label: str, definition: InstanceDefinition) -> str:
        wanted = {
            "offer": asdict(offer),
            "label": label,
            "image": definition.image.on(offer.cuda, offer.driver).name,
            "disk_gb": definition.disk,
            "env": instances.environment(definition, self._settings),
            "onstart": definition.onstart,
        }
        try:
            return (await self._ask("create", wanted, _Made)).id
        except _Unclear as unclear:
            raise base.Doubtful(str(unclear)) from None

    async def list(self, label_prefix: str, known: Collection[str] = ()) -> Sequence[base.Rented]:
        answer = await self._ask("list", {"label_prefix": label_prefix, "known": sorted(known)}, _Hosts)
        hosts = [each for each in answer.hosts if each.label.startswith(label_prefix) or each.id in known]
        return [_rented(each) for each in hosts]

    async def destroy(self, ident: str) -> None:
        await self._ask("destroy", {"id": ident}, _Destroyed)

    async def close(self) -> None:
        """Nothing stays open between two calls."""

    async def _ask(self, name: str, question: Mapping[str, Any], kind: type[Answer]) -> Answer:
        words: Sequence[str] = getattr(self._options, name)
        what = f"The command for `{name}` ({words[0]})"
        code, output, said = await self._run(what, words, json.dumps(question).encode())
        said = self._settings.redact(" ".join(said.split()))[-SAID_CHARS:]
        text = output.strip() or b"{}"
        with contextlib.suppress(ValidationError):
            failure = _Failure.model_validate_json(text)
            raise FAILURES[failure.error](f"{what} says: {failure.message or failure.error}.")
        if code:
            raise _Unclear(f"{what} ended with exit code {code}: {said or 'it said nothing on its error output'}.")
        try:
            return kind.model_validate_json(text)
        except ValidationError as error:
            raise _Unclear(f"{what} answers something else than it should: {_problems(error)}.") from None

    async def _run(self, what: str, words: Sequence[str], question: bytes) -> tuple[int, bytes, str]:
        try:
            process = await asyncio.create_subprocess_exec(
                *words,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
                start_new_session=True,
            )
        except OSError as error:
            raise base.Unavailable(f"{what} cannot be started: {error.strerror}. Is it installed here?") from None
        try:
            async with asyncio.timeout(self._options.timeout):
                output, errors = await process.communicate(question)
        except TimeoutError:
            await _end(process)
            raise _Unclear(
                f"{what} has not ended within {self._options.timeout:g} s and was stopped: `timeout` allows it more."
            ) from None
        except asyncio.CancelledError:
            await _end(process)
            raise
        return process.returncode or 0, output, errors.decode(errors="replace")


class _Unclear(base.Unavailable):
    """What it did is not known."""


async def _end(process: asyncio.subprocess.Process) -> None:
    """The command with all it started; politely at first."""
    try:
        for number in (signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, number)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(EXIT_SECONDS):
                    await process.wait()
                break
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def _rented(host: _Host) -> base.Rented:
    where = host.address
    address = base.Address(f"command-{host.id}", ((where.host, where.port),), where.user) if where else None
    return base.Rented(**{**host.model_dump(), "address": address})


def _problems(error: ValidationError) -> str:
    found = error.errors(include_url=False, include_input=False)
    return "; ".join(f"{'.'.join(map(str, each['loc'])) or 'the answer'}: {each['msg']}" for each in found)
