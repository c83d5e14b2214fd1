"""The spans of an attempt, by OpenTelemetry's conventions for generative AI; nothing where traces are off."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

from app.queue.ticket import Claim, Release, Settlement, Status
from app.telemetry import tracing

if TYPE_CHECKING:
    from opentelemetry.trace import Span

REQUESTED = {
    "max_tokens": "gen_ai.request.max_tokens",
    "temperature": "gen_ai.request.temperature",
    "top_p": "gen_ai.request.top_p",
    "n": "gen_ai.request.choice.count",
}


Ended = Callable[[Settlement | Release | None], None]
_UNTRACED: AbstractContextManager[Ended] = nullcontext(lambda _end: None)
_NO_SPAN: AbstractContextManager[None] = nullcontext()


def attempt_span(claim: Claim) -> AbstractContextManager[Ended]:
    """Around an attempt, in the trace of the request that submitted the ticket; yields what takes its end.

    A ticket without one, as a line of a batch is, begins a trace of its own. Later attempts are beside the first.
    """
    # As this is around every ticket, nothing is made ready for traces that are off.
    return _attempt_span(claim) if tracing.is_on() else _UNTRACED


@contextmanager
def _attempt_span(claim: Claim) -> Iterator[Ended]:
    attributes = {"gen_ai.request.model": claim.model, "tickets.result_id": str(claim.id)}
    if claim.trace_parent is not None and claim.queued_seconds is not None:
        now = time.time()
        tracing.past_span(f"queue {claim.model}", attributes, claim.trace_parent, now - claim.queued_seconds, now)
    with tracing.span(
        f"attempt {claim.model}",
        "consumer",
        attributes | {"tickets.attempt": claim.attempt},
        parent=claim.trace_parent,
        root=True,
    ) as span:
        yield lambda end: None if span is None else _ended(span, end)


def _ended(span: Span, end: Settlement | Release | None) -> None:
    span.add_event("end")
    if end is None:
        span.set_attribute("tickets.outcome", "lease_lost")
        tracing.failed(span, "lease_lost", "The lease was lost.")
        return
    span.set_attribute("tickets.outcome", end.outcome.value)
    if end.cost is not None:
        span.set_attribute("tickets.cost_dollars", end.cost)
    if isinstance(end, Settlement) and end.status is Status.COMPLETED:
        _used(span, end.answer.prompt_tokens, end.answer.completion_tokens)
        if end.answer.finish_reason is not None:
            span.set_attribute("gen_ai.response.finish_reasons", [end.answer.finish_reason])
    elif end.error_code is not None:
        tracing.failed(span, end.error_code, end.error_message or "")


def _used(span: Span, prompt: int | None, completion: int | None) -> None:
    for name, tokens in (("gen_ai.usage.input_tokens", prompt), ("gen_ai.usage.output_tokens", completion)):
        if tokens is not None:
            span.set_attribute(name, tokens)


def generation_span(
    model: str, server: str, parameters: dict[str, Any], task: str
) -> AbstractContextManager[Span | None]:
    """Around one request to an engine, which is told of it."""
    if not tracing.is_on():
        return _NO_SPAN
    operation = "embeddings" if task == "embed" else "text_completion"
    address, _, port = server.rpartition(":")
    attributes: dict[str, Any] = {
        "gen_ai.operation.name": operation,
        "gen_ai.request.model": model,
        "server.address": address,
    }
    if port.isdigit():
        attributes["server.port"] = int(port)
    attributes |= {name: parameters[key] for key, name in REQUESTED.items() if parameters.get(key) is not None}
    return tracing.span(f"{operation} {model}", "client", attributes)
