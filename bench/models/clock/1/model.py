"""Every token is the moment it was made: nanoseconds of the machine's monotonic clock. The prompt is the pace in ms."""

import json
import random
import threading
import time

import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def execute(self, requests):
        for request in requests:
            threading.Thread(target=_speak, args=(request,), daemon=True).start()


def _speak(request) -> None:
    sender = request.get_response_sender()
    pace = float(_text(request, "text_input")) / 1000
    tokens = json.loads(_text(request, "sampling_parameters"))["max_tokens"]
    time.sleep(random.random() * pace)
    due = time.monotonic()
    for number in range(1, tokens + 1):
        last = number == tokens
        response = pb_utils.InferenceResponse(
            [
                pb_utils.Tensor("text_output", np.array([b"%d " % time.monotonic_ns()], dtype=np.object_)),
                pb_utils.Tensor("finish_reason", np.array([b"length" if last else b"None"], dtype=np.object_)),
                pb_utils.Tensor("num_input_tokens", np.array([1], dtype=np.uint32)),
                pb_utils.Tensor("num_output_tokens", np.array([1], dtype=np.uint32)),
            ]
        )
        if sender.is_cancelled():
            break
        sender.send(response, pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL if last else 0)
        due += pace
        time.sleep(max(0.0, due - time.monotonic()))


def _text(request, name: str) -> str:
    return pb_utils.get_input_tensor_by_name(request, name).as_numpy()[0].decode()
