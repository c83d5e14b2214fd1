"""Tensors that are files: a context gets a copy, so the file may go."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

from fastapi import Request

from app.api.body_room import Share
from app.api.dependencies import caller_of, services_of
from app.errors import NotFound, Removed
from app.openai.ids import uuid_of
from app.services.inputs import refusal
from app.tasks.tensors import InputTensor, TensorRefused, require_file

# A file on its way into a context is there as it is, in base64, and in what is sent to Postgres.
COPIES = 4


async def filled(request: Request, tensors: Sequence[InputTensor]) -> list[InputTensor]:
    """The tensors, those that name a file with what it holds. Nothing is read unless all files fit.

    Raises:
        InvalidInputs: there is no such file, or it cannot be that tensor.
        BodiesFull: the requests under way leave no room for it.
    """
    rows: dict[str, Mapping[str, Any]] = {}
    total = 0
    for tensor in tensors:
        if tensor.file is not None:
            row = rows[tensor.file] = await _row(request, tensor)
            try:
                require_file(tensor, row["bytes"], total)
            except TensorRefused as refused:
                raise refusal(refused) from None
            total += row["bytes"]
    if not rows:
        return list(tensors)
    share: Share = request.scope["state"]["share"]
    share.hold(share.held + COPIES * total)
    return [await _with_content(request, tensor, rows[tensor.file]) if tensor.file else tensor for tensor in tensors]


async def _row(request: Request, tensor: InputTensor) -> Mapping[str, Any]:
    try:
        return await services_of(request).files.get(caller_of(request), uuid_of("file", tensor.file or ""))
    except (NotFound, Removed):
        _refuse(tensor)


async def _with_content(request: Request, tensor: InputTensor, row: Mapping[str, Any]) -> InputTensor:
    try:
        return tensor.filled(b"".join([part async for part in services_of(request).files.content(row)]))
    except Removed:
        _refuse(tensor)


def _refuse(tensor: InputTensor) -> NoReturn:
    problem = f"names {tensor.file}, and there is no such file, or it has expired: POST /v1/files stores one"
    raise refusal(TensorRefused(tensor.name, problem)) from None
