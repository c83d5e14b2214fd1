"""Tensors on the wire, and what every message of a stream tells. Pure, no I/O."""

import struct
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from tritonclient.grpc import InferResult, service_pb2
from tritonclient.utils import triton_to_np_dtype

from app.tasks.outputs import LARGE_BYTES, Output, bytes_output
from app.tasks.tensors import content_of, elements_of

BF16 = "BF16"


# Of what a message holds besides texts; all numbers are little-endian.
_NUMBERS = {
    "UINT32": struct.Struct("<I"),
    "INT32": struct.Struct("<i"),
    "FP32": struct.Struct("<f"),
    "UINT64": struct.Struct("<Q"),
    "INT64": struct.Struct("<q"),
    "FP64": struct.Struct("<d"),
}
_FLAGS = (b"\x00", b"\x01")


# A tensor as it came: its datatype and its bytes.
Content = tuple[str, bytes]


def new_request(model: str, request_id: str = "") -> service_pb2.ModelInferRequest:
    return service_pb2.ModelInferRequest(model_name=model, id=request_id)


def add_tensor(
    request: service_pb2.ModelInferRequest, name: str, datatype: str, shape: Sequence[int], raw: bytes
) -> None:
    request.inputs.add(name=name, datatype=datatype, shape=shape)
    request.raw_input_contents.append(raw)


def add_texts(
    request: service_pb2.ModelInferRequest, name: str, values: Sequence[str], shape: Sequence[int] | None = None
) -> None:
    """A tensor of BYTES, of one dimension unless its shape is given."""
    add_tensor(
        request, name, "BYTES", shape or [len(values)], b"".join(texts_content(value.encode()) for value in values)
    )


def add_flag(request: service_pb2.ModelInferRequest, name: str, value: bool) -> None:
    add_tensor(request, name, "BOOL", [1], _FLAGS[value])


def add_inputs(request: service_pb2.ModelInferRequest, tensors: Iterable[Mapping[str, Any]]) -> None:
    """The tensors of a context."""
    for tensor in tensors:
        content = content_of(tensor)
        raw = _packed(tensor["datatype"], elements_of(tensor)) if content is None else content
        add_tensor(request, tensor["name"], tensor["datatype"], tensor["shape"], raw)


def _packed(datatype: str, elements: Sequence[Any]) -> bytes:
    if datatype == "BYTES":
        return b"".join(map(texts_content, elements))
    if datatype == BF16:
        # The higher half of a float32.
        return (np.array(elements, "<f4").view("<u4") >> 16).astype("<u2").tobytes()
    return np.array(elements, triton_to_np_dtype(datatype)).tobytes()


def texts_content(value: bytes) -> bytes:
    """One element of a tensor of BYTES."""
    return len(value).to_bytes(4, "little") + value


def texts_of(content: Content) -> list[bytes]:
    """The elements of a tensor of BYTES.

    Raises:
        ValueError: it is none.
    """
    datatype, raw = content
    if datatype != "BYTES":
        raise ValueError(f"{datatype} where a text belongs")
    if int.from_bytes(raw[:4], "little") + 4 == len(raw):
        return [raw[4:]]
    texts, place = [], 0
    while place < len(raw):
        end = place + 4 + int.from_bytes(raw[place : place + 4], "little")
        if end > len(raw):
            raise ValueError("a text that is cut")
        texts.append(raw[place + 4 : end])
        place = end
    return texts


def numbers_of(content: Content) -> tuple[float, ...]:
    """The elements of a tensor of numbers, one at least.

    Raises:
        ValueError: it is none.
    """
    datatype, raw = content
    number = _NUMBERS.get(datatype)
    if number is None or not raw or len(raw) % number.size:
        raise ValueError(f"{datatype} of {len(raw)} bytes where a number belongs")
    if len(raw) == number.size:
        return number.unpack(raw)
    return tuple(value for (value,) in number.iter_unpack(raw))


def contents_of(response: service_pb2.ModelInferResponse) -> dict[str, Content]:
    """The tensors of one message, by name."""
    return {
        output.name: (output.datatype, raw)
        for output, raw in zip(response.outputs, response.raw_output_contents, strict=False)
    }


def is_final(response: service_pb2.ModelInferResponse) -> bool:
    """Whether it is the last message of its request."""
    return bool(response.parameters["triton_final_response"].bool_param)


def outputs_of(response: service_pb2.ModelInferResponse) -> list[Output]:
    """The tensors of one message.

    Raises:
        ValueError: one has no data.
    """
    result = InferResult(response)
    return [_output_of(result, each.name, each.datatype) for each in response.outputs]


def _output_of(result: InferResult, name: str, datatype: str) -> Output:
    found = result.as_numpy(name)
    if found is None:
        raise ValueError(f"an output {name} without data")
    shape = list(found.shape)
    if datatype == "BYTES":
        return bytes_output(name, shape, [bytes(element) for element in found.reshape(-1)])
    size = found.nbytes
    if size <= LARGE_BYTES:
        return Output(name, datatype, shape, data=found.reshape(-1).tolist(), size=size)
    if datatype == BF16:
        # It was made longer by zeros at the end of each number.
        found = (found.view(np.uint32) >> 16).astype("<u2")
    return Output(name, datatype, shape, files=(found.tobytes(),), size=size)
