"""Answers with what it was asked, word by word, in the way of TensorRT-LLM's llmapi model; no language model.

A message of a stream has the whole text so far, 0.15 s after the one before. The prompt "fail" is an error.
"""

import json
import time

import numpy as np
import triton_python_backend_utils as pb_utils

FINAL = pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL
PREFIX = "sampling_param_"


class TritonPythonModel:
    def execute(self, requests):
        for request in requests:
            _answer(request, {each.name(): each.as_numpy() for each in request.inputs()})


def _answer(request, inputs):
    sender = request.get_response_sender()
    prompt = inputs["text_input"][0].decode()
    if prompt == "fail":
        error = pb_utils.TritonError("Error generating request: the engine is out of sorts")
        sender.send(pb_utils.InferenceResponse(error=error), FINAL)
        return
    asked = {
        name.removeprefix(PREFIX): [each.decode() for each in value] if value.dtype == object else value.item()
        for name, value in sorted(inputs.items())
        if name.startswith(PREFIX)
    }
    words = f"{prompt} {json.dumps(asked)}".split(" ")
    streaming = "streaming" in inputs and inputs["streaming"].item()
    for count in range(1 if streaming else len(words), len(words) + 1):
        time.sleep(0.15 if count > 1 and streaming else 0)
        last = count == len(words)
        outputs = [_texts("text_output", " ".join(words[:count]))]
        if inputs["return_finish_reason"].item():
            outputs.append(_texts("finish_reason", "stop" if last else "None"))
        sender.send(pb_utils.InferenceResponse(outputs), FINAL if last else 0)


def _texts(name, text):
    return pb_utils.Tensor(name, np.array([text.encode()], np.object_))
