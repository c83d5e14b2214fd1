"""Tensors on the wire, and what every message of a stream tells. Pure, no I/O."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from tritonclient.grpc import InferInput, InferResult
from tritonclient.utils import triton_to_np_dtype

from app.tasks.outputs import LARGE_BYTES, Output, bytes_output
from app.tasks.tensors import elements_of

BF16 = "BF16"


def bytes_input(name: str, value: str) -> InferInput:
    tensor = InferInput(name, [1], "BYTES")
    tensor.set_data_from_numpy(np.array([value.encode()], dtype=np.object_))
    return tensor


def bool_input(name: str, value: bool) -> InferInput:
    tensor = InferInput(name, [1], "BOOL")
    tensor.set_data_from_numpy(np.array([value], dtype=np.bool_))
    return tensor


def is_final(result: InferResult) -> bool:
    """Whether it is the last message of its request."""
    return bool(result.get_response().parameters["triton_final_response"].bool_param)


def inputs_of(tensors: Sequence[Mapping[str, Any]]) -> list[InferInput]:
    """The tensors of a context."""
    inputs = []
    for tensor in tensors:
        datatype, shape = tensor["datatype"], tensor["shape"]
        # The client takes BF16 as float32, and makes it shorter itself.
        dtype = np.float32 if datatype == BF16 else triton_to_np_dtype(datatype)
        made = InferInput(tensor["name"], shape, datatype)
        made.set_data_from_numpy(np.array(elements_of(tensor), dtype=dtype).reshape(shape))
        inputs.append(made)
    return inputs


def outputs_of(result: InferResult) -> list[Output]:
    """The tensors of one message.

    Raises:
        ValueError: one has no data.
    """
    return [_output_of(result, each.name, each.datatype) for each in result.get_response().outputs]


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
