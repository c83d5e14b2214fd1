"""image-rules for Triton: a prompt to the bytes of a PNG, drawn by the rules of drawing.py."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils
from drawing import LIMITS, Wish, draw, png

# What applies where the request names none; a seed is chosen at random.
DEFAULTS = {"guidance": 7.5, "steps": 30, "width": 512, "height": 512}


class TritonPythonModel:
    def execute(self, requests: Sequence[Any]) -> list[Any]:
        return [_answer(request) for request in requests]


def _answer(request: Any) -> Any:
    try:
        wish = _wish(request)
    except ValueError as error:
        return pb_utils.InferenceResponse(error=pb_utils.TritonError(str(error)))
    return pb_utils.InferenceResponse(
        [
            pb_utils.Tensor("image", np.array([png(draw(wish), wish)], np.object_)),
            pb_utils.Tensor("seed_used", np.array([wish.seed], np.int64)),
        ]
    )


def _wish(request: Any) -> Wish:
    """
    Raises:
        ValueError: an input is out of its limits; the sentence is for the user.
    """
    values = dict(DEFAULTS)
    for name in DEFAULTS:
        if (tensor := pb_utils.get_input_tensor_by_name(request, name)) is not None:
            values[name] = tensor.as_numpy().item()
        low, high = LIMITS[name]
        if not low <= values[name] <= high:
            raise ValueError(f"{name} is {values[name]:g} and must be from {low} to {high}")
    seed = pb_utils.get_input_tensor_by_name(request, "seed")
    return Wish(
        prompt=_text(request, "prompt"),
        negative_prompt=_text(request, "negative_prompt"),
        guidance=float(values["guidance"]),
        steps=int(values["steps"]),
        width=int(values["width"]),
        height=int(values["height"]),
        seed=secrets.randbelow(2**32) if seed is None else int(seed.as_numpy().item()),
    )


def _text(request: Any, name: str) -> str:
    tensor = pb_utils.get_input_tensor_by_name(request, name)
    try:
        return "" if tensor is None else tensor.as_numpy().item().decode()
    except UnicodeDecodeError:
        raise ValueError(f"{name} is not UTF-8") from None
