"""Logging and Prometheus metrics."""

from __future__ import annotations

import logging
import sys
from typing import Any

from prometheus_client import Counter, Gauge, Histogram

HTTP_SECONDS = Histogram(
    "tickets_http_request_seconds",
    "Time to answer an HTTP request, long-polls included",
    ("method", "route", "status"),
    buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 5, 15, 60),
)
SUBMITTED = Counter("tickets_submitted_total", "Results accepted by this process", ("model",))
SETTLED = Counter("tickets_settled_total", "Results settled by this process", ("model", "status", "code"))
ATTEMPTS_RETURNED = Counter(
    "tickets_attempts_returned_total", "Claims given back to the queue by this process", ("model", "code")
)
ATTEMPT_SECONDS = Histogram(
    "tickets_attempt_seconds",
    "Time from claim to the end of an attempt",
    ("model",),
    buckets=(0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 1800),
)
IN_FLIGHT = Gauge("tickets_in_flight", "Requests running on a Triton server", ("server",))
SERVER_UP = Gauge("tickets_triton_server_up", "1 while the server answers its probe", ("server",))
QUARANTINED = Gauge("tickets_model_quarantined", "1 while a model is set aside for not answering", ("server", "model"))
RELOADS = Counter(
    "tickets_model_reloads_total", "Dead models that this process loaded again", ("server", "model", "outcome")
)
WEBHOOKS = Counter("tickets_webhook_tries_total", "Tries to deliver a webhook by this process", ("outcome",))
STREAM_FOLLOWERS = Gauge("tickets_stream_followers", "Streams open in this process")
STREAM_EVENTS = Counter("tickets_stream_events_total", "Events of followed results stored by this process")
TASK_RESTARTS = Counter(
    "tickets_background_restarts_total", "Background tasks of this process that crashed and were restarted", ("task",)
)
LEASES_LOST = Counter("tickets_leases_lost_total", "Claims this process lost to a lease that ran out")


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
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s %(message)s"))
    root = logging.getLogger("tickets")
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    root.propagate = False
