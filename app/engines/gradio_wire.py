"""A Gradio app's endpoints as it describes them, and what goes in and comes out: pure, no I/O."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from app.engines.base import FINAL, EngineError, Request
from app.engines.http_faults import classify_in_stream

# h2oGPT's endpoint, whose one text is a Python dict of arguments, as is its answer.
H2OGPT = "submit_nochat_api"
# Gradio's names for what has another one here.
_SAME = {"max_new_tokens": "max_tokens", "min_new_tokens": "min_tokens", "system_message": "system_prompt"}
_H2OGPT_NAMES = {"max_tokens": "max_new_tokens", "min_tokens": "min_new_tokens"} | {
    name: name for name in ("temperature", "top_p", "top_k", "repetition_penalty", "seed")
}
SYSTEM = "system_prompt"
MAX_NAME = 255
_ROLES = {"user": "User", "assistant": "Assistant"}


@dataclass(frozen=True, slots=True)
class Parameter:
    """One input of an endpoint; `names` are those of the function's argument and of the field on the page."""

    names: tuple[str, ...]
    is_text: bool
    required: bool
    default: Any


@dataclass(frozen=True, slots=True)
class AppEndpoint:
    """A named function of the app, called with one value for each input; None stands for a state of the session."""

    name: str
    number: int
    inputs: tuple[Parameter | None, ...]

    def data(self, request: Request) -> list[Any]:
        """The values of the inputs.

        Raises:
            EngineError: the request asks for what no app can be told.
        """
        chat = _Chat.of(request)
        parameters = {name: value for name, value in request.parameters.items() if value is not None}
        if self.name == H2OGPT:
            prompt = repr(_h2ogpt_arguments(chat, parameters))
        else:
            takes_system = any(SYSTEM in each.names for each in self.inputs if each is not None)
            if takes_system and chat.system:
                parameters[SYSTEM] = chat.system
            prompt = chat.as_text(with_system=not takes_system)
        place = _prompt_of(self.inputs)
        return [prompt if each is place else None if each is None else _value(each, parameters) for each in self.inputs]

    def sent(self, data: list[Any]) -> dict[str, Any]:
        """What of the values is no text: the parameters."""
        given = ((each, value) for each, value in zip(self.inputs, data, strict=True) if each is not None)
        return {each.names[0]: value for each, value in given if not each.is_text and value is not None and each.names}

    def text(self, data: Any) -> str:
        """The text of the first output.

        Raises:
            ValueError: there is none.
            EngineError: h2oGPT says in its answer that it failed.
        """
        if not isinstance(data, list) or not data:
            raise ValueError("an answer without outputs")
        if self.name == H2OGPT:
            return _h2ogpt_text(data[0])
        if data[0] is None:
            return ""
        return data[0] if isinstance(data[0], str) else json.dumps(data[0], ensure_ascii=False)


def endpoints_of(config: Any, info: Any) -> dict[str, AppEndpoint]:
    """By name, those that take one text and answer with a text; other inputs need a default.

    `config` is what the app answers at /config, `info` at /info.

    Raises:
        ValueError: they are not what an app answers.
    """
    try:
        components = {component["id"]: component for component in config["components"]}
        functions = {
            function["api_name"]: (function.get("id", place), [components[id_] for id_ in function["inputs"]])
            for place, function in enumerate(config["dependencies"])
            if function.get("api_name")
        }
        described = {path.removeprefix("/"): found for path, found in info["named_endpoints"].items()}
        known = [
            _endpoint(name, *functions[name], found["parameters"], found["returns"])
            for name, found in described.items()
            if name in functions and len(name) <= MAX_NAME and "/" not in name
        ]
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"it does not describe its endpoints: {type(error).__name__}") from None
    return {endpoint.name: endpoint for endpoint in known if endpoint is not None}


def _endpoint(
    name: str, number: int, components: Sequence[Mapping[str, Any]], parameters: Sequence[Any], returns: Sequence[Any]
) -> AppEndpoint | None:
    if not returns or not _is_text(returns[0]["type"], also_any=True):
        return None
    shown = [component["type"] != "state" and not component.get("skip_api") for component in components]
    if sum(shown) != len(parameters):
        return None
    described = (_parameter(parameter) for parameter in parameters)
    inputs = tuple(next(described) if is_shown else None for is_shown in shown)
    required = [each for each in inputs if each is not None and each.required]
    if not any(each is not None and each.is_text for each in inputs) or required not in ([], [_prompt_of(inputs)]):
        # It needs more than a text.
        return None
    return AppEndpoint(name, int(number), inputs)


def _parameter(found: Mapping[str, Any]) -> Parameter:
    names = dict.fromkeys(_plain(str(found.get(key) or "")) for key in ("parameter_name", "label"))
    return Parameter(
        tuple(_SAME.get(name, name) for name in names),
        _is_text(found["type"]),
        not found.get("parameter_has_default"),
        found.get("parameter_default"),
    )


def _prompt_of(inputs: Sequence[Parameter | None]) -> Parameter:
    """The first text that has to be given, else the first one that may be."""
    texts = [each for each in inputs if each is not None and each.is_text]
    return next((each for each in texts if each.required), texts[0])


def _is_text(type_: Mapping[str, Any], *, also_any: bool = False) -> bool:
    """Of a JSON schema; a choice of some texts is none."""
    kind = type_.get("type")
    return (kind == "string" and "enum" not in type_) or (also_any and (kind == {} or not type_))


def _plain(name: str) -> str:
    return re.sub(r"\W+", "_", name.lower()).strip("_")


def _value(parameter: Parameter, parameters: Mapping[str, Any]) -> Any:
    return next((parameters[name] for name in parameter.names if name in parameters), parameter.default)


@dataclass(frozen=True, slots=True)
class _Chat:
    """What is said before, by user and assistant in turn, and what the user says now."""

    system: str
    turns: list[tuple[str, str]]

    @classmethod
    def of(cls, request: Request) -> _Chat:
        asked = request.asked or {}
        wants = [name for name in ("structured_outputs", "logprobs", "lora_name") if request.parameters.get(name)]
        wants += ["prompt_logprobs"] if request.parameters.get("prompt_logprobs") is not None else []
        wants += ["tools"] if asked.get("tools") and asked.get("tool_choice") != "none" else []
        if wants:
            raise EngineError("not_supported_by_model", f"A Gradio app takes texts only, no {', '.join(wants)}.", FINAL)
        if request.messages is None:
            return cls("", [("user", request.prompt)])
        system: list[str] = []
        turns: list[tuple[str, str]] = []
        for message in request.messages:
            role, text = message.get("role"), _text_of(message)
            if role in ("system", "developer"):
                system.append(text)
            elif turns and turns[-1][0] == role:
                turns[-1] = (role, f"{turns[-1][1]}\n\n{text}")
            else:
                turns.append((str(role), text))
        if any(role not in _ROLES for role, _ in turns):
            raise EngineError("not_supported_by_model", "A Gradio app takes no results of tools.", FINAL)
        if not turns or turns[-1][0] != "user":
            raise EngineError("not_supported_by_model", "For a Gradio app, a chat ends with a user's message.", FINAL)
        return cls("\n\n".join(system), turns)

    def as_text(self, *, with_system: bool) -> str:
        """One text of it all: the user's alone where nothing else was said."""
        said = [self.turns[0][1]] if len(self.turns) == 1 else [f"{_ROLES[role]}: {text}" for role, text in self.turns]
        return "\n\n".join(([self.system] if with_system and self.system else []) + said)

    def before(self) -> list[tuple[str | None, str | None]]:
        """What was said before, in pairs of user and assistant."""
        pairs: list[tuple[str | None, str | None]] = []
        for role, text in self.turns[:-1]:
            if role == "user":
                pairs.append((text, None))
            elif pairs:
                pairs[-1] = (pairs[-1][0], text)
            else:
                pairs.append((None, text))
        return pairs


def _text_of(message: Mapping[str, Any]) -> str:
    content = message.get("content") or ""
    if isinstance(content, str):
        return content
    parts = [part if isinstance(part, dict) else {} for part in content]
    if any(part.get("type") not in ("text", "input_text", "output_text") for part in parts):
        raise EngineError("not_supported_by_model", "A Gradio app takes texts only, no images or files.", FINAL)
    return "\n".join(str(part.get("text") or "") for part in parts)


def _h2ogpt_arguments(chat: _Chat, parameters: Mapping[str, Any]) -> dict[str, Any]:
    arguments: dict[str, Any] = {"instruction_nochat": chat.turns[-1][1], "stream_output": True}
    arguments |= {theirs: parameters[ours] for ours, theirs in _H2OGPT_NAMES.items() if ours in parameters}
    if "temperature" in parameters:
        arguments["do_sample"] = parameters["temperature"] > 0
    if chat.system:
        arguments["system_prompt"] = chat.system
    if before := chat.before():
        arguments["chat_conversation"] = before
    return arguments


def _h2ogpt_text(output: Any) -> str:
    try:
        answer = ast.literal_eval(output)
        response, error = answer["response"], answer.get("error")
    except (SyntaxError, TypeError, KeyError, AttributeError, ValueError, MemoryError, RecursionError):
        raise ValueError("it is no answer of h2oGPT") from None
    if error and not response:
        raise app_error(error)
    if not isinstance(response, str):
        raise ValueError("it is no answer of h2oGPT")
    return response


def app_error(said: Any) -> EngineError:
    """What the app's function raised, in its own words where it shows them."""
    if isinstance(said, str) and said.strip():
        return classify_in_stream({"message": said.strip().strip("'")})
    return classify_in_stream({"message": "the app's function failed; it shows the reason only with show_error=True"})
