"""Tensors of one value, and what every message of a stream tells. Pure, no I/O."""

import numpy as np
from tritonclient.grpc import InferInput, InferResult


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
