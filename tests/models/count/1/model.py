"""Counts to n, slowly where it is told to. A negative n is an error of the model: -1 refused, -2 a defect."""

import threading
import time

import numpy as np
import triton_python_backend_utils as pb_utils

FINAL = pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL


class TritonPythonModel:
    def execute(self, requests):
        for request in requests:
            n = _value(request, "n", 0)
            if n == -2:
                raise ValueError("a defect of the model")
            # Triton asks execute() to return, so that further requests come.
            threading.Thread(target=_count, args=(request, n, _value(request, "pause_ms", 0) / 1000)).start()


def _value(request, name, default):
    tensor = pb_utils.get_input_tensor_by_name(request, name)
    return default if tensor is None else tensor.as_numpy().item()


def _count(request, n, pause):
    sender = request.get_response_sender()
    if n < 0:
        error = pb_utils.TritonError(f"n is {n} and must be 0 or more")
        sender.send(pb_utils.InferenceResponse(error=error), flags=FINAL)
        return
    for i in range(n):
        if sender.is_cancelled():
            break
        blob = np.array([b"\x89PNG\r\n\x1a\n%d" % i, b"\xff%d" % i], np.object_)
        sender.send(
            pb_utils.InferenceResponse([pb_utils.Tensor("i", np.array([i], np.int32)), pb_utils.Tensor("blob", blob)])
        )
        time.sleep(pause)
    sender.send(flags=FINAL)
