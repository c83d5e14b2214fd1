"""What a ticket asks of an engine, one module each; pure, no I/O."""

from collections.abc import Mapping
from typing import Any


def task_of(parameters: Mapping[str, Any]) -> str:
    """Which task an engine's parameters belong to: those of generations do not say."""
    return str(parameters.get("task", "generate"))
