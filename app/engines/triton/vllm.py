"""Payload to messages and back, for the vLLM backend's contract: pure, no I/O.

Inputs are BYTES [1] and BOOL [1], for images BYTES [-1].
Outputs: text_output BYTES [1], finish_reason BYTES [1], num_input_tokens UINT32 []
(0-d on the wire), num_output_tokens UINT32 [1] (per message when streaming), cumulative_logprob FP32 [1], logprobs
BYTES [1]. A request asks for one text: with n > 1 the backend mixes the texts. A message comes for each token, so what
reads it does without arrays.
"""

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from pydantic_core import from_json, to_json
from tritonclient.grpc import service_pb2

from app.engines.triton.tensors import (
    add_flag,
    add_texts,
    contents_of,
    is_final,
    new_request,
    numbers_of,
    texts_content,
    texts_of,
)
from app.tasks.chunks import Chunk

NOT_FINISHED = b"None"
_RETURNED = ("return_finish_reason", "return_num_input_tokens", "return_num_output_tokens")
_RETURNED_LOGPROBS = ("return_logprobs", "return_cumulative_logprob")
# Not of the vLLM backend: an output of engines that tell of the prompt's tokens too.
PROMPT_LOGPROBS = "prompt_logprobs"


def encode(
    model: str,
    request_id: str,
    prompt: str,
    parameters: dict[str, Any],
    *,
    stream: bool = True,
    images: Sequence[str] = (),
) -> service_pb2.ModelInferRequest:
    """One request; the prompt is not repeated in its answer, and has a place for each image, in base64."""
    if "structured_outputs" in parameters:
        # The backend wants this one as JSON text inside the JSON.
        parameters = parameters | {"structured_outputs": to_json(parameters["structured_outputs"]).decode()}
    request = service_pb2.ModelInferRequest()
    request.CopyFrom(_template(model, stream, parameters.get("logprobs") is not None))
    request.id = request_id
    request.raw_input_contents[0] = texts_content(prompt.encode())
    request.raw_input_contents[1] = texts_content(to_json(parameters))
    if images:
        add_texts(request, "image", images)
    return request


@lru_cache(maxsize=256)
def _template(model: str, stream: bool, logprobs: bool) -> service_pb2.ModelInferRequest:
    """All but the prompt and the parameters, which come first."""
    request = new_request(model)
    add_texts(request, "text_input", [""])
    add_texts(request, "sampling_parameters", [""])
    add_flag(request, "stream", stream)
    for name in ("exclude_input_in_output", *_RETURNED, *(_RETURNED_LOGPROBS if logprobs else ())):
        add_flag(request, name, True)
    return request


def decode(response: service_pb2.ModelInferResponse) -> Chunk:
    """Reads one message.

    Raises:
        ValueError: it has no text_output, or its tensors do not fit the contract.
    """
    contents = contents_of(response)
    final = is_final(response)
    if (content := contents.get("text_output")) is None:
        if final:
            return Chunk([], [], final=True)
        raise ValueError("a message without text_output")
    texts = texts_of(content)
    reasons = contents.get("finish_reason")
    prompt_tokens = contents.get("num_input_tokens")
    completion_tokens = contents.get("num_output_tokens")
    chunk = Chunk(
        texts=[text.decode("utf-8", "replace") for text in texts],
        finish_reasons=[] if reasons is None else [finish_reason(value) for value in texts_of(reasons)],
        prompt_tokens=None if prompt_tokens is None else int(numbers_of(prompt_tokens)[0]),
        completion_tokens=[] if completion_tokens is None else [int(each) for each in numbers_of(completion_tokens)],
        final=final,
        size=sum(map(len, texts)),
    )
    if (content := contents.get("logprobs")) is not None:
        logprobs = texts_of(content)
        chunk.size += sum(map(len, logprobs))
        chunk.logprobs = [_tokens(value) for value in logprobs]
    if (content := contents.get(PROMPT_LOGPROBS)) is not None:
        of_prompt = texts_of(content)
        chunk.size += sum(map(len, of_prompt))
        chunk.logprobs = [[*(_tokens(of_prompt[0]) or ()), *((chunk.logprobs or [None])[0] or ())]]
    if (content := contents.get("cumulative_logprob")) is not None:
        chunk.cumulative_logprobs = [value if math.isfinite(value) else None for value in numbers_of(content)]
    return chunk


def _tokens(value: bytes) -> list[dict[str, Any]] | None:
    """Marks the token that was taken: the engine names it first, and jsonb keeps no order."""
    # Postgres takes no NUL, not even escaped, and a token may well be one.
    tokens: list[dict[str, Any]] | None = from_json(value.replace(b"\\u0000", b"\\ufffd"))
    for token in tokens or ():
        for entry in token.values():
            entry["chosen"] = True
            break
    return tokens


def finish_reason(value: bytes) -> str | None:
    return None if value == NOT_FINISHED else value.decode("utf-8", "replace")
