"""all-MiniLM-L6-v2 for Triton: texts to vectors of 384 numbers and length 1, as sentence-transformers makes them.

It runs in NumPy on the CPU. Texts of several requests are computed together; what is beyond 256 tokens is not read.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils
from bert import Bert, Floats, Ids
from safetensors.numpy import load_file
from tokenizers import Tokenizer
from weights import ADVICE, WeightsMissing, find

MAX_TOKENS = 256
# Texts of similar length are computed together, padding included at most this many tokens: about 40 MB.
MAX_TOKENS_AT_ONCE = 1024
# Where NumPy keeps to one thread in each matrix product, as in the local stack, the groups are spread over the cores
# instead: threads that share a product spin while they wait for each other, at the cost of whatever else runs.
WORKERS = len(os.sched_getaffinity(0)) if os.environ.get("OPENBLAS_NUM_THREADS") == "1" else 1


class TritonPythonModel:
    def initialize(self, _: dict[str, str]) -> None:
        try:
            folder = find(Path(__file__).parent)
        except WeightsMissing as missing:
            raise pb_utils.TritonModelException(str(missing)) from None
        try:
            self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
            self.bert = Bert(load_file(folder / "model.safetensors"))
        except Exception as error:
            # tokenizers raises nothing more precise.
            raise pb_utils.TritonModelException(
                f"The files in {folder} cannot be used ({type(error).__name__}: {error}). {ADVICE}"
            ) from None
        self.tokenizer.enable_truncation(MAX_TOKENS)
        self.tokenizer.no_padding()
        self.workers = ThreadPoolExecutor(WORKERS)

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        texts: list[str] = []
        spans: list[slice | None] = []
        for request in requests:
            values = pb_utils.get_input_tensor_by_name(request, "text").as_numpy().reshape(-1)
            try:
                decoded = [value.decode() for value in values]
            except UnicodeDecodeError:
                spans.append(None)
                continue
            spans.append(slice(len(texts), len(texts) + len(decoded)))
            texts += decoded
        vectors, counts = self.embed(texts)
        return [_answer(span, vectors, counts) for span in spans]

    def embed(self, texts: Sequence[str]) -> tuple[Floats, Ids]:
        """The vector of each text, and how many tokens it was made of."""
        tokens = [encoding.ids for encoding in self.tokenizer.encode_batch(texts)]
        counts = np.array([len(each) for each in tokens], np.int64)
        vectors = np.empty((len(texts), self.bert.words.shape[1]), np.float32)

        def compute(part: Ids) -> None:
            padded = np.zeros((len(part), counts[part].max()), np.int64)
            for row, place in enumerate(part):
                padded[row, : counts[place]] = tokens[place]
            vectors[part] = self.bert.embed(padded, counts[part])

        list(self.workers.map(compute, _groups(counts)))
        return vectors, counts


def _groups(counts: Ids) -> Iterator[Ids]:
    """The places of the texts, longest first, in groups that are small enough and leave no worker idle."""
    places = np.argsort(-counts, kind="stable")
    at_once = min(MAX_TOKENS_AT_ONCE, int(counts.sum()) // WORKERS)
    start = 0
    while start < len(places):
        size = max(1, at_once // int(counts[places[start]]))
        yield places[start : start + size]
        start += size


def _answer(span: slice | None, vectors: Floats, counts: Ids) -> Any:
    if span is None:
        return pb_utils.InferenceResponse(error=pb_utils.TritonError("text is not UTF-8"))
    return pb_utils.InferenceResponse(
        [
            pb_utils.Tensor("embedding", vectors[span]),
            pb_utils.Tensor("num_input_tokens", counts[span].astype(np.uint32).reshape(-1, 1)),
        ]
    )
