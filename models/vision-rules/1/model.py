"""vision-rules for Triton: a picture and a question to a text, by the rules of seeing.py."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils
from seeing import NotAPicture, answer, opened


class TritonPythonModel:
    def execute(self, requests: Sequence[Any]) -> list[Any]:
        return [_answer(request) for request in requests]


def _answer(request: Any) -> Any:
    question = pb_utils.get_input_tensor_by_name(request, "question")
    try:
        picture = opened(pb_utils.get_input_tensor_by_name(request, "image").as_numpy().item())
        text = answer(picture, "" if question is None else question.as_numpy().item().decode())
    except (NotAPicture, UnicodeDecodeError) as error:
        problem = str(error) if isinstance(error, NotAPicture) else "question is not UTF-8"
        return pb_utils.InferenceResponse(error=pb_utils.TritonError(problem))
    return pb_utils.InferenceResponse([pb_utils.Tensor("text", np.array([text.encode()], np.object_))])
