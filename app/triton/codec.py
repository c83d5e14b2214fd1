"""Payload to tensors and back, for the vLLM backend's contract: pure, no I/O.

Inputs are BYTES [1] and BOOL [1]. Outputs: text_output BYTES [1], finish_reason BYTES [1], num_input_tokens UINT32 []
(0-d on the wire), num_output_tokens UINT32 [1] (per message when streaming), cumulative_logprob FP32 [1], logprobs
BYTES [1]. A request asks for one text: with n > 1 the backend mixes the texts.
"""

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from pydantic_core import from_json, to_json
from tritonclient.grpc import InferInput, InferResult

NOT_FINISHED = "None"


def bytes_input(name: str, value: str) -> InferInput:
    tensor = InferInput(name, [1], "BYTES")
    tensor.set_data_from_numpy(np.array([value.encode()], dtype=np.object_))
    return tensor


def bool_input(name: str, value: bool) -> InferInput:
    tensor = InferInput(name, [1], "BOOL")
    tensor.set_data_from_numpy(np.array([value], dtype=np.bool_))
    return tensor


# These never change, so they are made once.
_STREAMED = bool_input("stream", True)
_EXCLUDED = bool_input("exclude_input_in_output", True)
_RETURNED = tuple(
    bool_input(name, True) for name in ("return_finish_reason", "return_num_input_tokens", "return_num_output_tokens")
)
_RETURNED_LOGPROBS = tuple(bool_input(name, True) for name in ("return_logprobs", "return_cumulative_logprob"))


def encode(prompt: str, parameters: dict[str, Any]) -> list[InferInput]:
    """The input tensors of one request; the generation is streamed and the prompt not repeated."""
    if "structured_outputs" in parameters:
        # The backend wants this one as JSON text inside the JSON.
        parameters = parameters | {"structured_outputs": to_json(parameters["structured_outputs"]).decode()}
    inputs = [
        bytes_input("text_input", prompt),
        _STREAMED,
        _EXCLUDED,
        bytes_input("sampling_parameters", to_json(parameters).decode()),
        *_RETURNED,
    ]
    if parameters.get("logprobs") is not None:
        inputs.extend(_RETURNED_LOGPROBS)
    return inputs


@dataclass(slots=True)
class Delta:
    """What one message adds: a text, a finish reason (None while it goes on) and a token count.

    The answer of an embedding model has one of each for every vector.
    """

    texts: list[str]
    finish_reasons: list[str | None]
    prompt_tokens: int | None = None
    completion_tokens: list[int] = field(default_factory=list)
    logprobs: list[list[dict[str, Any]] | None] = field(default_factory=list)
    cumulative_logprobs: list[float | None] = field(default_factory=list)
    final: bool = False
    # Bytes of texts and logprobs.
    size: int = 0


def is_final(result: InferResult) -> bool:
    """Whether it is the last message of its request."""
    return bool(result.get_response().parameters["triton_final_response"].bool_param)


def decode(result: InferResult) -> Delta:
    """Reads one message of a stream.

    Raises:
        ValueError: the message has no text_output or its tensors do not fit the contract.
    """
    texts = result.as_numpy("text_output")
    final = is_final(result)
    if texts is None:
        if final:
            return Delta([], [], final=True)
        raise ValueError("a message without text_output")
    reasons = result.as_numpy("finish_reason")
    prompt_tokens = result.as_numpy("num_input_tokens")
    completion_tokens = result.as_numpy("num_output_tokens")
    delta = Delta(
        texts=[_text(value) for value in texts],
        finish_reasons=[] if reasons is None else [_finish_reason(value) for value in reasons],
        prompt_tokens=None if prompt_tokens is None else int(prompt_tokens.item()),
        completion_tokens=[] if completion_tokens is None else [int(value) for value in completion_tokens],
        final=final,
        size=sum(map(len, texts)),
    )
    logprobs = result.as_numpy("logprobs")
    if logprobs is not None:
        delta.size += sum(map(len, logprobs))
        # Postgres takes no NUL, not even escaped, and a token may well be one.
        delta.logprobs = [_chosen(from_json(value.replace(b"\\u0000", b"\\ufffd"))) for value in logprobs]
    cumulative = result.as_numpy("cumulative_logprob")
    if cumulative is not None:
        delta.cumulative_logprobs = [float(value) if math.isfinite(value) else None for value in cumulative]
    return delta


def _chosen(tokens: list[dict[str, Any]] | None) -> list[dict[str, Any]] | None:
    """Marks the token that was taken: the engine names it first, and jsonb keeps no order."""
    for token in tokens or ():
        for entry in token.values():
            entry["chosen"] = True
            break
    return tokens


def _text(value: bytes) -> str:
    return value.decode("utf-8", errors="replace")


def _finish_reason(value: bytes) -> str | None:
    text = _text(value)
    return None if text == NOT_FINISHED else text


class Accumulator:
    """Adds up the messages of a ticket's generations, one for each of its `choices`."""

    def __init__(self, choices: int = 1) -> None:
        self.choices = choices
        self.texts: list[list[str]] = []
        self.finish_reasons: list[str | None] = []
        self.logprobs: list[list[dict[str, Any]] | None] = []
        self.cumulative_logprobs: list[float | None] = []
        self.prompt_tokens: int | None = None
        self.completion_tokens: int | None = None
        self.size = 0

    def add(self, delta: Delta, choice: int = 0) -> None:
        """Adds a message of the generation of one choice. They share the prompt, so its tokens count once."""
        self.size += delta.size
        while len(self.texts) < choice + len(delta.texts):
            self.texts.append([])
            self.finish_reasons.append(None)
            self.logprobs.append(None)
            self.cumulative_logprobs.append(None)
        for index, text in enumerate(delta.texts, choice):
            if text:
                self.texts[index].append(text)
        for index, reason in enumerate(delta.finish_reasons, choice):
            if reason is not None:
                self.finish_reasons[index] = reason
        for index, logprobs in enumerate(delta.logprobs, choice):
            if logprobs:
                known = self.logprobs[index]
                if known is None:
                    self.logprobs[index] = list(logprobs)
                else:
                    known.extend(logprobs)
        for index, cumulative in enumerate(delta.cumulative_logprobs, choice):
            if cumulative is not None:
                self.cumulative_logprobs[index] = cumulative
        if delta.prompt_tokens is not None:
            self.prompt_tokens = delta.prompt_tokens
        if delta.completion_tokens:
            self.completion_tokens = (self.completion_tokens or 0) + sum(delta.completion_tokens)

    def joined(self) -> list[str]:
        return ["".join(parts) for parts in self.texts]

    @property
    def finished(self) -> bool:
        """Whether every choice has its finish reason."""
        return len(self.texts) >= self.choices and all(reason is not None for reason in self.finish_reasons)
