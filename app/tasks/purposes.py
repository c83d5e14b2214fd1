"""What a model of tensors is for, by the names of its inputs and outputs, and the tensors of a request to it. Pure.

A request has fields; a model may call the input for a field by any of the names listed for it.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from app.tasks.tensors import (
    BOOL,
    BYTES,
    FLOATS,
    Expected,
    InputTensor,
    TensorParameters,
    TensorRefused,
    expected_of,
    takes_text,
)

Names = Mapping[str, tuple[str, ...]]
IN_BASE64 = TensorParameters(content_type="base64")


@dataclass(frozen=True, slots=True)
class Purpose:
    """`needed` are the fields, and `answers` the outputs, that make a model one of this purpose."""

    name: str
    does: str
    fields: Names
    needed: frozenset[str]
    outputs: Names
    answers: frozenset[str]


IMAGE = Purpose(
    "image",
    "makes images",
    {
        "prompt": ("prompt",),
        "negative_prompt": ("negative_prompt",),
        "guidance_scale": ("guidance", "guidance_scale"),
        "num_inference_steps": ("steps", "num_inference_steps"),
        "width": ("width",),
        "height": ("height",),
        "seed": ("seed",),
    },
    frozenset({"prompt"}),
    {"image": ("image", "images"), "seed": ("seed_used", "seed")},
    frozenset({"image"}),
)
ENTITIES = Purpose(
    "ner",
    "finds entities",
    {"text": ("text",), "entities": ("entities", "labels"), "mask_entities": ("mask_entities",)},
    frozenset({"text", "entities"}),
    {"spans": ("spans",), "masked_text": ("masked_text",), "mask_map": ("mask_map",)},
    frozenset({"spans", "masked_text", "mask_map"}),
)
VISION = Purpose(
    "vision",
    "looks at images",
    {"image": ("image",), "prompt": ("question", "prompt")},
    frozenset({"image"}),
    {"text": ("text",)},
    frozenset({"text"}),
)
PURPOSES = (IMAGE, ENTITIES, VISION)


def purpose_of(described: Mapping[str, Any]) -> Purpose | None:
    """None for a model of texts, or of tensors that say nothing. `described` is as `Engine.describe` has it."""
    expected = expected_of(described)
    if takes_text(expected):
        return None
    inputs = {each.name for each in expected if each.datatype == BYTES}
    required = {each.name for each in expected if not each.optional}
    outputs = {each["name"] for each in described["outputs"] if each["datatype"] == BYTES}
    for purpose in PURPOSES:
        known = {name for names in purpose.fields.values() for name in names}
        if (
            all(inputs.intersection(purpose.fields[field]) for field in purpose.needed)
            and all(outputs.intersection(purpose.outputs[field]) for field in purpose.answers)
            and required <= known
        ):
            return purpose
    return None


def tensors_of(purpose: Purpose, described: Mapping[str, Any], values: Mapping[str, Any]) -> list[InputTensor]:
    """The tensors that say `values`, each by the name of its field.

    Raises:
        TensorRefused: by its field, one for which the model has no input, or which is not what the input takes.
    """
    batched = described.get("max_batch_size", 0) > 0
    by_name = {each.name: each for each in expected_of(described)}
    tensors = []
    for field, value in values.items():
        expected = next((by_name[name] for name in purpose.fields[field] if name in by_name), None)
        if expected is None and value == []:
            continue
        if expected is None:
            raise TensorRefused(field, "is nothing that the model takes: leave it out")
        tensors.append(_tensor(field, expected, value if isinstance(value, list) else [value], batched))
    return tensors


def _tensor(field: str, expected: Expected, values: list[Any], batched: bool) -> InputTensor:
    shape = [1 if size == -1 else size for size in expected.shape]
    free = [place for place, size in enumerate(expected.shape) if size == -1 and not (batched and place == 0)]
    if free:
        shape[free[-1]] = len(values)
    parameters = None
    if expected.datatype == BYTES and all(isinstance(value, bytes) for value in values) and values:
        values, parameters = [base64.b64encode(value).decode() for value in values], IN_BASE64
        fits = True
    elif expected.datatype == BYTES:
        fits = all(isinstance(value, str) for value in values)
    elif expected.datatype in FLOATS:
        values = [float(value) for value in values]
        fits = True
    else:
        fits = expected.datatype != BOOL and all(isinstance(value, int) for value in values)
    if not fits:
        raise TensorRefused(field, f"does not fit the model's input {expected.name}, {expected.datatype}")
    return InputTensor(name=expected.name, datatype=expected.datatype, shape=shape, data=values, parameters=parameters)  # type: ignore[arg-type]


def output_of(purpose: Purpose, answer: Mapping[str, Any], field: str) -> dict[str, Any] | None:
    """The tensor that says it, as the stored answer has it; of several responses the last."""
    outputs: Sequence[dict[str, Any]] = answer["outputs"]
    found = [each for each in outputs if each["name"] in purpose.outputs[field]]
    return found[-1] if found else None
