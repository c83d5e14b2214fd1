"""How families of models write what is no plain text, as data: tool calls, and the reasoning before an answer.

A model's `1/parsers.json` names one of each, by the names that vLLM's --tool-call-parser and --reasoning-parser have:
{"tool_calls": "hermes", "reasoning": "qwen3"}.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

# What a function may be called.
_NAME = r"[\w.-]{1,256}"
# {"name": "...", "arguments": up to where the arguments begin, or the end of a call without any.
_OBJECT = (
    r'\{\s*(?:"(?:type|id)"\s*:\s*"[^"\\]*"\s*,\s*){0,2}"name"\s*:\s*"(?P<name>(?:[^"\\]|\\.){1,256})"\s*'
    r'(?:,\s*"(?:arguments|parameters)"\s*:\s*(?=[{"])|(?P<none>\}))'
)


@dataclass(frozen=True, slots=True)
class Format:
    """One way of writing calls.

    `header` leads from behind the marker to the arguments and has the group `name`, or `bare` where that is not quoted.
    `between` is what may follow a call, beside space. `again` tells that another call may follow without a marker.
    Without a marker calls can only be at the very beginning, and only of functions that there are. With `pairs`, the
    arguments are not JSON but keys and values, up to the text `end`.
    """

    marker: str
    header: re.Pattern[str]
    between: tuple[str, ...] = ()
    again: bool = False
    pairs: re.Pattern[str] | None = None
    end: str = ""


HERMES = Format("<tool_call>", re.compile(r"\s*" + _OBJECT), ("}", "</tool_call>"))
# A list of objects, or the name before its arguments.
MISTRAL = Format(
    "[TOOL_CALLS]",
    re.compile(rf"\s*(?:(?:\[\s*)?{_OBJECT}|(?P<bare>{_NAME})\s*(?:\[CALL_ID\]\s*[\w-]*\s*)?\[ARGS\]\s*(?=\{{))"),
    ("}", "]", ","),
    again=True,
)
LLAMA_TAG = Format("<|python_tag|>", re.compile(r"\s*" + _OBJECT), ("}", ";"), again=True)
LLAMA = Format("", re.compile(_OBJECT), ("}", ";"), again=True)
DEEPSEEK = Format(
    "<｜tool▁calls▁begin｜>",
    re.compile(
        rf"\s*<｜tool▁call▁begin｜>\s*(?:function<｜tool▁sep｜>(?P<name>{_NAME})\s*```json\s*(?=\{{)"
        rf"|(?P<bare>{_NAME})<｜tool▁sep｜>\s*(?=\{{))"
    ),
    ("```", "<｜tool▁call▁end｜>", "<｜tool▁calls▁end｜>"),
    again=True,
)
KIMI = Format(
    "<|tool_calls_section_begin|>",
    re.compile(
        rf"\s*<\|tool_call_begin\|>\s*(?:functions\.)?(?P<bare>{_NAME})(?::\d+)?\s*<\|tool_call_argument_begin\|>\s*(?=\{{)"
    ),
    ("<|tool_call_end|>", "<|tool_calls_section_end|>"),
    again=True,
)
GPT_OSS = Format(
    "<|channel|>commentary to=",
    re.compile(rf"functions\.(?P<bare>{_NAME})\s*(?:<\|constrain\|>)?\s*(?:json)?\s*<\|message\|>\s*(?=\{{)"),
    ("<|call|>", "<|end|>"),
)
GLM = Format(
    "<tool_call>",
    re.compile(rf"\s*(?P<bare>{_NAME})\s*(?=<arg_key>|</tool_call>)"),
    pairs=re.compile(r"<arg_key>\s*(.*?)\s*</arg_key>\s*<arg_value>(.*?)</arg_value>", re.DOTALL),
    end="</tool_call>",
)
QWEN_CODER = Format(
    "<tool_call>",
    re.compile(rf"\s*<function=(?P<bare>{_NAME})>\s*(?=<parameter=|</function>)"),
    pairs=re.compile(r"<parameter=([^>]+)>\n?(.*?)\n?</parameter>", re.DOTALL),
    end="</tool_call>",
)
# What constrained text is: a list of calls, and nothing else.
LISTED = Format("", re.compile(r"(?:\[\s*)?" + _OBJECT), ("}", "]", ","), again=True)

# Where a model's folder names no family.
ANY = (HERMES, MISTRAL, LLAMA_TAG, LLAMA)
# Each with that of Hermes, in which servers that read the calls themselves hand them over here.
TOOL_CALLS: dict[str, tuple[Format, ...]] = {
    "hermes": (HERMES,),
    "mistral": (MISTRAL, HERMES),
    "llama3_json": (LLAMA_TAG, LLAMA, HERMES),
    "deepseek_v3": (DEEPSEEK, HERMES),
    "deepseek_v31": (DEEPSEEK, HERMES),
    "kimi_k2": (KIMI, HERMES),
    "glm45": (GLM, HERMES),
    "qwen3_coder": (QWEN_CODER, HERMES),
    "openai": (GPT_OSS, HERMES),
}


@dataclass(frozen=True, slots=True)
class Reasoning:
    """What stands around the reasoning, at the beginning alone or `anywhere`; what is `dropped` is no text."""

    start: str
    end: str
    anywhere: bool = False
    dropped: tuple[str, ...] = ()


_THINK = Reasoning("<think>", "</think>")
REASONING: dict[str, Reasoning] = {
    "deepseek_r1": _THINK,
    "deepseek_v3": _THINK,
    "glm45": _THINK,
    "qwen3": _THINK,
    "minimax_m2": _THINK,
    "mistral": Reasoning("[THINK]", "[/THINK]"),
    "seed_oss": Reasoning("<seed:think>", "</seed:think>"),
    "granite": Reasoning("Here is my thought process:", "Here is my response:"),
    "openai_gptoss": Reasoning(
        "<|channel|>analysis<|message|>",
        "<|end|>",
        anywhere=True,
        dropped=(
            "<|start|>assistant",
            "<|channel|>final<|message|>",
            "<|channel|>commentary<|message|>",
            "<|end|>",
            "<|return|>",
        ),
    ),
}
