"""Chat templates as Hugging Face ships them: `<model>/1/chat_template.jinja` in the model repository.

They are rendered as transformers renders them: sandboxed Jinja2 with trimmed blocks, loop controls, the functions
`raise_exception` and `strftime_now`, a `tojson` that escapes no HTML, and the tag `generation`.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, NoReturn

from jinja2 import Template, TemplateError, TemplateSyntaxError, nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from app.config import Settings
from app.errors import ChatTemplateBroken, ChatTemplateRefused, NoChatTemplate
from app.services.repository import ABSENT, VERSION, files_of, stamp_of

TEMPLATE_FILE = "chat_template.jinja"
TOKENIZER_FILE = "tokenizer_config.json"
# Beyond this many characters of messages, rendering leaves the event loop.
LONG_CHARS = 20_000
LONGEST_SECONDS = 5.0
MESSAGE_CHARS = 300
# What a template raises by itself, and what its expressions may run into.
REFUSALS = (TemplateError, TypeError, ValueError, LookupError, AttributeError, ArithmeticError, RecursionError)


class _Generation(Extension):
    """`{% generation %}` marks what an assistant said, for training; here it only passes through."""

    tags = {"generation"}  # noqa: RUF012 - as Jinja2 declares it

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True), lineno=line)


def _raise_exception(message: object) -> NoReturn:
    raise TemplateError(str(message))


def _strftime_now(pattern: str) -> str:
    return datetime.now().astimezone().strftime(pattern)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def environment() -> ImmutableSandboxedEnvironment:
    # The output is a prompt, not HTML.
    made = ImmutableSandboxedEnvironment(
        trim_blocks=True,
        lstrip_blocks=True,
        autoescape=False,
        extensions=["jinja2.ext.loopcontrols", _Generation],
    )
    made.filters["tojson"] = _to_json
    made.globals.update(raise_exception=_raise_exception, strftime_now=_strftime_now)
    return made


@dataclass(frozen=True, slots=True)
class _Loaded:
    """A compiled template, and the state of its files when it was read."""

    stamp: tuple[tuple[int, int], ...]
    template: Template
    special_tokens: dict[str, str]
    adds_bos: bool


class Templates:
    """The chat templates of all models; a file that changed is read again."""

    def __init__(self, settings: Settings) -> None:
        self._repository = Path(settings.model_repository)
        self._longest = settings.max_content_chars
        self._environment = environment()
        self._loaded: dict[str, _Loaded] = {}

    async def render(self, model: str, messages: list[dict[str, Any]], /, **variables: Any) -> str:
        """The prompt of a chat. `variables` are what else the template is given: tools, add_generation_prompt, ...

        Raises:
            NoChatTemplate: the model has none.
            ChatTemplateBroken: the file is not a template.
            ChatTemplateRefused: it does not take these messages, or makes too much of them.
        """
        loaded = self._load(model)
        values = loaded.special_tokens | variables | {"messages": messages}
        if _size(messages) + _size(variables) <= LONG_CHARS:
            return self._rendered(loaded, values)
        return await asyncio.to_thread(self._rendered, loaded, values)

    def first_token(self, model: str) -> str:
        """What the engine's tokenizer puts before each prompt by itself, as far as the model's folder tells."""
        try:
            loaded = self._load(model)
        except (NoChatTemplate, ChatTemplateBroken):
            return ""
        return loaded.special_tokens["bos_token"] if loaded.adds_bos else ""

    def _load(self, model: str) -> _Loaded:
        files = files_of(self._repository, model, f"{VERSION}/{TEMPLATE_FILE}", f"{VERSION}/{TOKENIZER_FILE}")
        if files is None:
            raise _missing(model)
        stamp = tuple(map(stamp_of, files))
        loaded = self._loaded.get(model)
        if loaded is not None and loaded.stamp == stamp:
            return loaded
        if stamp[0] == ABSENT:
            raise _missing(model)
        try:
            template = self._environment.from_string(files[0].read_text("utf-8"))
            config = json.loads(files[1].read_text("utf-8")) if stamp[1] != ABSENT else {}
            tokens = {name: _token(value) for name, value in config.items() if name.endswith("_token")}
        except TemplateSyntaxError as error:
            raise _broken(model, TEMPLATE_FILE, f"line {error.lineno}: {error.message}") from None
        except (OSError, ValueError, AttributeError) as error:
            raise _broken(model, f"{TEMPLATE_FILE} or {TOKENIZER_FILE}", type(error).__name__) from None
        special = {"bos_token": "", "eos_token": ""} | {name: text for name, text in tokens.items() if text is not None}
        loaded = _Loaded(stamp, template, special, config.get("add_bos_token", True) is not False)
        self._loaded[model] = loaded
        return loaded

    def _rendered(self, loaded: _Loaded, values: Mapping[str, Any]) -> str:
        parts: list[str] = []
        size = 0
        deadline = time.monotonic() + LONGEST_SECONDS
        try:
            for part in loaded.template.generate(values):
                parts.append(part)
                size += len(part)
                if size > self._longest:
                    raise ChatTemplateRefused(
                        f"The messages make a prompt of more than {self._longest:,} characters; send less, or raise "
                        "MAX_CONTENT_CHARS."
                    )
                if time.monotonic() > deadline:
                    raise ChatTemplateRefused(
                        f"The chat template did not finish with these messages within {LONGEST_SECONDS:g} seconds."
                    )
        except REFUSALS as error:
            reason = " ".join(str(error).split())[:MESSAGE_CHARS] or type(error).__name__
            raise ChatTemplateRefused(f"The model's chat template does not take this chat: {reason}") from None
        prompt = "".join(parts)
        # The engine's tokenizer begins each prompt with this token itself.
        if loaded.adds_bos and (bos := loaded.special_tokens["bos_token"]):
            prompt = prompt.removeprefix(bos)
        if not prompt:
            raise ChatTemplateRefused("The model's chat template makes an empty prompt of these messages.")
        return prompt


def _token(value: Any) -> str | None:
    found = value.get("content") if isinstance(value, dict) else value
    return found if isinstance(found, str) else None


def _size(value: Any) -> int:
    """Characters of all texts within."""
    if isinstance(value, str):
        return len(value)
    if isinstance(value, dict):
        return sum(map(_size, value.values()))
    return sum(map(_size, value)) if isinstance(value, list) else 0


def _missing(model: str) -> NoChatTemplate:
    return NoChatTemplate(
        f"The model {model!r} has no chat template: add {model}/{VERSION}/{TEMPLATE_FILE} to the model repository "
        "(MODEL_REPOSITORY), as it comes with the model, or send the prompt to /v1/completions."
    )


def _broken(model: str, file: str, reason: str) -> ChatTemplateBroken:
    return ChatTemplateBroken(
        f"{file} of the model {model!r} cannot be used: {reason}. The operator has to correct it."
    )
