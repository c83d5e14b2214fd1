"""Log lines: one an event, on stderr."""

from __future__ import annotations

import logging
import sys
from typing import Any


class FieldLogger:
    """A logger whose keyword arguments become `key=value` after the message."""

    def __init__(self, name: str) -> None:
        self._logger = logging.getLogger(f"tickets.{name}")

    def info(self, message: str, **fields: Any) -> None:
        self._log(logging.INFO, message, fields)

    def warning(self, message: str, **fields: Any) -> None:
        self._log(logging.WARNING, message, fields)

    def error(self, message: str, **fields: Any) -> None:
        self._log(logging.ERROR, message, fields)

    def exception(self, message: str, **fields: Any) -> None:
        self._log(logging.ERROR, message, fields, exc_info=True)

    def _log(self, level: int, message: str, fields: dict[str, Any], exc_info: bool = False) -> None:
        if self._logger.isEnabledFor(level):
            tail = "".join(f" {name}={_shown(value)}" for name, value in fields.items())
            self._logger.log(level, "%s%s", message, tail, exc_info=exc_info)


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.3g}"
    text = str(value)
    return repr(text) if " " in text or "\n" in text else text


def logger(name: str) -> FieldLogger:
    return FieldLogger(name)


def configure_logging(level: str) -> None:
    """One line an event on stderr."""
    log_to_stderr("tickets", level.upper())


def log_to_stderr(name: str, level: int | str) -> None:
    """Lines of a logger in the same form as all others."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s %(message)s"))
    logger_ = logging.getLogger(name)
    logger_.handlers[:] = [handler]
    logger_.setLevel(level)
    logger_.propagate = False
