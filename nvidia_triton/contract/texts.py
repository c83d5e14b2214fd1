"""Probes of what a request gets back: texts, tokens, ends, constraints."""

from __future__ import annotations

import json
import math
import re
from typing import Any

import numpy as np

from nvidia_triton.contract.probe import PROMPT, Broken, Differs, Probe, Subject
from nvidia_triton.contract.wire import Message

# The same text each time, and as long as was asked for.
FIXED = {"temperature": 0, "max_tokens": 16, "ignore_eos": True}


def tokens(messages: list[Message]) -> int:
    return sum(int(each.outputs["num_output_tokens"][0]) for each in messages)


def ending(message: Message) -> str:
    return message.strings("finish_reason")[0]


def joined(messages: list[Message], index: int = 0) -> str:
    return "".join(each.text[index] for each in messages)


async def _text(subject: Subject) -> str:
    # A sampled text may well end before its first word.
    message = await subject.answer(FIXED)
    if not message.text[0]:
        raise Broken("the text is empty")
    if ending(message) not in ("stop", "length"):
        raise Broken(f"the finish reason is {ending(message)!r}")
    return repr(message.text[0][:40])


async def _bare(subject: Subject) -> str:
    """Only a prompt, nothing else: the prompt is repeated and 16 tokens follow."""
    [message] = await subject.client.ask(subject.model, PROMPT, exclude=None, returned=("num_output_tokens",))
    if not message.text[0].startswith(PROMPT):
        raise Differs("the prompt is not repeated")
    count = tokens([message])
    if not 1 <= count <= 16:
        raise Differs(f"{count} tokens without max_tokens, not 16 at most")
    return f"the prompt and {count} tokens"


async def _streaming(subject: Subject) -> str:
    whole, messages = await subject.answer(FIXED), await subject.streamed(FIXED)
    if joined(messages) != whole.text[0]:
        raise Broken("streamed and unstreamed texts differ at temperature 0")
    if [each.final for each in messages] != [False] * (len(messages) - 1) + [True]:
        raise Broken("the final flag is not on the last message alone")
    if any(ending(each) != "None" for each in messages[:-1]) or ending(messages[-1]) != "length":
        raise Broken(f"the finish reasons are {[ending(each) for each in messages]}")
    if len(messages) < 2:
        raise Differs("all of the text came in one message")
    return f"{len(messages)} messages"


async def _counts(subject: Subject) -> str:
    whole, messages = await subject.answer(FIXED), await subject.streamed(FIXED)
    prompts = {int(each.outputs["num_input_tokens"].item()) for each in [whole, *messages]}
    if len(prompts) != 1 or 0 in prompts:
        raise Broken(f"the prompt's tokens are counted as {sorted(prompts)}")
    if tokens(messages) != tokens([whole]):
        raise Broken(f"{tokens(messages)} tokens streamed, {tokens([whole])} unstreamed")
    return f"{prompts.pop()} in, {tokens([whole])} out"


async def _max_tokens(subject: Subject) -> str:
    message = await subject.answer({"temperature": 0, "max_tokens": 7, "ignore_eos": True})
    if tokens([message]) != 7 or ending(message) != "length":
        raise Broken(f"{tokens([message])} tokens for max_tokens 7, finish reason {ending(message)!r}")
    return "7 of 7, length"


async def _min_tokens(subject: Subject) -> str:
    message = await subject.answer({"temperature": 0, "max_tokens": 12, "min_tokens": 12})
    if tokens([message]) != 12:
        raise Broken(f"{tokens([message])} tokens for min_tokens 12")
    return "12 of 12"


async def _seed(subject: Subject) -> str:
    async def text(seed: int) -> str:
        return (await subject.answer({**FIXED, "temperature": 1, "seed": seed})).text[0]

    first, again, other = await text(1), await text(1), await text(2)
    if first != again:
        raise Broken("the same seed gave two texts")
    if first == other:
        raise Broken("two seeds gave the same text")
    return "the same again, another with another seed"


async def _choices(subject: Subject) -> str:
    # Choices that stop at a comma end at different times, which is what goes wrong.
    sampling = {"n": 3, "seed": 7, "temperature": 0.8, "max_tokens": 40, "stop": [","]}
    whole = await subject.answer(sampling)
    if len(whole.text) != 3:
        raise Broken(f"{len(whole.text)} of 3 choices came back")
    messages = await subject.streamed(sampling)
    if any(len(each.text) != 3 for each in messages):
        raise Broken("streamed messages leave out choices that have ended, so texts mix")
    if [joined(messages, index) for index in range(3)] != whole.text:
        raise Broken("streamed and unstreamed choices differ")
    return "3 texts"


async def _stop(subject: Subject) -> str:
    whole = (await subject.answer(FIXED)).text[0]
    stop = whole[len(whole) // 2 :][:4]
    position = whole.find(stop)
    for messages in (
        [await subject.answer({**FIXED, "stop": [stop]})],
        await subject.streamed({**FIXED, "stop": [stop]}),
    ):
        if joined(messages) != whole[:position] or ending(messages[-1]) != "stop":
            raise Broken(f"{joined(messages)[-20:]!r} ({ending(messages[-1])}) came with stop {stop!r}")
    [kept] = [await subject.answer({**FIXED, "stop": stop, "include_stop_str_in_output": True})]
    if kept.text[0] != whole[: position + len(stop)]:
        raise Broken("include_stop_str_in_output did not keep the stop string")
    return f"ends before {stop!r}"


async def _logprobs(subject: Subject) -> str:
    sampling = {"temperature": 0, "logprobs": 2, "max_tokens": 6, "ignore_eos": True}
    message = await subject.answer(sampling)
    rows = json.loads(message.strings("logprobs")[0])
    if len(rows) != 6 or any(len(row) < 2 for row in rows):
        raise Broken(f"{len(rows)} tokens with {[len(row) for row in rows]} alternatives came for 6 with 2")
    chosen = [next(iter(row.values())) for row in rows]
    if not all({"logprob", "rank", "decoded_token"} <= set(each) for each in chosen):
        raise Broken(f"an alternative has the keys {sorted(chosen[0])}")
    total = sum(each["logprob"] for each in chosen)
    if not math.isclose(total, float(message.outputs["cumulative_logprob"][0]), rel_tol=1e-3, abs_tol=1e-3):
        raise Broken("cumulative_logprob is not the sum of the chosen tokens")
    for each in await subject.streamed(sampling):
        if len(json.loads(each.strings("logprobs")[0])) != tokens([each]):
            raise Broken("streamed logprobs do not come with their tokens")
    return "6 tokens, 2 alternatives, and their sum"


async def _no_logprobs(subject: Subject) -> str:
    message = await subject.answer(FIXED)
    if message.strings("logprobs") != ["null"] or not np.isnan(message.outputs["cumulative_logprob"]).all():
        raise Differs(f"{message.strings('logprobs')[0][:40]} came unasked")
    bare = await subject.client.ask(subject.model, PROMPT, returned=())
    if set(bare[0].outputs) != {"text_output"}:
        raise Differs(f"{sorted(bare[0].outputs)} came unasked")
    return "null; outputs that nobody asked for are absent"


def structured(kind: str, value: Any, pattern: str) -> Probe:
    """A constraint that every text has to keep, and the pattern by which it is checked."""

    async def run(subject: Subject) -> str:
        constraint = json.dumps({kind: value})
        message = await subject.answer({"temperature": 0, "max_tokens": 100, "structured_outputs": constraint})
        text = message.text[0]
        if not re.fullmatch(pattern, text, re.DOTALL):
            raise Broken("the text does not keep to it")
        return repr(text)

    return Probe(f"structured outputs: {kind}", "Passes it on", run)


ANSWER = {
    "type": "object",
    "properties": {"answer": {"enum": ["yes", "no"]}},
    "required": ["answer"],
    "additionalProperties": False,
}
PASSED_ON = "Passes it on"
PROBES = (
    Probe("text", "Asks without repeating the prompt", _text),
    Probe("prompt alone", "Never asks so: it always says what it wants back", _bare, needed=False),
    Probe("streaming", "Joins the messages; the last has the final flag", _streaming),
    Probe("token counts", "Adds them up; they are the ticket's usage", _counts),
    Probe("max_tokens", PASSED_ON, _max_tokens),
    Probe("min_tokens", PASSED_ON, _min_tokens),
    Probe("seed", PASSED_ON, _seed),
    Probe("n = 3 in one request", "Never asks so: one request for each choice", _choices, needed=False),
    Probe("stop", PASSED_ON, _stop),
    Probe("logprobs", "Passes it on and keeps which token was chosen", _logprobs),
    Probe("outputs nobody asked for", "Ignores them", _no_logprobs, needed=False),
    structured("json", ANSWER, r'\s*\{\s*"answer"\s*:\s*"(yes|no)"\s*\}\s*'),
    structured("choice", ["yes", "no"], "yes|no"),
    structured("regex", "[0-9]{4}-[0-9]{2}", "[0-9]{4}-[0-9]{2}"),
    structured("grammar", 'root ::= "yes" | "no"', "yes|no"),
)
