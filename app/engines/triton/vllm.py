"""Payload to tensors and back, for the vLLM backend's contract: pure, no I/O.

Inputs are BYTES [1] and BOOL [1]. Outputs: text_output BYTES [1], finish_reason BYTES [1], num_input_tokens UINT32 []
(0-d on the wire), num_output_tokens UINT32 [1] (per message when streaming), cumulative_logprob FP32 [1], logprobs
BYTES [1]. A request asks for one text: with n > 1 the backend mixes the texts.
"""

import math
from typing import Any

from pydantic_core import from_json, to_json
from tritonclient.grpc import InferInput, InferResult

from app.engines.triton.tensors import bool_input, bytes_input, is_final
from app.tasks.chunks import Chunk

NOT_FINISHED = "None"


# These never change, so they are made once.
_STREAM = {stream: bool_input("stream", stream) for stream in (True, False)}
_EXCLUDED = bool_input("exclude_input_in_output", True)
_RETURNED = tuple(
    bool_input(name, True) for name in ("return_finish_reason", "return_num_input_tokens", "return_num_output_tokens")
)
_RETURNED_LOGPROBS = tuple(bool_input(name, True) for name in ("return_logprobs", "return_cumulative_logprob"))


def encode(prompt: str, parameters: dict[str, Any], *, stream: bool = True) -> list[InferInput]:
    """The input tensors of one request; the prompt is not repeated."""
    if "structured_outputs" in parameters:
        # The backend wants this one as JSON text inside the JSON.
        parameters = parameters | {"structured_outputs": to_json(parameters["structured_outputs"]).decode()}
    inputs = [
        bytes_input("text_input", prompt),
        _STREAM[stream],
        _EXCLUDED,
        bytes_input("sampling_parameters", to_json(parameters).decode()),
        *_RETURNED,
    ]
    if parameters.get("logprobs") is not None:
        inputs.extend(_RETURNED_LOGPROBS)
    return inputs


def decode(result: InferResult) -> Chunk:
    """Reads one message of a stream.

    Raises:
        ValueError: the message has no text_output or its tensors do not fit the contract.
    """
    texts = result.as_numpy("text_output")
    final = is_final(result)
    if texts is None:
        if final:
            return Chunk([], [], final=True)
        raise ValueError("a message without text_output")
    reasons = result.as_numpy("finish_reason")
    prompt_tokens = result.as_numpy("num_input_tokens")
    completion_tokens = result.as_numpy("num_output_tokens")
    chunk = Chunk(
        texts=[_text(value) for value in texts],
        finish_reasons=[] if reasons is None else [_finish_reason(value) for value in reasons],
        prompt_tokens=None if prompt_tokens is None else int(prompt_tokens.item()),
        completion_tokens=[] if completion_tokens is None else [int(value) for value in completion_tokens],
        final=final,
        size=sum(map(len, texts)),
    )
    logprobs = result.as_numpy("logprobs")
    if logprobs is not None:
        chunk.size += sum(map(len, logprobs))
        # Postgres takes no NUL, not even escaped, and a token may well be one.
        chunk.logprobs = [_chosen(from_json(value.replace(b"\\u0000", b"\\ufffd"))) for value in logprobs]
    cumulative = result.as_numpy("cumulative_logprob")
    if cumulative is not None:
        chunk.cumulative_logprobs = [float(value) if math.isfinite(value) else None for value in cumulative]
    return chunk


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
