"""Counts what the queue's statements did, from the rows they return: the metrics agree with the tables."""

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from app.queue.ticket import Status
from app.telemetry.metrics import (
    ATTEMPTS_RETURNED,
    COST,
    E2E_SECONDS,
    GENERATION_TOKENS,
    GPU_SECONDS,
    PROMPT_TOKENS,
    QUEUE_SECONDS,
    SETTLED,
    of_model,
)

Rows = Iterable[Mapping[str, Any]]


def count_claims(rows: Rows) -> None:
    """Takes `model`, `age` in seconds, and whether it is the `first_claim` of the ticket."""
    for row in rows:
        if row["first_claim"]:
            of_model(QUEUE_SECONDS, row["model"]).observe(row["age"])


def count_final(rows: Rows) -> None:
    """Takes `model`, `status`, `error_code` and `seconds` since the submit; tokens and cost where there are any.

    A row that is still pending counts as nothing.
    """
    ended: Counter[tuple[str, str, str]] = Counter()
    spent: Counter[tuple[str, str]] = Counter()
    for row in rows:
        model, status = row["model"], row["status"]
        if status == Status.PENDING:
            continue
        ended[model, status, row["error_code"] or ""] += 1
        of_model(E2E_SECONDS, model, status).observe(row["seconds"])
        _add(spent, model, row)
    for labels, count in ended.items():
        of_model(SETTLED, *labels).inc(count)
    _count_spent(spent)


def count_returned(rows: Rows) -> None:
    """Takes `model`, `error_code`, `gpu_seconds` and `cost` of attempts that go back into the queue."""
    spent: Counter[tuple[str, str]] = Counter()
    for row in rows:
        model = row["model"]
        of_model(ATTEMPTS_RETURNED, model, row["error_code"] or "").inc()
        _add(spent, model, row)
    _count_spent(spent)


_SPENT = {
    "prompt_tokens": PROMPT_TOKENS,
    "completion_tokens": GENERATION_TOKENS,
    "gpu_seconds": GPU_SECONDS,
    "cost": COST,
}


def _add(spent: Counter[tuple[str, str]], model: str, row: Mapping[str, Any]) -> None:
    for column in _SPENT:
        if value := row.get(column):
            spent[column, model] += value


def _count_spent(spent: Counter[tuple[str, str]]) -> None:
    for (column, model), value in spent.items():
        of_model(_SPENT[column], model).inc(value)
