"""Payload to messages and back, for the contract of TensorRT-LLM's `llmapi` model: pure, no I/O.

Each sampling parameter is an input of its own. A message of a stream has the whole text so far, and none counts tokens:
usage is an estimate of four characters each.
"""

from __future__ import annotations

import struct
from typing import Any

from tritonclient.grpc import service_pb2

from app.engines.base import FINAL, RETRY, EngineError, Request
from app.engines.triton.tensors import (
    add_flag,
    add_tensor,
    add_texts,
    contents_of,
    is_final,
    new_request,
    texts_of,
)
from app.engines.triton.vllm import finish_reason
from app.tasks.chunks import Chunk, tokens_in

# By this input a model tells that it has the contract.
MARK = "sampling_param_max_tokens"
PREFIX = "sampling_param_"
_NUMBERS = {
    "temperature": ("FP32", "f"),
    "top_p": ("FP32", "f"),
    "frequency_penalty": ("FP32", "f"),
    "presence_penalty": ("FP32", "f"),
    "top_k": ("INT32", "i"),
    "max_tokens": ("INT32", "i"),
    "seed": ("UINT64", "Q"),
}
# What it has no input for, and the values at which each of them changes nothing.
_UNKNOWN: dict[str, tuple[Any, ...]] = {
    "min_p": (0,),
    "min_tokens": (0,),
    "repetition_penalty": (1,),
    "stop_token_ids": ([],),
    "bad_words": ([],),
    "include_stop_str_in_output": (False,),
    "logprobs": (),
    "prompt_logprobs": (),
    "allowed_token_ids": (),
    "ignore_eos": (False,),
    "skip_special_tokens": (True,),
    "spaces_between_special_tokens": (True,),
    "structured_outputs": (),
    "lora_name": (),
}
# Below this an engine takes the likeliest token.
_GREEDY = 1e-5


def encode(request: Request) -> service_pb2.ModelInferRequest:
    """
    Raises:
        EngineError: it asks for what the model has no input for.
    """
    given = {name: value for name, value in request.parameters.items() if value is not None}
    for name, harmless in _UNKNOWN.items():
        if name in given and given[name] not in harmless:
            raise _refused(f"has no {name}: leave it out")
    if request.images:
        raise _refused("takes no images here")
    if given.get("seed", 0) < 0:
        raise _refused("takes no seed below 0")
    if given.get("temperature", 1.0) < _GREEDY:
        given = {name: value for name, value in given.items() if name not in ("temperature", "top_p")} | {"top_k": 1}
    elif given.get("top_k", 0) < 1:
        given.pop("top_k", None)
    call = new_request(request.model, request.request_id)
    add_texts(call, "text_input", [request.prompt])
    for name in ("sampling_param_exclude_input_from_output", "return_finish_reason"):
        add_flag(call, name, True)
    add_flag(call, "streaming", request.stream)
    for name, (datatype, code) in _NUMBERS.items():
        if name in given:
            add_tensor(call, f"{PREFIX}{name}", datatype, [1], struct.pack(f"<{code}", given[name]))
            request.sent[PREFIX + name] = given[name]
    if stop := given.get("stop"):
        texts = [stop] if isinstance(stop, str) else stop
        add_texts(call, f"{PREFIX}stop", texts)
        request.sent[f"{PREFIX}stop"] = texts
    return call


class Texts:
    """Reads the messages of one answer in order."""

    def __init__(self, prompt: str) -> None:
        self._prompt_tokens: int | None = tokens_in(prompt)
        self._text = ""
        self._tokens = 0

    def decode(self, response: service_pb2.ModelInferResponse) -> Chunk:
        """
        Raises:
            ValueError: it has no text_output.
            EngineError: it takes back what it said, or ended without an end of the text.
        """
        contents = contents_of(response)
        final = is_final(response)
        if "text_output" not in contents:
            if final:
                return Chunk([], [], final=True)
            raise ValueError("a message without text_output")
        text = texts_of(contents["text_output"])[0].decode("utf-8", "replace")
        if not text.startswith(self._text):
            raise EngineError("answer_rewritten", "The model took back a part of its answer.", RETRY)
        added, self._text = text[len(self._text) :], text
        tokens = tokens_in(text)
        counted, self._tokens = tokens - self._tokens, tokens
        reasons = texts_of(contents["finish_reason"]) if "finish_reason" in contents else []
        reason = finish_reason(reasons[0]) if reasons else None
        if reason not in (None, "stop", "length"):
            raise EngineError("answer_incomplete", f"The engine ended the answer early: {reason}.", RETRY)
        prompt_tokens, self._prompt_tokens = self._prompt_tokens, None
        return Chunk([added], [reason], prompt_tokens, [counted], final=final, size=len(added.encode()), estimated=True)


def _refused(why: str) -> EngineError:
    return EngineError("not_supported_by_model", f"TensorRT-LLM's llmapi model {why}.", FINAL)
