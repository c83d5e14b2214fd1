"""ner-rules for Triton: a text to the entities in it, and the text with them masked, by the rules of rules.py."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils
from masking import mask
from rules import KINDS, find


class TritonPythonModel:
    def execute(self, requests: Sequence[Any]) -> list[Any]:
        return [_answer(request) for request in requests]


def _answer(request: Any) -> Any:
    try:
        text = (_texts(request, "text") or [""])[0]
        labels = _texts(request, "entities") or list(KINDS)
        # Left out, all that is found is masked; empty, nothing is.
        masked_labels = _texts(request, "mask_entities")
    except UnicodeDecodeError:
        return pb_utils.InferenceResponse(error=pb_utils.TritonError("an input is not UTF-8"))
    spans = find(text, labels)
    masked_text, mask_map = mask(text, spans, labels if masked_labels is None else masked_labels)
    outputs = {
        "spans": json.dumps(spans, ensure_ascii=False),
        "masked_text": masked_text,
        "mask_map": json.dumps(mask_map, ensure_ascii=False),
    }
    return pb_utils.InferenceResponse(
        [pb_utils.Tensor(name, np.array([value.encode()], np.object_)) for name, value in outputs.items()]
    )


def _texts(request: Any, name: str) -> list[str] | None:
    """None where the request lacks the input."""
    tensor = pb_utils.get_input_tensor_by_name(request, name)
    return None if tensor is None else [value.decode() for value in tensor.as_numpy().reshape(-1)]
