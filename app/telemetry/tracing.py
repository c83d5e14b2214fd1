"""OpenTelemetry traces: off, and the SDK is not imported, unless OTEL_EXPORTER_OTLP_ENDPOINT says where they go.

Sampler, headers, names and batches follow the standard OTEL_* variables, which the SDK reads.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from app.telemetry.logs import log_to_stderr

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.trace import Span, SpanKind, Tracer

ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
# What is not yet sent at the end of a process is given this long.
STOP_SECONDS = 2.0

_provider: TracerProvider | None = None
_tracer: Tracer | None = None


def wanted(endpoint: str | None) -> bool:
    """Whether traces are sent: to `endpoint` or to one of the environment, unless a variable turns them off."""
    return (
        bool(endpoint or any(os.environ.get(name) for name in ENDPOINTS))
        and os.environ.get("OTEL_SDK_DISABLED", "").lower() != "true"
        and os.environ.get("OTEL_TRACES_EXPORTER", "otlp").lower() != "none"
    )


def start(service: str, endpoint: str | None) -> None:
    """Sends the spans of this process from a thread of its own; `service` names it where OTEL_SERVICE_NAME does not."""
    global _provider, _tracer
    if _provider is not None or not wanted(endpoint):
        return
    from opentelemetry import trace
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import OTELResourceDetector, Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    if endpoint:
        os.environ.setdefault(ENDPOINTS[0], endpoint)
    log_to_stderr("opentelemetry", logging.WARNING)
    defaults = {"service.name": service, "service.instance.id": f"{socket.gethostname()}:{os.getpid()}"}
    declared = OTELResourceDetector().detect().attributes
    resource = Resource.create({name: value for name, value in defaults.items() if name not in declared})
    _provider = TracerProvider(resource=resource, shutdown_on_exit=False)
    _provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    trace.set_tracer_provider(_provider)
    _tracer = _provider.get_tracer("triton-tickets")


def is_on() -> bool:
    """Whether this process sends traces."""
    return _tracer is not None


async def stop() -> None:
    """Sends what is left; a receiver that is away keeps nobody for longer than 2 s."""
    global _provider, _tracer
    if _provider is None:
        return
    last = threading.Thread(target=_provider.shutdown, daemon=True)
    _provider = _tracer = None
    last.start()
    await asyncio.to_thread(last.join, STOP_SECONDS)


def current() -> str | None:
    """The `traceparent` (W3C Trace Context) of the span that is under way."""
    if _tracer is None:
        return None
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    carrier: dict[str, str] = {}
    TraceContextTextMapPropagator().inject(carrier)
    return carrier.get("traceparent")


def outgoing() -> dict[str, str]:
    """The headers by which another service goes on with the trace."""
    if _tracer is None:
        return {}
    from opentelemetry import propagate

    carrier: dict[str, str] = {}
    propagate.inject(carrier)
    return carrier


def link(trace_parent: str | None) -> None:
    """Links the span that is under way to another trace."""
    if _tracer is None or trace_parent is None:
        return
    from opentelemetry import trace

    trace.get_current_span().add_link(trace.get_current_span(_context_of(trace_parent)).get_span_context())


def event(name: str) -> None:
    """Notes a moment of the span that is under way."""
    if _tracer is None:
        return
    from opentelemetry import trace

    trace.get_current_span().add_event(name)


@contextmanager
def span(
    name: str,
    kind: str,
    attributes: Mapping[str, Any],
    *,
    parent: str | None = None,
    root: bool = False,
) -> Iterator[Span | None]:
    """A span around the block: below `parent`, a `traceparent`, or the one under way, or below none with `root`.

    `kind` is consumer, client or internal. None where traces are off.
    """
    if _tracer is None:
        yield None
        return
    context = _context_of(parent) if parent or root else None
    with _tracer.start_as_current_span(
        name, context, _kind(kind), attributes, record_exception=False, set_status_on_exception=False
    ) as opened:
        yield opened


def past_span(name: str, attributes: Mapping[str, Any], parent: str, started_at: float, ended_at: float) -> None:
    """A span of the past, in Unix seconds, below `parent`."""
    if _tracer is not None:
        opened = _tracer.start_span(name, _context_of(parent), attributes=attributes, start_time=_ns(started_at))
        opened.end(_ns(ended_at))


def failed(opened: Span | None, code: str, message: str) -> None:
    """Marks a span as failed with a stable code."""
    if opened is not None:
        from opentelemetry.trace import StatusCode

        opened.set_attribute("error.type", code)
        opened.set_status(StatusCode.ERROR, message)


def _kind(kind: str) -> SpanKind:
    from opentelemetry.trace import SpanKind

    return SpanKind[kind.upper()]


def _context_of(trace_parent: str | None) -> Context:
    from opentelemetry.context import Context
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    return TraceContextTextMapPropagator().extract({"traceparent": trace_parent} if trace_parent else {}, Context())


def _ns(seconds: float) -> int:
    return int(seconds * 1e9)
