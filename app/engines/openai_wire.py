"""Requests and answers as OpenAI's API has them: pure, no I/O."""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from app.engines.base import FINAL, EngineError, Request, no_prompt_logprobs
from app.engines.http_answers import count_of, likelihood_of, size_of, text_of, token_of
from app.tasks.chunks import Chunk

# What every server knows by the same name, and what vLLM's and SGLang's know besides: sent where it was asked for.
_SAME = (
    *("temperature", "top_p", "max_tokens", "stop", "seed", "presence_penalty", "frequency_penalty", "top_k", "min_p"),
    *("repetition_penalty", "min_tokens", "stop_token_ids", "bad_words", "include_stop_str_in_output", "ignore_eos"),
    *("allowed_token_ids", "spaces_between_special_tokens"),
)
# Of a chat's request, what goes on as it came.
_OF_CHATS = (
    *("tools", "tool_choice", "parallel_tool_calls", "response_format", "chat_template_kwargs", "documents"),
    *("add_generation_prompt", "continue_final_message", "reasoning_effort"),
)
# As `owned_by` in the list of models names llama.cpp's server.
LLAMA_CPP = "llamacpp"
THINK, THINK_END = "<think>", "</think>"
_ENDS = {"tool_calls": "stop", "function_call": "stop", "eos": "stop", "eos_token": "stop"}
# A part of an answer is a token or more, save with servers that cut between the bytes of a character.
_PARTS_PER_TOKEN = 4
_MORE_PARTS = 1000


def chat_body(request: Request, messages: Sequence[Any], owner: str) -> dict[str, Any]:
    """A chat whose messages, tools and form go on as the client sent them.

    Raises:
        EngineError: it asks for what this API has no words for.
    """
    parameters = request.parameters
    if parameters.get("prompt_logprobs") is not None:
        raise no_prompt_logprobs("A chat on this server")
    body = _common(request)
    body["messages"] = messages
    if parameters.get("logprobs") is not None:
        body |= {"logprobs": True, "top_logprobs": parameters["logprobs"]}
    asked = request.asked or {}
    body |= {name: asked[name] for name in _OF_CHATS if asked.get(name) is not None}
    if body.get("continue_final_message"):
        # vLLM's server would begin a new one otherwise.
        body["add_generation_prompt"] = False
    form = parameters.get("structured_outputs")
    if owner == LLAMA_CPP and _is_forced(asked.get("tool_choice")) and form:
        # It has no way of its own to make any model call: the schema of the calls is one.
        return body | {"tool_choice": "none"} | _form(form, owner)
    # What a tool_choice or a response_format holds the text to is the server's own work.
    if not asked.get("tools") and "response_format" not in body:
        body |= _form(form, owner)
    return body


def completion_body(request: Request, owner: str) -> dict[str, Any]:
    """
    Raises:
        EngineError: it asks for what this API has no words for.
    """
    body = _common(request)
    body["prompt"] = request.prompt
    if request.parameters.get("logprobs") is not None:
        body["logprobs"] = request.parameters["logprobs"]
    if (alternatives := request.parameters.get("prompt_logprobs")) is not None:
        if owner == LLAMA_CPP:
            raise no_prompt_logprobs("llama.cpp's server")
        # In a stream, vLLM's server tells them with the prompt that it repeats.
        body |= {"echo": True, "logprobs": max(alternatives, body.get("logprobs", 0))}
    form = request.parameters.get("structured_outputs") or {}
    if owner == LLAMA_CPP and not form.keys().isdisjoint(("json", "json_object")):
        # Of completions it knows no response_format.
        return body | {"json_schema": form.get("json", {"type": "object"})}
    return body | _form(form, owner)


def _is_forced(choice: Any) -> bool:
    return isinstance(choice, dict) or choice == "required"


def _common(request: Request) -> dict[str, Any]:
    parameters = request.parameters
    # An adapter is a model of its own there.
    body: dict[str, Any] = {"model": parameters.get("lora_name") or request.model}
    body |= {name: parameters[name] for name in _SAME if parameters.get(name) is not None}
    return body | {"stream": True, "stream_options": {"include_usage": True}}


def _form(form: Mapping[str, Any] | None, owner: str) -> dict[str, Any]:
    """What holds the text to a form; regex, choice and grammar are no part of OpenAI's API."""
    if not form:
        return {}
    if form.get("json_object"):
        return {"response_format": {"type": "json_object"}}
    if (schema := form.get("json")) is not None:
        return {
            "response_format": {
                "type": "json_schema",
                "json_schema": {"name": "answer", "schema": schema, "strict": True},
            }
        }
    if owner != LLAMA_CPP:
        return {"structured_outputs": dict(form)}
    if choice := form.get("choice"):
        return {"grammar": "root ::= " + " | ".join(json.dumps(each, ensure_ascii=False) for each in choice)}
    if grammar := form.get("grammar"):
        return {"grammar": grammar}
    raise EngineError(
        "not_supported_by_model", "llama.cpp's server holds no text to a regex: use json, choice or grammar.", FINAL
    )


class Answer:
    """Reads the events of one answer, a chat's or a completion's, streamed or whole.

    Tool calls and reasoning become text, in the forms in which open models write them, and as which the service reads
    them: `choice` is the request's tool_choice. The text begins with `echoed`, which is no part of the answer, though
    its tokens come before those of the answer.
    """

    def __init__(self, max_tokens: int | None = None, choice: Any = None, echoed: str = "") -> None:
        self.finished = False
        self._choice = choice
        self._echoed = echoed
        self._most = None if max_tokens is None else max_tokens * _PARTS_PER_TOKEN + _MORE_PARTS
        self._prompt_tokens: int | None = None
        self._completion_tokens: int | None = None
        self._counted = 0
        self._cumulative = 0.0
        self._calls: dict[int, dict[str, str]] = {}
        self._thinking = False
        self._thought = False

    def chunk(self, event: Any) -> Chunk:
        """
        Raises:
            ValueError: the event has not the form of the API.
        """
        if not isinstance(event, dict) or not isinstance(event.get("choices") or [], list):
            raise ValueError("an event without choices")
        chunk = Chunk([], [])
        for choice in event.get("choices") or ():
            if not isinstance(choice, dict):
                raise ValueError("a choice that is no object")
            # One was asked for.
            if choice.get("index") in (0, None):
                self._add(chunk, self._without_prompt(choice))
        prompt, completion = usage_of(event)
        # Some servers tell it once, some with each event what it has come to.
        self._prompt_tokens = self._prompt_tokens if prompt is None else prompt
        self._completion_tokens = self._completion_tokens if completion is None else completion
        return chunk

    def last(self) -> Chunk:
        """The final chunk, with the server's own count of tokens in the place of ours."""
        left = 0 if self._completion_tokens is None else self._completion_tokens - self._counted
        return Chunk([], [], self._prompt_tokens, [left], final=True)

    def _without_prompt(self, choice: dict[str, Any]) -> dict[str, Any]:
        """
        Raises:
            EngineError: the server does not repeat the prompt, and so tells nothing of its tokens.
        """
        text = text_of(choice.get("text"))
        if not self._echoed or not (text or choice.get("finish_reason")):
            return choice
        known = text[: len(self._echoed)]
        if not known or not self._echoed.startswith(known) or _logprobs(choice.get("logprobs")) is None:
            raise no_prompt_logprobs("This server")
        self._echoed = self._echoed[len(known) :]
        return choice | {"text": text[len(known) :]}

    def _add(self, chunk: Chunk, choice: dict[str, Any]) -> None:
        part = choice.get("delta") or choice.get("message") or {}
        if not isinstance(part, dict):
            raise ValueError("a delta that is no object")
        text = self._thoughts(text_of(part.get("reasoning_content") or part.get("reasoning")))
        text += self._said(text_of(choice.get("text")) + text_of(part.get("content")) + text_of(part.get("refusal")))
        chunk.size += self._collect(part.get("tool_calls"))
        reason = choice.get("finish_reason")
        if reason is not None:
            if not isinstance(reason, str):
                raise ValueError("a finish_reason that is no text")
            self.finished = True
            text += self._end()
            reason = _ENDS.get(reason, reason)
        logprobs = _logprobs(choice.get("logprobs"))
        if not text and reason is None and not logprobs:
            return
        chunk.texts.append(text)
        chunk.finish_reasons.append(reason)
        if text or chunk.size:
            # Until the server tells more, a part counts as a token.
            self._counted += 1
            if self._most is not None and self._counted > self._most:
                raise ValueError("it goes on beyond the tokens that were asked for")
            chunk.completion_tokens = [1]
        if logprobs:
            self._cumulative += sum(likelihood_of(token) for token in logprobs)
            chunk.logprobs.append(logprobs)
            chunk.cumulative_logprobs.append(self._cumulative)
        chunk.size += len(text) + size_of(logprobs or ())

    def _thoughts(self, text: str) -> str:
        if not text:
            return ""
        start, self._thinking = "" if self._thinking else f"{THINK}\n", True
        return start + text

    def _said(self, text: str) -> str:
        if not text or not self._thinking:
            return text
        self._thinking = False
        return f"\n{THINK_END}\n\n{text}"

    def _collect(self, calls: Any) -> int:
        """Adds parts of tool calls; returns their length."""
        size = 0
        for place, call in enumerate(calls or ()):
            function = call.get("function") if isinstance(call, dict) else None
            if not isinstance(function, dict):
                raise ValueError("a tool call without a function")
            index = call.get("index", place)
            if not isinstance(index, int) or not 0 <= index < 1000:
                raise ValueError("a tool call out of order")
            known = self._calls.setdefault(index, {"name": "", "arguments": ""})
            arguments = function.get("arguments")
            if isinstance(arguments, dict):
                # As Ollama has them.
                arguments = json.dumps(arguments, ensure_ascii=False)
            known["name"] += text_of(function.get("name"))
            known["arguments"] += text_of(arguments)
            size += len(text_of(function.get("name"))) + len(text_of(arguments))
        return size

    def _end(self) -> str:
        text = f"\n{THINK_END}\n\n" if self._thinking else ""
        self._thinking = False
        calls = [(call["name"], call["arguments"] or "{}") for _, call in sorted(self._calls.items())]
        self._calls = {}
        if not calls:
            return text
        if isinstance(self._choice, dict):
            return text + calls[0][1]
        written = [f'{{"name": {json.dumps(name)}, "arguments": {arguments}}}' for name, arguments in calls]
        if self._choice == "required":
            return f"{text}[{', '.join(written)}]"
        return text + "".join(f"\n<tool_call>\n{call}\n</tool_call>" for call in written)


def usage_of(event: Mapping[str, Any]) -> tuple[int | None, int | None]:
    """Tokens of the prompt and of the answer; None for what is not told, or cannot be."""
    usage = event.get("usage")
    if not isinstance(usage, dict):
        return None, None
    return count_of(usage.get("prompt_tokens")), count_of(usage.get("completion_tokens"))


def _logprobs(given: Any) -> list[dict[str, Any]] | None:
    """The log probabilities of a chat, or of a completion in either of its forms, as the service keeps them."""
    if not isinstance(given, dict):
        return None
    if isinstance(content := given.get("content"), list):
        return [token_of(entry, entry.get("top_logprobs")) for entry in content if isinstance(entry, dict)]
    tokens, values, tops = (given.get(name) for name in ("tokens", "token_logprobs", "top_logprobs"))
    if not isinstance(tokens, list) or not isinstance(values, list):
        return None
    tops = tops if isinstance(tops, list) else [None] * len(tokens)
    return [
        token_of({"token": token, "logprob": value}, [{"token": t, "logprob": v} for t, v in (top or {}).items()])
        for token, value, top in zip(tokens, values, tops, strict=False)
        if isinstance(top or {}, dict)
    ]


def vectors_of(answer: Any, count: int) -> tuple[list[str], int | None]:
    """A vector for each of `count` texts, as base64 of little-endian float32, and the tokens of the texts.

    Raises:
        ValueError: the answer holds something else.
    """
    data = answer.get("data") if isinstance(answer, dict) else None
    if not isinstance(data, list) or len(data) != count or not all(isinstance(each, dict) for each in data):
        raise ValueError(f"not one vector for each of {count} texts")
    if all(isinstance(each.get("index"), int) for each in data):
        data = sorted(data, key=lambda each: each["index"])
    vectors = [_vector(each.get("embedding")) for each in data]
    if len({vector.size for vector in vectors}) != 1:
        raise ValueError("vectors of different sizes")
    return [base64.b64encode(vector.tobytes()).decode() for vector in vectors], usage_of(answer)[0]


def _vector(given: Any) -> np.ndarray[Any, np.dtype[np.float32]]:
    try:
        if isinstance(given, str):
            vector = np.frombuffer(base64.b64decode(given, validate=True), dtype="<f4")
        else:
            vector = np.asarray(given, dtype="<f4")
    except (binascii.Error, TypeError, OverflowError) as error:
        raise ValueError(str(error)) from None
    if vector.ndim != 1 or not vector.size or not np.isfinite(vector).all():
        raise ValueError("a vector that is none")
    return vector
