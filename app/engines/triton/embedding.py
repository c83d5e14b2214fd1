"""Texts to vectors: which models can, and their tensors. Pure, no I/O.

A model embeds when its one required input is BYTES and one of its outputs is FP32 or FP16: [1] to [d] for a text, or
[n, 1] to [n, d] where the model batches. A model of the vLLM backend takes `embedding_request` instead, JSON for one
text, and answers `text_output` with the JSON array of the vector.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from pydantic_core import from_json, to_json
from tritonclient.grpc import InferResult, service_pb2

from app.engines.triton.tensors import add_flag, add_texts

VLLM_INPUT = "embedding_request"
TOKENS_OUTPUT = "num_input_tokens"
LARGEST_BATCH = 64
_VECTORS = ("TYPE_FP32", "TYPE_FP16")


@dataclass(frozen=True, slots=True)
class EmbeddingContract:
    """How one model takes texts; `batch` of them go into a request."""

    input: str
    output: str
    batch: int
    batched: bool = False

    def encode(self, request: service_pb2.ModelInferRequest, texts: Sequence[str]) -> None:
        """Adds the input tensors for at most `batch` texts."""
        if self.input == VLLM_INPUT:
            add_texts(request, "text_input", [""])
            add_texts(request, VLLM_INPUT, [to_json({"input": texts[0], "pooling_params": {}}).decode()])
            add_flag(request, "return_num_input_tokens", True)
        else:
            add_texts(request, self.input, texts, [len(texts), 1] if self.batched else None)

    def decode(self, response: service_pb2.ModelInferResponse, count: int) -> tuple[list[str], int | None]:
        """A vector for each of `count` texts, and the tokens they were made of where the model says.

        Raises:
            ValueError: the answer holds something else.
        """
        result = InferResult(response)
        found = result.as_numpy(self.output)
        if found is None:
            raise ValueError(f"an answer without {self.output}")
        if self.input == VLLM_INPUT:
            found = np.array(from_json(found[0]), dtype=np.float32)
        if found.ndim not in (1, 2) or not found.size or found.size % count or (count > 1 and len(found) != count):
            raise ValueError(f"{self.output} of shape {list(found.shape)} for {count} texts")
        vectors = found.astype("<f4").reshape(count, -1)
        if not np.isfinite(vectors).all():
            raise ValueError(f"{self.output} holds numbers that are not finite")
        tokens = result.as_numpy(TOKENS_OUTPUT)
        return [base64.b64encode(vector.tobytes()).decode() for vector in vectors], (
            None if tokens is None else int(tokens.sum())
        )


def embedding_contract(config: dict[str, Any]) -> EmbeddingContract:
    """Reads a model's configuration as Triton gives it.

    Raises:
        ValueError: the model does not embed.
    """
    inputs, outputs = config.get("input", []), config.get("output", [])
    if any(each["name"] == VLLM_INPUT for each in inputs):
        return EmbeddingContract(VLLM_INPUT, "text_output", 1)
    needed = [each for each in inputs if not each.get("optional")]
    vectors = [each for each in outputs if each.get("data_type") in _VECTORS]
    if len(needed) != 1 or needed[0].get("data_type") != "TYPE_STRING" or len(vectors) != 1:
        raise ValueError("not one text input and one FP32 or FP16 output")
    name, output = needed[0]["name"], vectors[0]["name"]
    largest = int(config.get("max_batch_size", 0))
    if largest > 0:
        return EmbeddingContract(name, output, min(largest, LARGEST_BATCH), batched=True)
    open_ended = [int(size) for size in needed[0].get("dims", [])] == [-1] and len(vectors[0].get("dims", [])) > 1
    return EmbeddingContract(name, output, LARGEST_BATCH if open_ended else 1)
