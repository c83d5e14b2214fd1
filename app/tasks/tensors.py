"""Tensors that a request brings, in the JSON of KServe v2, and what a model says it takes. Pure, no I/O."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from math import prod
from typing import Annotated, Any, Literal, NoReturn, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from app.storable import StorableText

MOST_TENSORS = 64
MOST_DIMENSIONS = 16
# All tensors of a request together: well below what a message to an engine may come to.
MOST_BYTES = 32 * 1024 * 1024
# Of an element of BYTES, its length.
LENGTH_BYTES = 4
BYTES, BOOL, BASE64 = "BYTES", "BOOL", "base64"
INTEGERS = {f"INT{bits}": (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) for bits in (8, 16, 32, 64)} | {
    f"UINT{bits}": (0, 2**bits - 1) for bits in (8, 16, 32, 64)
}
# The largest number of each.
FLOATS = {"FP16": 65504.0, "BF16": 3.3895313892515355e38, "FP32": 3.4028234663852886e38, "FP64": float("inf")}
SIZES = {BOOL: 1, "BF16": 2} | {name: int(name.lstrip("UINTFP")) // 8 for name in (*INTEGERS, "FP16", "FP32", "FP64")}
# Of a model with the first of these and one of the others, it is told what to do with a text.
TEXT_INPUT = "text_input"
SAMPLING = ("sampling_parameters", "sampling_param_", "embedding_request")

Datatype = Literal[
    "BOOL", "UINT8", "UINT16", "UINT32", "UINT64", "INT8", "INT16", "INT32", "INT64", "FP16", "BF16", "FP32", "FP64",
    "BYTES",
]  # fmt: skip


class TensorParameters(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    content_type: Literal["base64"] | None = Field(
        None, description="of BYTES that are no text: elements in base64; of numbers: all of them in one text"
    )


class InputTensor(BaseModel):
    """A tensor, as KServe v2 has it."""

    model_config = ConfigDict(extra="forbid", strict=True)

    name: Annotated[StorableText, Field(min_length=1, max_length=255)]
    datatype: Datatype
    shape: Annotated[list[Annotated[int, Field(ge=0, lt=2**31)]], Field(max_length=MOST_DIMENSIONS)]
    data: list[Any] | None = Field(None, description="the elements in row-major order, flat or nested")
    file: Annotated[StorableText, Field(max_length=100)] | None = Field(
        None, description="instead of `data`, the id of a file: the one element of BYTES, or all numbers, little-endian"
    )
    parameters: TensorParameters | None = None

    @model_validator(mode="after")
    def _has_elements(self) -> Self:
        if (self.data is None) == (self.file is None):
            raise PydanticCustomError("data_or_file", "give either data, the elements, or file, the id of one")
        if self.file is not None and self.parameters is not None:
            raise PydanticCustomError("file_parameters", "parameters are for data: a file is taken as it is")
        return self

    def filled(self, content: bytes) -> InputTensor:
        """With what its file holds."""
        encoded = TensorParameters(content_type="base64")
        return self.model_copy(
            update={"data": [base64.b64encode(content).decode()], "file": None, "parameters": encoded}
        )


class TensorRefused(ValueError):
    """A tensor, by its name, that cannot be what the sender meant, or that the model does not take."""

    def __init__(self, tensor: str, problem: str) -> None:
        super().__init__(problem)
        self.tensor = tensor
        self.problem = problem


@dataclass(frozen=True, slots=True)
class Expected:
    """An input of a model; -1 in its shape stands for any size."""

    name: str
    datatype: str
    shape: list[int]
    optional: bool


def require_file(tensor: InputTensor, size: int, others: int) -> None:
    """
    Raises:
        TensorRefused: a file of `size` bytes cannot be the tensor's elements, or is too much beside the `others`.
    """
    count = prod(tensor.shape)
    if tensor.datatype == BYTES:
        if count != 1:
            raise TensorRefused(tensor.name, f"has the shape {tensor.shape}, and a file is the one element of BYTES")
    elif size != count * SIZES[tensor.datatype]:
        _refuse_size(tensor, f"{tensor.file} has {size:,}")
    _require_room(tensor, others + size)


def _refuse_size(tensor: InputTensor, found: str) -> NoReturn:
    wanted = prod(tensor.shape) * SIZES[tensor.datatype]
    raise TensorRefused(
        tensor.name, f"is {tensor.datatype} of the shape {tensor.shape}, which is {wanted:,} bytes, and {found}"
    )


def _require_room(tensor: InputTensor, total: int) -> None:
    if total > MOST_BYTES:
        raise TensorRefused(tensor.name, f"is too large: all inputs together may come to {MOST_BYTES:,} bytes")


def checked(tensors: Sequence[InputTensor]) -> list[dict[str, Any]]:
    """The tensors as they are stored, elements flat.

    Raises:
        TensorRefused: of one, the elements do not fit its type or shape, or all are too much.
    """
    names: set[str] = set()
    stored, total = [], 0
    for tensor in tensors:
        if tensor.name in names:
            raise TensorRefused(tensor.name, "is there twice")
        names.add(tensor.name)
        document, size = _checked(tensor)
        total += size
        _require_room(tensor, total)
        stored.append(document)
    return stored


def _checked(tensor: InputTensor) -> tuple[dict[str, Any], int]:
    """With the bytes that the tensor comes to."""
    encoded = tensor.parameters is not None and tensor.parameters.content_type == BASE64
    if encoded and tensor.datatype != BYTES:
        return _checked_content(tensor)
    data = _flat(tensor)
    wanted = prod(tensor.shape)
    if len(data) != wanted:
        raise TensorRefused(
            tensor.name, f"has {len(data):,} elements, and its shape {tensor.shape} stands for {wanted:,}"
        )
    document: dict[str, Any] = {"name": tensor.name, "datatype": tensor.datatype, "shape": tensor.shape, "data": data}
    if tensor.datatype == BYTES:
        _require_kinds(tensor, data, {str}, "texts")
        if not encoded and any("\x00" in text for text in data):
            # Postgres stores no NUL.
            document["data"] = [base64.b64encode(text.encode()).decode() for text in data]
            encoded = True
        if encoded:
            document["parameters"] = {"content_type": BASE64}
        size = sum(len(each) + LENGTH_BYTES for each in _elements(document))
    else:
        _require_numbers(tensor, data)
        size = len(data) * SIZES[tensor.datatype]
    return document, size


def _checked_content(tensor: InputTensor) -> tuple[dict[str, Any], int]:
    """Of numbers that come as bytes."""
    data = tensor.data or []
    if len(data) != 1 or type(data[0]) is not str:
        raise TensorRefused(tensor.name, f"is {tensor.datatype} in base64, so its data is one text with all numbers")
    document = tensor.model_dump(include={"name", "datatype", "shape", "data", "parameters"})
    (content,) = _elements(document)
    if len(content) != prod(tensor.shape) * SIZES[tensor.datatype]:
        _refuse_size(tensor, f"its data has {len(content):,}")
    if tensor.datatype == BOOL and content.translate(None, b"\x00\x01"):
        raise TensorRefused(tensor.name, "is BOOL, so each of its bytes is 0 or 1")
    return document, len(content)


def _flat(tensor: InputTensor) -> list[Any]:
    data = tensor.data or []
    while data and type(data[0]) is list:
        if set(map(type, data)) != {list}:
            raise TensorRefused(tensor.name, "mixes lists and elements in its data")
        data = list(chain.from_iterable(data))
    return data


def _require_kinds(tensor: InputTensor, data: list[Any], kinds: set[type], words: str) -> None:
    if not set(map(type, data)) <= kinds:
        raise TensorRefused(tensor.name, f"is {tensor.datatype}, so its data is a list of {words}")


def _require_numbers(tensor: InputTensor, data: list[Any]) -> None:
    if tensor.datatype == BOOL:
        _require_kinds(tensor, data, {bool}, "true and false")
        return
    if tensor.datatype in INTEGERS:
        _require_kinds(tensor, data, {int}, "integers")
        low, high = INTEGERS[tensor.datatype]
    else:
        _require_kinds(tensor, data, {int, float}, "numbers")
        low, high = -FLOATS[tensor.datatype], FLOATS[tensor.datatype]
    if data and not (low <= min(data) and max(data) <= high):
        raise TensorRefused(tensor.name, f"holds a number outside the range of {tensor.datatype}")


def _is_encoded(document: Mapping[str, Any]) -> bool:
    return (document.get("parameters") or {}).get("content_type") == BASE64


def _elements(document: Mapping[str, Any]) -> list[bytes]:
    """
    Raises:
        TensorRefused: one is not base64, where it should be.
    """
    data = document["data"]
    if not _is_encoded(document):
        return [text.encode() for text in data]
    elements = []
    for number, text in enumerate(data):
        try:
            elements.append(base64.b64decode(text, validate=True))
        except (binascii.Error, ValueError):
            raise TensorRefused(document["name"], f"has an element that is not base64, number {number}") from None
    return elements


def content_of(document: Mapping[str, Any]) -> bytes | None:
    """All numbers of a stored tensor, little-endian, where it holds them so."""
    if document["datatype"] == BYTES or not _is_encoded(document):
        return None
    return _elements(document)[0]


def elements_of(document: Mapping[str, Any]) -> list[Any]:
    """The elements of a stored tensor; those of BYTES as bytes."""
    return _elements(document) if document["datatype"] == BYTES else list(document["data"])


def expected_of(described: Mapping[str, Any]) -> list[Expected]:
    """The inputs of a model, as `Engine.describe` tells them."""
    return [
        Expected(each["name"], each["datatype"], [int(size) for size in each["shape"]], bool(each.get("optional")))
        for each in described["inputs"]
    ]


def takes_text(expected: Sequence[Expected]) -> bool:
    """Whether it is a model of texts, that a prompt or a chat is sent to."""
    names = [each.name for each in expected]
    return TEXT_INPUT in names and any(name.startswith(SAMPLING) for name in names)


def require_fit(tensors: Sequence[Mapping[str, Any]], expected: Sequence[Expected], max_batch_size: int) -> None:
    """
    Raises:
        TensorRefused: the model does not take one, or needs one that is missing.
    """
    by_name = {each.name: each for each in expected}
    for tensor in tensors:
        name, shape = tensor["name"], tensor["shape"]
        wanted = by_name.get(name)
        if wanted is None:
            known = ", ".join(by_name) or "none"
            raise TensorRefused(name, f"is no input of the model, whose inputs are: {known}")
        if tensor["datatype"] != wanted.datatype:
            raise TensorRefused(name, f"is {tensor['datatype']}, and the model takes {wanted.datatype}")
        fits = len(shape) == len(wanted.shape) and all(
            size in (-1, given) for size, given in zip(wanted.shape, shape, strict=True)
        )
        if not fits:
            raise TensorRefused(name, f"has the shape {shape}, and the model takes {wanted.shape}, -1 being any size")
        if max_batch_size and not 1 <= shape[0] <= max_batch_size:
            raise TensorRefused(name, f"has a batch of {shape[0]}, and the model takes 1 to {max_batch_size}")
        if max_batch_size and shape[0] != tensors[0]["shape"][0]:
            raise TensorRefused(name, f"has a batch of {shape[0]}, and {tensors[0]['name']} one of another size")
    given = {tensor["name"] for tensor in tensors}
    for each in expected:
        if not each.optional and each.name not in given:
            raise TensorRefused(each.name, f"is missing: the model needs it, {each.datatype} {each.shape}")
