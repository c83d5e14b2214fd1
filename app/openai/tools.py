"""Tools: what the model is told of them, how it is made to call them, and the calls in what it wrote."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field

from app.errors import invalid
from app.openai.requests import checked_at, unsupported
from app.prompts.arguments import ToolCall
from app.prompts.toolcalls import call_id

MOST_TOOLS = 128


class FunctionTool(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]{1,128}$")]
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    type: Literal["function"] = Field(description="custom tools are not supported")
    function: FunctionTool


class NamedChoice(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    class Named(BaseModel):
        model_config = ConfigDict(extra="forbid", strict=True)

        name: str

    type: Literal["function"]
    function: Named


class ToolUse:
    """The tools of one request. `mode` is none, auto, required, or named for the function `name`."""

    def __init__(self, request: Mapping[str, Any]) -> None:
        """Takes tools, tool_choice and parallel_tool_calls of a request, as it came or as it was stored.

        Raises:
            InvalidRequest, UnsupportedParameter: naming the parameter.
        """
        tools = request.get("tools") or []
        if len(tools) > MOST_TOOLS:
            raise invalid("tools", f"takes at most {MOST_TOOLS} tools")
        self.tools = tools
        self.functions = {each["function"]["name"]: each["function"] for each in tools}
        if len(self.functions) < len(tools):
            raise invalid("tools", "two of them have the same name")
        self.one = request.get("parallel_tool_calls") is False
        self.name = ""
        choice = request.get("tool_choice") or ("auto" if tools else "none")
        if isinstance(choice, str):
            if choice not in ("none", "auto", "required"):
                raise invalid("tool_choice", "must be none, auto, required, or name a function")
            self.mode = choice
        elif choice.get("type") == "allowed_tools":
            raise unsupported("tool_choice", "allowed_tools is not supported; send only the tools that are allowed")
        else:
            self.mode, self.name = "named", checked_at(NamedChoice, choice, "tool_choice").function.name
        if self.mode != "none" and not tools:
            if self.mode != "auto":
                raise invalid("tool_choice", "needs tools")
            self.mode = "none"
        if self.name and self.name not in self.functions:
            raise invalid("tool_choice", f"tools has no function named {self.name[:128]!r}")

    @property
    def parsed(self) -> bool:
        """Whether calls are looked for in the text."""
        return self.mode == "auto"

    @property
    def forced(self) -> bool:
        """Whether the text is held to the schema of calls, and nothing else is in it."""
        return self.mode in ("required", "named")

    def for_template(self) -> list[dict[str, Any]] | None:
        return self.tools if self.mode != "none" else None

    def schema(self, form: Mapping[str, Any] | None = None) -> dict[str, Any] | None:
        """The JSON schema that makes the model call; None where it is free not to.

        With a `form`, which what it says otherwise has to keep to, a model that is free has the choice of both.
        """
        if self.mode == "named":
            return _schema_of(self.functions[self.name])
        if self.mode == "none" or (self.mode == "auto" and form is None):
            return form if form is None else dict(form)
        definitions: dict[str, Any] = {}
        calls = []
        for name, function in self.functions.items():
            parameters = dict(_schema_of(function))
            shared = parameters.pop("$defs", None) or {}
            if not isinstance(shared, dict):
                raise invalid("tools", f"$defs of the function {name} must be an object")
            _add_definitions(definitions, shared, "two functions define")
            calls.append(
                {
                    "type": "object",
                    "properties": {"name": {"type": "string", "enum": [name]}, "parameters": parameters},
                    "required": ["name", "parameters"],
                }
            )
        schema: dict[str, Any] = {"type": "array", "minItems": 1, "items": {"anyOf": calls}}
        if self.one:
            schema["maxItems"] = 1
        if self.mode == "auto":
            answer = dict(form or {})
            shared = answer.pop("$defs", None) or {}
            if isinstance(shared, dict):
                _add_definitions(definitions, shared, "response_format and a function define")
            schema = {"anyOf": [schema, answer]}
        return schema | ({"$defs": definitions} if definitions else {})

    def finish_reason(self, reason: str, called: object) -> str:
        """OpenAI says `stop` for a function that was named, and `length` wins."""
        return "tool_calls" if called and self.mode != "named" and reason == "stop" else reason


def _add_definitions(definitions: dict[str, Any], more: Mapping[str, Any], who: str) -> None:
    for key, value in more.items():
        if definitions.setdefault(key, value) != value:
            raise invalid("tools", f"{who} $defs.{key} differently; rename one")


def _schema_of(function: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = function.get("parameters") or {"type": "object", "properties": {}}
    return found


def rendered(calls: list[ToolCall], result_id: UUID, choice: int) -> list[dict[str, Any]]:
    """The `tool_calls` of a message."""
    return [
        {
            "id": call_id(result_id.hex, choice, number),
            "type": "function",
            "function": {"name": call.name, "arguments": call.arguments},
        }
        for number, call in enumerate(calls)
    ]
