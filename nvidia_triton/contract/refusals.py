"""Probes of every class of error that a request can meet.

Errors within a stream carry no code, so their texts decide what becomes of a ticket. Each probe therefore also asks the
service's own table how it would take the text that came.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from typing import Any

from app.engines.base import Disposition
from app.engines.triton.faults import classify_text
from nvidia_triton.contract.probe import PROMPT, Broken, Differs, Probe, Subject, first_line
from nvidia_triton.contract.texts import FIXED

STREAM = "Error generating stream: "
BAD_PARAMETER = re.escape(STREAM + "'NoneType' object has no attribute 'lora_name'")
CONSTRAINT = STREAM + r"(Grammar error|Invalid grammar specification|The provided JSON schema|Failed to transform)"
# More than any vocabulary, and more than any context.
NO_TOKEN = 99_999_999
ENDLESS = " a" * 300_000
FINAL, WAIT = Disposition.FINAL, Disposition.WAIT
OUTCOMES = {FINAL: "Fails the ticket at once", WAIT: "Lets the ticket wait", Disposition.RETRY: "Tries again"}


@dataclass(frozen=True)
class Refusal:
    """What is asked, the text that the vLLM backend refuses it with, and how the service has to take that.

    With `before`, the service refuses such a request itself and never sends it.
    """

    name: str
    text: str
    code: str = "invalid_parameters"
    disposition: Disposition = FINAL
    sampling: dict[str, Any] | str = field(default_factory=dict)
    prompt: str | bytes = PROMPT
    model: str = ""
    before: bool = False
    options: dict[str, Any] = field(default_factory=dict)

    def probe(self) -> Probe:
        service = "Refuses it before it is sent" if self.before else f"{OUTCOMES[self.disposition]}: {self.code}"
        return Probe(self.name, service, self.run, needed=not self.before)

    async def run(self, subject: Subject) -> str:
        return await refused(self, subject, self.prompt)


async def refused(wanted: Refusal, subject: Subject, prompt: str | bytes) -> str:
    pairs = subject.client.stream(
        wanted.model or subject.model, prompt, sampling=wanted.sampling or {"max_tokens": 4}, **wanted.options
    )
    errors = [str(error.message()) async for _, error in pairs if error is not None]
    if not errors:
        raise Differs("it is not refused")
    text = errors[-1]
    reading = classify_text(text)
    if not wanted.before and (reading.code, reading.disposition) != (wanted.code, wanted.disposition):
        outcome = OUTCOMES[reading.disposition].lower()
        raise Broken(f"the service does not know this text and {outcome}: {first_line(text)}")
    if not re.match(wanted.text, text):
        raise Differs(f"another text: {first_line(text)}")
    return first_line(text)


async def _at_the_limit(subject: Subject) -> str:
    """A prompt as long as the context is refused with a text of its own; its length is found by counting."""
    pairs = subject.client.stream(subject.model, ENDLESS, sampling={"max_tokens": 4})
    errors = [str(error.message()) async for _, error in pairs if error is not None]
    limit = re.search(r"maximum context length is (\d+) tokens", errors[-1] if errors else "")
    if limit is None:
        raise Differs("a prompt that is too long does not name the model's context")
    context, counted = int(limit[1]), {}
    for words in (16, 32):
        message = await subject.answer({"max_tokens": 1}, " a" * words)
        counted[words] = int(message.outputs["num_input_tokens"].item())
    if counted[32] - counted[16] != 16:
        raise Differs("the model's tokenizer does not make one token of one word, so the limit is not met exactly")
    wanted = Refusal("", STREAM + r"The decoder prompt \(length \d+\) plus the number of requested", "prompt_too_long")
    return await refused(wanted, subject, " a" * (context - counted[16] + 16))


async def _answers_still(subject: Subject) -> str:
    first, again = await subject.answer(FIXED), await subject.answer(FIXED)
    if first.text != again.text:
        raise Differs("two texts at temperature 0")
    return "answers as before"


def _constraint(**kind: Any) -> dict[str, Any]:
    return {"structured_outputs": json.dumps(kind), "max_tokens": 8}


_BAD = (
    Refusal("parameter out of range", BAD_PARAMETER, sampling={"temperature": -1}, before=True),
    Refusal("unknown parameter", BAD_PARAMETER, sampling={"no_such_key": 1}, before=True),
    Refusal(
        "parameters that are not JSON",
        r"Failed to process the request\(s\) for model '.*', message: JSONDecodeError: ",
        sampling="{",
        before=True,
    ),
    Refusal("logit_bias", re.escape(STREAM), sampling={"logit_bias": {"5": 1}}, before=True),
    Refusal(
        "too many logprobs",
        STREAM + "Requested sample logprobs of 999, which is greater than max allowed: ",
        sampling={"logprobs": 999},
    ),
    Refusal("grammar that cannot be compiled", CONSTRAINT, sampling=_constraint(grammar="root ::= (")),
    Refusal("regex that cannot be compiled", CONSTRAINT, sampling=_constraint(regex="(")),
    Refusal("schema that cannot be compiled", CONSTRAINT, sampling=_constraint(json={"type": "nonsense"})),
    Refusal("$ref to nowhere", CONSTRAINT, sampling=_constraint(json={"$ref": "#/$defs/nowhere"})),
    Refusal(
        "stop token ids out of the vocabulary",
        STREAM + r"token_id\(s\) \[\d+\] in stop_token_ids contain out-of-vocab token ids",
        sampling={"stop_token_ids": [NO_TOKEN]},
    ),
    Refusal(
        "allowed token ids out of the vocabulary",
        STREAM + "allowed_token_ids contains out-of-vocab token id!",
        sampling={"allowed_token_ids": [NO_TOKEN]},
    ),
    Refusal("prompt too long", STREAM + "This model's maximum context length is", "prompt_too_long", prompt=ENDLESS),
    Refusal("prompt empty", re.escape(STREAM + "The decoder prompt cannot be empty"), "prompt_empty", prompt=""),
    Refusal("prompt not UTF-8", STREAM + "'utf-8' codec can't decode byte 0xff", "prompt_not_text", prompt=b"abc\xff"),
    Refusal(
        "streaming with the prompt in the output",
        STREAM + "When streaming, `exclude_input_in_output` = False is not allowed",
        before=True,
        options={"stream": True, "exclude": False},
    ),
    Refusal(
        "embedding asked of a text model",
        STREAM + r"Model .* does not support 'embed' request",
        "not_supported_by_model",
        options={"more": {"embedding_request": (b'{"input": "a"}', "BYTES")}},
    ),
    Refusal(
        "unknown LoRA adapter",
        r"LoRA feature is not enabled\.|LoRA no-such-adapter is not supported, we currently support \[",
        "lora_not_enabled",
        sampling={"lora_name": "no-such-adapter"},
    ),
    Refusal(
        "unknown model",
        "Request for unknown model: 'no-such-model' is not found",
        "model_unavailable",
        WAIT,
        model="no-such-model",
    ),
    Refusal(
        "unknown input",
        r".*unexpected inference input 'x' for model ",
        "model_contract",
        options={"more": {"x": (True, "BOOL")}},
    ),
)
PROBES = (
    *(each.probe() for each in _BAD),
    Probe("prompt exactly as long as the context", "Fails the ticket at once: prompt_too_long", _at_the_limit),
    Probe("a good request after all refusals", "Sends further tickets", _answers_still),
)
