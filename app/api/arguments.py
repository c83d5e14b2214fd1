"""What an endpoint takes, read from a request without FastAPI's steps, which cost more than most endpoints do.

FastAPI declares, documents and refuses: the fields are its own, and a request that is not plain goes through it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from datetime import datetime
from enum import Enum
from inspect import iscoroutinefunction
from json import JSONDecodeError
from types import NoneType, UnionType
from typing import Annotated, Any, NamedTuple, Union, get_args, get_origin, get_type_hints
from uuid import UUID

from fastapi import Request, Response
from fastapi.dependencies.models import Dependant
from fastapi.params import Form
from starlette.requests import ClientDisconnect

from app.api.headers import first_headers

# A parameter of these types is one text of a path or a header.
SINGLE = (str, int, float, bool, UUID, datetime, Enum, NoneType)
CONTENT_TYPE, JSON = b"content-type", b"application/json"


class NotPlain(Exception):
    """FastAPI has to read this request, or whatever comes to this route."""


class _Field(NamedTuple):
    name: str
    # Where it is found among the path's parameters or the headers.
    key: Any
    # FastAPI's.
    field: Any

    def value(self, given: Any) -> Any:
        value, errors = self.field.validate(given)
        if errors:
            raise NotPlain
        return value

    def default(self) -> Any:
        kind = self.field.field_info
        if kind.is_required():
            raise NotPlain
        return None if kind.default is None else self.field.get_default()


class Arguments:
    """The arguments of a coroutine function, as FastAPI describes it."""

    def __init__(self, described: Dependant) -> None:
        """Raises NotPlain for what takes more than single texts of path and headers, an optional query and JSON."""
        special = (
            described.cookie_params,
            described.http_connection_param_name,
            described.websocket_param_name,
            described.response_param_name,
            described.background_tasks_param_name,
            described.security_scopes_param_name,
            described.concurrency,
        )
        if described.call is None or not iscoroutinefunction(described.call) or any(special):
            raise NotPlain
        self._call: Callable[..., Any] = described.call
        self._request_name = described.request_param_name
        self._needed = [(_named(each), Arguments(each)) for each in described.dependencies]
        self._path = list(_single(described.path_params))
        self._headers = [each._replace(key=each.key.lower().encode()) for each in _single(described.header_params)]
        self._query = list(_single(described.query_params))
        self._body = _body(described)

    async def read(self, request: Request) -> dict[str, Any]:
        """Raises NotPlain."""
        scope = request.scope
        values: dict[str, Any] = {}
        for name, needed in self._needed:
            values[name] = await needed._call(**await needed.read(request))
        for each in self._path:
            values[each.name] = each.value(scope["path_params"][each.key])
        if self._headers:
            given = first_headers(scope)
            for each in self._headers:
                text = given.get(each.key)
                values[each.name] = each.default() if text is None else each.value(text.decode("latin-1"))
        if self._query:
            if scope["query_string"]:
                raise NotPlain
            values.update((each.name, each.default()) for each in self._query)
        if self._body is not None:
            values[self._body.name] = await self._read_body(request, self._body)
        if self._request_name is not None:
            values[self._request_name] = request
        return values

    @staticmethod
    async def _read_body(request: Request, field: _Field) -> Any:
        try:
            if not await request.body():
                return field.default()
            declared = first_headers(request.scope).get(CONTENT_TYPE, b"")
            if declared.partition(b";")[0].strip().lower() != JSON:
                raise NotPlain
            return field.value(await request.json())
        except (ClientDisconnect, JSONDecodeError):
            raise NotPlain from None


def arguments_of(described: Dependant) -> Arguments | None:
    """None where FastAPI is to read them: also where it is to make an answer of what the endpoint returns."""
    returned = None if described.call is None else get_type_hints(described.call).get("return")
    if not (isinstance(returned, type) and issubclass(returned, Response)):
        return None
    try:
        return Arguments(described)
    except NotPlain:
        return None


def _named(needed: Dependant) -> str:
    if needed.name is None or needed.body_params:
        raise NotPlain
    return needed.name


def _single(fields: Iterable[Any]) -> Iterator[_Field]:
    for field in fields:
        kind = field.field_info
        if (
            not _is_single(kind.annotation)
            or kind.validate_default
            or field.validation_alias not in (None, field.alias)
        ):
            raise NotPlain
        yield _Field(field.name, field.alias, field)


def _is_single(annotation: Any) -> bool:
    if get_origin(annotation) is Annotated:
        return _is_single(get_args(annotation)[0])
    if get_origin(annotation) in (Union, UnionType):
        return all(map(_is_single, get_args(annotation)))
    return isinstance(annotation, type) and issubclass(annotation, SINGLE)


def _body(described: Dependant) -> _Field | None:
    if not described.body_params:
        return None
    field, *others = described.body_params
    kind = field.field_info
    if others or isinstance(kind, Form) or kind.validate_default or getattr(kind, "embed", None):
        raise NotPlain
    return _Field(field.name, None, field)
