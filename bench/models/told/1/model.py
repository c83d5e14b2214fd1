"""As many tokens as may be, at once, with as many alternatives as are asked for: the largest answers there are."""

import json

import numpy as np
import triton_python_backend_utils as pb_utils

TOKENS_AT_ONCE = 500


class TritonPythonModel:
    def execute(self, requests):
        for request in requests:
            _speak(request)


def _speak(request) -> None:
    sender = request.get_response_sender()
    asked = json.loads(pb_utils.get_input_tensor_by_name(request, "sampling_parameters").as_numpy()[0])
    left, alternatives = asked["max_tokens"], asked.get("logprobs")
    while left:
        count = min(left, TOKENS_AT_ONCE)
        left -= count
        tensors = [
            pb_utils.Tensor("text_output", np.array([b"word" * count], dtype=np.object_)),
            pb_utils.Tensor("finish_reason", np.array([b"None" if left else b"length"], dtype=np.object_)),
            pb_utils.Tensor("num_input_tokens", np.array([1], dtype=np.uint32)),
            pb_utils.Tensor("num_output_tokens", np.array([count], dtype=np.uint32)),
        ]
        if alternatives is not None:
            told = json.dumps([_alternatives(left + each, alternatives + 1) for each in range(count)])
            tensors.append(pb_utils.Tensor("logprobs", np.array([told.encode()], dtype=np.object_)))
        response = pb_utils.InferenceResponse(tensors)
        if sender.is_cancelled():
            break
        sender.send(response, 0 if left else pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)


def _alternatives(place, count):
    return {
        str(place * 31 + rank): {
            "logprob": -rank - 1 / (place + 2),
            "rank": rank + 1,
            "decoded_token": f" w{place % 997}",
        }
        for rank in range(count)
    }
