"""Files of YAML that people write: what is wrong in one is said by line and key."""

from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError


class UnusableFile(Exception):
    """Shown to the user as it stands."""


class _Loader(yaml.SafeLoader):
    """YAML takes the last of two equal keys without a word."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if key.value in seen:
                raise yaml.MarkedYAMLError(problem=f"{key.value} is there twice", problem_mark=key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def read(path: Path) -> Any:
    """What the file holds; {} where it is empty.

    Raises:
        UnusableFile: it is missing, no text, or not YAML.
    """
    try:
        document = yaml.load(path.read_text(encoding="utf-8"), _Loader)  # noqa: S506 - a SafeLoader
    except UnicodeDecodeError:
        raise UnusableFile(f"{path.name} is not UTF-8.") from None
    except OSError as error:
        raise UnusableFile(f"The instance definition {path.name} cannot be read: {error.strerror}.") from None
    except yaml.YAMLError as error:
        raise UnusableFile(f"{path.name} is not YAML: {_first_line(error)}.") from None
    return {} if document is None else document


def problems(error: ValidationError) -> str:
    """A line for each key."""
    return "\n".join(f"  {_key(each['loc'])}: {_reason(each)}" for each in error.errors(include_url=False))


REASONS = {
    "too_short": "must hold at least one",
    "missing": "is missing",
    "tuple_type": "must be a list, such as [a, b]",
    "dict_type": "must hold names with their values, indented below it",
    "model_type": "must hold keys with their values, indented below it",
    "string_type": "must be text: put it in quotes",
    "finite_number": "must be a number",
}


def _first_line(error: yaml.YAMLError) -> str:
    mark = getattr(error, "problem_mark", None)
    problem = getattr(error, "problem", None) or "it cannot be read"
    return f"line {mark.line + 1}: {problem}" if mark else str(problem)


def _key(location: tuple[int | str, ...]) -> str:
    return ".".join(str(part) for part in location if part != "[key]") or "the file"


def _reason(problem: Any) -> str:
    if problem["type"] == "extra_forbidden":
        return "there is no such key; check its spelling"
    if problem["type"] in REASONS:
        return REASONS[problem["type"]]
    if problem["type"] == "value_error":
        return str(problem["ctx"]["error"])
    message = str(problem["msg"])
    return message[0].lower() + message[1:]
