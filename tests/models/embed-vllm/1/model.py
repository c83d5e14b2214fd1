"""The wire contract of the vLLM backend's `embedding_request`: JSON for one text in, JSON of its vector out."""

import json

import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def execute(self, requests):
        for request in requests:
            asked = pb_utils.get_input_tensor_by_name(request, "embedding_request").as_numpy()[0]
            text = json.loads(asked)["input"]
            vector = [float(len(text)), 0.5, -1.25]
            tensors = [
                pb_utils.Tensor("text_output", np.array([json.dumps(vector).encode()], dtype=np.object_)),
                pb_utils.Tensor("num_input_tokens", np.array(len(text.split()), dtype=np.uint32)),
            ]
            sender = request.get_response_sender()
            sender.send(pb_utils.InferenceResponse(tensors), pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
        return
