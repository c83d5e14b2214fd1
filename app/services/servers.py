"""Servers as admins see and change them: rows, and what this process and the queue know of each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Annotated, Any, Literal
from uuid import UUID

import asyncpg
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from app.config import Settings
from app.db.engine import Database
from app.engines.base import Credential
from app.engines.registry import ENGINES
from app.errors import InvalidRequest, ServerExists, ServerListedElsewhere, ServerNotFound
from app.fleet.fleet import Fleet
from app.fleet.lanes import Server
from app.fleet.listing import ACTIVE, DISABLED, SAME, row_of
from app.fleet.servers import MOST_CONCURRENCY, ServerEntry, ServerTimeouts
from app.queue.audit import Action, Actor, record
from app.queue.servers import ServerStore
from app.queue.slots import SlotStore
from app.storable import StorableText

KINDS = tuple(ENGINES)
MOST_DOLLARS = 1e6
MOST_SECONDS = 86_400.0
MOST_ALIASES = 1000
COUNTED = ("in_flight", "attempts", "prompt_tokens", "completion_tokens", "gpu_seconds")

Name = Annotated[StorableText, Field(min_length=1, max_length=200)]
ModelName = Annotated[StorableText, Field(min_length=1, max_length=255)]
Dollars = Annotated[float, Field(ge=0, le=MOST_DOLLARS)]
Seconds = Annotated[float, Field(gt=0, le=MOST_SECONDS)]
Wanted = Literal["active", "draining", "disabled"]


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class Timeouts(_Body):
    """In seconds; what is left out is the service's own."""

    connect: Seconds | None = None
    first_token: Seconds | None = None
    between_tokens: Seconds | None = None
    total: Seconds | None = None


class ServerChange(_Body):
    """What is left out stays; null takes the service's own again."""

    name: Name | None = Field(None, description="what you call it by; each server has another")
    address: Annotated[StorableText, Field(min_length=1, max_length=2000)] | None = Field(
        None, description="`host:port` of Triton's gRPC endpoint; a URL for other kinds"
    )
    models: Annotated[dict[ModelName, ModelName], Field(max_length=MOST_ALIASES)] | None = Field(
        None,
        description="aliases, `their-name: our-name`; where there are some, only those models are offered",
        examples=[{"meta-llama/Llama-3.1-8B-Instruct": "llama"}],
    )
    concurrency: Annotated[int, Field(ge=1, le=MOST_CONCURRENCY)] | None = Field(
        None, description="requests of each model at once; by default MODEL_CONCURRENCY"
    )
    hourly_price: Dollars | None = Field(None, description="dollars an hour")
    prompt_token_price: Dollars | None = Field(None, description="dollars for a million tokens of prompts")
    completion_token_price: Dollars | None = Field(None, description="dollars for a million tokens of answers")
    timeouts: Timeouts | None = Field(None, description="in seconds; what is left out is the service's own")
    credential: Annotated[StorableText, Field(min_length=5, max_length=1000)] | None = Field(
        None,
        description="where the secret is: `env:NAME`, a variable of API and dispatchers, or `file:PATH`; never the "
        "secret itself",
    )
    wanted: Wanted | None = Field(
        None,
        description="`draining`: it gets nothing more and finishes what it has; `disabled`: nor is it asked for its "
        "state",
    )


class ServerCreate(ServerChange):
    name: Name | None = Field(None, description="what you call it by; by default its address")
    kind: str = Field("triton", max_length=50, description=f"one of {', '.join(KINDS)}")
    address: Annotated[StorableText, Field(min_length=1, max_length=2000)] = Field(
        description="`host:port` of Triton's gRPC endpoint; a URL for other kinds", examples=["10.0.0.5:8001"]
    )


class ServerModel(BaseModel):
    """A model on a server, as this process sees it."""

    name: str
    state: str
    in_flight: int = Field(description="attempts that run there now, of all dispatchers")


class ServerError(BaseModel):
    code: str
    message: str
    at: datetime


class ServerView(BaseModel):
    """A server, what is wanted of it and what is known of it."""

    id: UUID
    name: str
    kind: str
    address: str
    models: dict[str, str]
    concurrency: int = Field(description="requests of each model at once")
    hourly_price: float | None
    prompt_token_price: float | None
    completion_token_price: float | None
    timeouts: Timeouts
    credential: str | None = Field(description="where the secret is")
    wanted: Wanted
    origin: Literal["api", "environment", "file"] = Field(description="where it is listed")
    created_at: datetime
    updated_at: datetime
    state: Literal["up", "down", "draining", "drained", "disabled", "unknown"] = Field(
        description="`drained`: it gets nothing more, and no attempt runs there; `unknown`: this API process has not "
        "asked it, or does not list it"
    )
    since: datetime | None = Field(description="since when it is up or down, as this API process saw it")
    reason: str | None = Field(description="why it is down")
    served: list[ServerModel] = Field(description="its models, by the names they have here")
    in_flight: int = Field(description="attempts that run there now, of all models and all dispatchers")
    attempts: int = Field(description="attempts that it had, as are the figures below")
    prompt_tokens: int
    completion_tokens: int
    gpu_seconds: float = Field(description="seconds it was busy with them")
    spent: float | None = Field(description="dollars; null where it never had a price")
    last_error: ServerError | None = Field(description="of an attempt that was given back")


class Servers:
    """Without a `fleet`, nothing is known of their state."""

    def __init__(self, database: Database, settings: Settings, fleet: Fleet | None = None) -> None:
        self._database = database
        self._settings = settings
        self._store = ServerStore(database)
        self._slots = SlotStore(database)
        self._fleet = fleet

    async def list(self) -> Sequence[ServerView]:
        """All servers, oldest first."""
        return await self._views(await self._store.list())

    async def get(self, id_: UUID) -> ServerView:
        """Raises ServerNotFound."""
        (view,) = await self._views([await self._row(id_)])
        return view

    async def named(self, name: str) -> UUID:
        """The id of the server of this name, or of this id; raises ServerNotFound."""
        try:
            id_ = UUID(name)
        except ValueError:
            id_ = None
        row = await self._store.find(id_, name)
        if row is None:
            raise ServerNotFound(
                f"No server is called {name!r}. `make servers` and GET /servers/ list those there are."
            )
        found: UUID = row["id"]
        return found

    async def add(self, new: ServerCreate, actor: Actor) -> ServerView:
        """Adds a server; every process uses it within a second or so.

        Raises:
            InvalidRequest: a field is not possible for this kind.
            ServerExists: another has its address or its name.
        """
        fields = self._checked(new.model_dump(exclude_none=True, exclude={"wanted"}))
        fields["wanted"] = new.wanted or ACTIVE
        try:
            async with self._database.transaction() as connection:
                row = await self._store.add(connection, fields)
                if row is None:
                    raise _exists("address", fields["address"])
                await record(connection, Action.SERVER_ADDED, actor, None, str(row["id"]), details=_noted(fields))
        except asyncpg.UniqueViolationError as error:
            raise _taken(error, fields) from None
        (view,) = await self._views([row])
        return view

    async def change(self, id_: UUID, change: ServerChange, actor: Actor) -> ServerView:
        """Changes what is given.

        Raises:
            ServerNotFound: there is none with this id.
            ServerListedElsewhere: it is a copy of a line elsewhere, and more than `wanted` is to change.
            InvalidRequest, ServerExists: as `add`.
        """
        row = await self._row(id_)
        given = change.model_dump(include=change.model_fields_set)
        if given.get("wanted", ACTIVE) is None:
            raise _invalid("wanted", "is one of active, draining, disabled")
        if row["origin"] != "api" and given.keys() - {"wanted"}:
            raise ServerListedElsewhere(
                f"{row['name']} is listed in {_place(row)}: change it there. Only `wanted` can be changed here."
            )
        for name, default in (("name", row["address"]), ("models", {}), ("timeouts", {})):
            if name in given and given[name] is None:
                given[name] = default
        if "address" in given and given["address"] is None:
            raise _invalid("address", "is needed")
        now = {name: row[name] for name in SAME} | {"address": row["address"], "wanted": row["wanted"]}
        wanted = given.get("wanted", row["wanted"])
        fields = self._checked({name: value for name, value in (now | given).items() if name != "wanted"})
        fields["wanted"] = wanted
        try:
            async with self._database.transaction() as connection:
                changed = await self._store.change(connection, id_, fields)
                if changed is None:
                    raise _not_found(id_)
                details = {"name": row["name"], "fields": sorted(given), "wanted": wanted}
                await record(connection, Action.SERVER_CHANGED, actor, None, str(id_), details=details)
        except asyncpg.UniqueViolationError as error:
            raise _taken(error, fields) from None
        (view,) = await self._views([changed])
        return view

    async def remove(self, id_: UUID, actor: Actor) -> None:
        """Takes a server out; what it has in flight is finished.

        Raises:
            ServerNotFound: there is none with this id.
            ServerListedElsewhere: it is a copy of a line elsewhere.
        """
        row = await self._row(id_)
        if row["origin"] != "api":
            raise ServerListedElsewhere(
                f"{row['name']} is listed in {_place(row)}: take it out there, or set `wanted` to disabled."
            )
        async with self._database.transaction() as connection:
            if await self._store.remove(connection, id_) is None:
                raise _not_found(id_)
            details = {"name": row["name"], "address": row["address"]}
            await record(connection, Action.SERVER_REMOVED, actor, None, str(id_), details=details)

    def _checked(self, fields: Mapping[str, Any]) -> dict[str, Any]:
        """As `_checked`, and the file of a credential lies where such files do."""
        checked = _checked(fields)
        if checked["credential"] is not None:
            try:
                Credential(checked["credential"], self._settings.credential_directory).require_file()
            except (ValueError, OSError) as error:
                raise _invalid("credential", str(error)) from None
        return checked

    async def _row(self, id_: UUID) -> Mapping[str, Any]:
        row = await self._store.find(id_)
        if row is None:
            raise _not_found(id_)
        return row

    async def _views(self, rows: Sequence[Mapping[str, Any]]) -> Sequence[ServerView]:
        used: dict[str, list[Mapping[str, Any]]] = {row["address"]: [] for row in rows}
        for each in await self._slots.used(list(used)):
            used[each["server"]].append(each)
        return [self._view(row, used[row["address"]]) for row in rows]

    def _view(self, row: Mapping[str, Any], used: Sequence[Mapping[str, Any]]) -> ServerView:
        """`used` are its slots, by model."""
        server = self.observed(row["address"])
        in_flight = {each["model"]: each["in_flight"] for each in used}
        models = server.models if server is not None and server.up else {}
        costs = [each["cost"] for each in used if each["cost"] is not None]
        failed = max((each for each in used if each["error_at"]), key=lambda each: each["error_at"], default=None)
        fields = {name: value for name, value in row.items() if name in ServerView.model_fields}
        return ServerView(
            **fields
            | {
                "timeouts": Timeouts(**row["timeouts"]),
                "concurrency": row["concurrency"] or self._settings.model_concurrency,
            },
            **{name: sum(each[name] for each in used) for name in COUNTED},
            state=_state(row["wanted"], server, sum(in_flight.values())),
            since=server.since if server else None,
            reason=server.reason or None if server and server.since else None,
            served=[
                ServerModel(name=name, state=model.state, in_flight=in_flight.get(name, 0))
                for name, model in sorted(models.items())
            ],
            spent=sum(costs) if costs else None,
            last_error=failed
            and ServerError(code=failed["error_code"], message=failed["error_message"], at=failed["error_at"]),
        )

    def observed(self, address: str) -> Server | None:
        """The server as this process sees it; None where it does not."""
        if self._fleet is None:
            return None
        return next((server for server in self._fleet.servers if server.url == address), None)


def _state(wanted: str, server: Server | None, in_flight: int) -> Any:
    if wanted == DISABLED and not in_flight:
        return "disabled"
    if wanted != ACTIVE:
        return "draining" if in_flight else "drained"
    if server is None or server.since is None:
        return "unknown"
    return "up" if server.up else "down"


def _checked(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The columns of a server with these fields.

    Raises:
        InvalidRequest: they do not fit each other.
    """
    kind = fields.get("kind", "triton")
    if kind not in KINDS:
        raise _invalid("kind", f"{kind!r} is none of {', '.join(KINDS)}")
    asked = {name: value for name, value in fields.items() if name != "address" and value is not None}
    timeouts = ServerTimeouts(**{name: each for name, each in asked.pop("timeouts", {}).items() if each is not None})
    try:
        return row_of(ServerEntry(url=fields["address"], timeouts=timeouts, **asked))
    except ValidationError as error:
        problem = error.errors(include_url=False, include_input=False)[0]
        field = "address" if problem["loc"][:1] == ("url",) else ".".join(map(str, problem["loc"]))
        raise _invalid(field, problem["msg"].removeprefix("Value error, ")) from None


def _noted(fields: Mapping[str, Any]) -> dict[str, Any]:
    return {name: fields[name] for name in ("name", "kind", "address", "wanted")}


def _place(row: Mapping[str, Any]) -> str:
    return "TRITON_URLS" if row["origin"] == "environment" else "the servers file"


def _invalid(field: str, message: str) -> InvalidRequest:
    return InvalidRequest(f"{field}: {message}", errors=[{"field": field, "message": message}])


def _not_found(id_: UUID) -> ServerNotFound:
    return ServerNotFound(f"No server has the id {id_}. `make servers` and GET /servers/ list those there are.")


def _exists(field: str, value: str) -> ServerExists:
    return ServerExists(f"A server with the {field} {value} is there already; GET /servers/ lists them.")


def _taken(error: asyncpg.UniqueViolationError, fields: Mapping[str, Any]) -> ServerExists:
    field = "name" if "name" in (error.constraint_name or "") else "address"
    return _exists(field, fields[field])
