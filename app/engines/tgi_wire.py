"""Requests and answers as Text Generation Inference has them: pure, no I/O."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from app.engines.base import FINAL, RETRY, EngineError, Request, no_prompt_logprobs
from app.engines.http_answers import count_of, likelihood_of, size_of, text_of, token_of
from app.engines.http_faults import classify_status
from app.tasks.chunks import Chunk

_SAME = ("repetition_penalty", "frequency_penalty", "seed", "stop")
_RENAMED = {"max_tokens": "max_new_tokens", "lora_name": "adapter_id"}
# What it has no words for, and the values at which each of them changes nothing.
_UNKNOWN: dict[str, tuple[Any, ...]] = {
    "min_p": (0,),
    "min_tokens": (0,),
    "presence_penalty": (0,),
    "stop_token_ids": ([],),
    "bad_words": ([],),
    "allowed_token_ids": (),
    "ignore_eos": (False,),
    "skip_special_tokens": (True,),
    "spaces_between_special_tokens": (True,),
}
# Below this an engine takes the likeliest token, which TGI does where it is not asked to sample.
_GREEDY = 1e-5
_ENDS = {"eos_token": "stop", "stop_sequence": "stop"}
_INCOMPLETE = ("incomplete_generation", "incomplete_generation_stream")
# The status that each error of a stream would have had as an answer.
_STATUSES = {"validation": 422, "overloaded": 429, "healthcheck": 503, "generation": 424}


def generate_body(request: Request) -> dict[str, Any]:
    """
    Raises:
        EngineError: it asks for what TGI has no words for.
    """
    given = {name: value for name, value in request.parameters.items() if value is not None}
    for name, harmless in _UNKNOWN.items():
        if name in given and given[name] not in harmless:
            raise _refused(f"has no {name}: leave it out")
    if given.get("seed", 0) < 0:
        raise _refused("takes no seed below 0")
    asked: dict[str, Any] = {name: given[name] for name in _SAME if name in given}
    asked |= {theirs: given[ours] for ours, theirs in _RENAMED.items() if ours in given}
    if isinstance(asked.get("stop"), str):
        asked["stop"] = [asked["stop"]]
    temperature = given.get("temperature", 1.0)
    asked["do_sample"] = temperature >= _GREEDY
    if asked["do_sample"]:
        asked["temperature"] = temperature
        # It refuses values at which these change nothing.
        if given.get("top_p", 1.0) < 1:
            asked["top_p"] = given["top_p"]
        if given.get("top_k", 0) > 0:
            asked["top_k"] = given["top_k"]
    if given.get("prompt_logprobs") is not None:
        raise no_prompt_logprobs("This service's engine for Text Generation Inference")
    if given.get("logprobs"):
        asked["top_n_tokens"] = given["logprobs"]
    if form := given.get("structured_outputs"):
        asked["grammar"] = _grammar(form)
    return {"inputs": request.prompt, "parameters": asked | {"details": True}}


def _grammar(form: Mapping[str, Any]) -> dict[str, Any]:
    if form.get("json_object"):
        return {"type": "json", "value": {"type": "object"}}
    if (schema := form.get("json")) is not None:
        return {"type": "json", "value": schema}
    if choice := form.get("choice"):
        return {"type": "regex", "value": "|".join(map(re.escape, choice))}
    if regex := form.get("regex"):
        return {"type": "regex", "value": regex}
    raise _refused("takes no structured_outputs.grammar: use json, regex or choice")


def _refused(why: str) -> EngineError:
    return EngineError("not_supported_by_model", f"A server of the kind tgi {why}.", FINAL)


def model_of(info: Any) -> str:
    """The name of the one model of a server, by its /info.

    Raises:
        ValueError: it tells none.
    """
    name = info.get("model_id") if isinstance(info, dict) else None
    if not isinstance(name, str) or not name or len(name) > 255 or "\x00" in name:
        raise ValueError("it is no description of a TGI server")
    return name


class Answer:
    """Reads the events of one stream. A text that ends the generation is cut off, as for other engines."""

    def __init__(self, parameters: Mapping[str, Any]) -> None:
        self.finished = False
        self._stopped = False
        stop = parameters.get("stop") or ()
        shown = parameters.get("include_stop_str_in_output")
        self._stops = () if shown else (stop,) if isinstance(stop, str) else tuple(stop)
        self._max_tokens = parameters.get("max_tokens")
        self._logprobs = parameters.get("logprobs") is not None
        self._told = ""
        # The end of the text so far, where it may be the beginning of a text that ends the generation.
        self._held = ""
        self._counted = 0
        self._cumulative = 0.0

    def chunk(self, event: Any) -> Chunk:
        """
        Raises:
            ValueError: the event has not the form of TGI.
            EngineError: it is an error.
        """
        if not isinstance(event, dict):
            raise ValueError("an event that is no object")
        if event.get("error"):
            raise _stream_error(event)
        chunk = Chunk([], [])
        text = self._add(chunk, event)
        details = event.get("details")
        if isinstance(details, dict):
            self._end(chunk, text, event, details)
        elif self.finished:
            self._finish(chunk, text, "stop", None)
        elif text or chunk.logprobs:
            chunk.texts, chunk.finish_reasons = [text], [None]
        self._told += text
        chunk.size += sum(map(len, chunk.texts))
        return chunk

    def _add(self, chunk: Chunk, event: Mapping[str, Any]) -> str:
        """Reads an event's token; what can be told of the text with it."""
        token = event.get("token")
        if not isinstance(token, dict):
            raise ValueError("an event without a token")
        if token.get("special"):
            # The end of a text, and what else is not shown.
            return ""
        if self._stopped:
            # It goes on beyond a text that should have ended it.
            self.finished = True
            return ""
        self._counted += 1
        if self._max_tokens is not None and self._counted > self._max_tokens:
            raise ValueError("it goes on beyond the tokens that were asked for")
        chunk.completion_tokens = [1]
        if self._logprobs:
            known = token_of(_named(token), [_named(each) for each in _sorted(event.get("top_tokens"))])
            self._cumulative += likelihood_of(known)
            chunk.logprobs, chunk.cumulative_logprobs = [[known]], [self._cumulative]
            chunk.size += size_of([known])
        return self._without_stop(text_of(token.get("text")))

    def _without_stop(self, added: str) -> str:
        text = self._held + added
        self._held = ""
        places = [place for stop in self._stops if (place := text.find(stop)) >= 0]
        if places:
            self._stopped = True
            return text[: min(places)]
        held = max((_overlap(text, stop) for stop in self._stops), default=0)
        if held:
            text, self._held = text[:-held], text[-held:]
        return text

    def _end(self, chunk: Chunk, text: str, event: Mapping[str, Any], details: Mapping[str, Any]) -> None:
        reason = text_of(details.get("finish_reason")) or "stop"
        self.finished = True
        if not self._stopped:
            text += self._held
            # What the tokens' texts had not, such as the whole of a character.
            whole, told = text_of(event.get("generated_text")), self._told + text
            if whole.startswith(told):
                text += whole[len(told) :]
        total = count_of(details.get("generated_tokens"))
        if total is not None:
            chunk.completion_tokens = [total - self._counted + sum(chunk.completion_tokens)]
        self._finish(chunk, text, _ENDS.get(reason, reason), count_of(details.get("input_length")))

    @staticmethod
    def _finish(chunk: Chunk, text: str, reason: str, prompt_tokens: int | None) -> None:
        chunk.texts, chunk.finish_reasons = [text], [reason]
        chunk.prompt_tokens, chunk.final = prompt_tokens, True


def _overlap(text: str, stop: str) -> int:
    """How many characters at the end of a text are the beginning of another."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:n])), 0)


def _named(token: Any) -> dict[str, Any]:
    if not isinstance(token, dict):
        raise ValueError("a token that is no object")
    return {"id": token.get("id"), "token": token.get("text"), "logprob": token.get("logprob")}


def _sorted(tokens: Any) -> Sequence[Any]:
    if tokens is None:
        return ()
    if not isinstance(tokens, list):
        raise ValueError("top_tokens that are no list")
    return tokens


def _stream_error(event: Mapping[str, Any]) -> EngineError:
    kind, text = event.get("error_type"), event["error"]
    text = text if isinstance(text, str) else "no reason given"
    if kind in _INCOMPLETE:
        return incomplete()
    return classify_status(_STATUSES.get(kind, 500) if isinstance(kind, str) else 500, text)


def incomplete() -> EngineError:
    return EngineError("stream_ended", "The server ended the stream before the answer was complete.", RETRY)
