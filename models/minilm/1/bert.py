"""The network of all-MiniLM-L6-v2 in NumPy: BERT, mean pooling, vectors of length 1."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Ids = NDArray[np.int64]

HEADS = 12
EPSILON = np.float32(1e-12)
# Rows whose intermediate values fit into a core's cache while the activation is computed.
ACTIVATION_ROWS = 64


class Bert:
    """`weights` are the tensors of model.safetensors, by their names in the Hugging Face checkpoint.

    Raises:
        KeyError: a tensor is missing.
    """

    def __init__(self, weights: Mapping[str, NDArray[Any]]) -> None:
        def array(name: str) -> Floats:
            return np.ascontiguousarray(weights[name], dtype=np.float32)

        self.words = array("embeddings.word_embeddings.weight")
        # Every token is of the first of two types, so that type's vector is added to those of the places here.
        self.places = array("embeddings.position_embeddings.weight")
        self.places += array("embeddings.token_type_embeddings.weight")[0]
        self.norm = _Norm(array, "embeddings.LayerNorm")
        layers = {name.split(".")[2] for name in weights if name.startswith("encoder.layer.")}
        self.layers = [_Layer(array, f"encoder.layer.{number}") for number in range(len(layers))]

    def embed(self, ids: Ids, lengths: Ids) -> Floats:
        """`ids` [texts, longest], padded at the end, and `lengths` [texts] to vectors of length 1, [texts, d]."""
        texts, longest = ids.shape
        hidden = self.words[ids]
        hidden += self.places[:longest]
        hidden = self.norm(hidden.reshape(texts * longest, -1))
        present = np.arange(longest) < lengths[:, None]
        masked = None if present.all() else np.where(present, np.float32(0), np.float32(-np.inf))[:, None, None, :]
        for layer in self.layers:
            hidden = layer(hidden, texts, masked)
        vectors: Floats = np.einsum("nld,nl->nd", hidden.reshape(texts, longest, -1), present.astype(np.float32))
        vectors /= lengths[:, None]
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        return vectors


class _Norm:
    def __init__(self, array: Any, name: str) -> None:
        self.scale, self.shift = array(f"{name}.weight"), array(f"{name}.bias")

    def __call__(self, rows: Floats) -> Floats:
        """In place."""
        rows -= rows.mean(axis=1, keepdims=True)
        variance = np.einsum("rd,rd->r", rows, rows) / np.float32(rows.shape[1])
        rows *= (1 / np.sqrt(variance + EPSILON))[:, None]
        rows *= self.scale
        rows += self.shift
        return rows


class _Dense:
    def __init__(self, array: Any, *names: str) -> None:
        self.matrix = np.concatenate([array(f"{name}.weight") for name in names]).T.copy()
        self.shift = np.concatenate([array(f"{name}.bias") for name in names])

    def __call__(self, rows: Floats) -> Floats:
        made: Floats = rows @ self.matrix
        made += self.shift
        return made


class _Layer:
    def __init__(self, array: Any, name: str) -> None:
        attention = f"{name}.attention"
        self.projections = _Dense(array, *(f"{attention}.self.{part}" for part in ("query", "key", "value")))
        self.attended = _Dense(array, f"{attention}.output.dense")
        self.attended_norm = _Norm(array, f"{attention}.output.LayerNorm")
        self.wide = _Dense(array, f"{name}.intermediate.dense")
        self.narrow = _Dense(array, f"{name}.output.dense")
        self.norm = _Norm(array, f"{name}.output.LayerNorm")

    def __call__(self, hidden: Floats, texts: int, masked: Floats | None) -> Floats:
        """`hidden` is [texts * longest, d]; `masked` is added to the scores, [texts, 1, 1, longest]."""
        rows, size = hidden.shape
        parts = self.projections(hidden).reshape(texts, rows // texts, 3, HEADS, size // HEADS)
        query, key, value = parts.transpose(2, 0, 3, 1, 4)
        scores = query @ key.swapaxes(-1, -2)
        scores *= np.float32((size // HEADS) ** -0.5)
        if masked is not None:
            scores += masked
        scores -= scores.max(axis=-1, keepdims=True)
        np.exp(scores, out=scores)
        scores /= scores.sum(axis=-1, keepdims=True)
        joined = (scores @ value).transpose(0, 2, 1, 3).reshape(rows, size)
        summed = self.attended(joined)
        summed += hidden
        summed = self.attended_norm(summed)
        wide = self.wide(summed)
        for start in range(0, rows, ACTIVATION_ROWS):
            gelu(wide[start : start + ACTIVATION_ROWS])
        made = self.narrow(wide)
        made += summed
        return self.norm(made)


def gelu(x: Floats) -> None:
    """In place: x times the normal distribution's cumulative function.

    As max(x, 0) - |x| * tail(|x|), the tail by formula 7.1.26 of Abramowitz and Stegun, wrong by less than 1e-7.
    """
    size = np.abs(x)
    t = size * np.float32(0.3275911 / 2**0.5)
    t += 1
    np.reciprocal(t, out=t)
    tail = t * np.float32(1.061405429 / 2)
    for coefficient in (-1.453152027, 1.421413741, -0.284496736, 0.254829592):
        tail += np.float32(coefficient / 2)
        tail *= t
    np.multiply(size, size, out=t)
    t *= np.float32(-0.5)
    np.exp(t, out=t)
    tail *= t
    tail *= size
    np.maximum(x, 0, out=x)
    x -= tail
