"""Eight numbers of unit length for each text, the same for the same text."""

import zlib

import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def execute(self, requests):
        return [self._answer(request) for request in requests]

    def _answer(self, request):
        texts = pb_utils.get_input_tensor_by_name(request, "text").as_numpy().reshape(-1)
        vectors = np.array([[zlib.crc32(text, seed) % 1000 + 1 for seed in range(8)] for text in texts], np.float32)
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        tokens = np.array([[len(text.split())] for text in texts], np.uint32)
        return pb_utils.InferenceResponse(
            [pb_utils.Tensor("embedding", vectors), pb_utils.Tensor("num_input_tokens", tokens)]
        )
