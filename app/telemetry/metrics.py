"""Every Prometheus metric of the API and the dispatcher. docs/operations.md lists them; a test compares.

Labels have a bound: no ids, no owners, no text of a client. Times are in seconds, counters end in `_total`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from typing import TypeVar

from prometheus_client import REGISTRY, Counter, Gauge, Histogram
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

MAX_MODELS = 500
OTHER = "other"
METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
WAIT_BUCKETS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 900, 1800, 3600, 14400, 86400)

# Both processes.
SERVER_UP = Gauge("tickets_server_up", "1 while the server answers its probe", ("server",))
TASK_RESTARTS = Counter(
    "tickets_background_restarts_total", "Background tasks of this process that crashed and were restarted", ("task",)
)
DATABASE_FAULTS = Counter(
    "tickets_database_faults_total",
    "Statements of this process that Postgres could not serve; sqlstate is empty where it could not be reached",
    ("sqlstate",),
)
LISTENING = Gauge("tickets_listening", "1 while the connection that listens for notifications stands")
SETTLED = Counter(
    "tickets_settled_total",
    "Tickets that this process made final; code is that of the error, empty for completed ones",
    ("model", "status", "code"),
)
E2E_SECONDS = Histogram(
    "tickets_e2e_request_latency_seconds",
    "Time from submit to the final status",
    ("model", "status"),
    buckets=WAIT_BUCKETS,
)

# The API.
HTTP_SECONDS = Histogram(
    "tickets_http_request_seconds",
    "Time to answer an HTTP request, long-polls and streams included",
    ("method", "route", "status"),
    buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 5, 15, 60),
)
SUBMITTED = Counter("tickets_submitted_total", "Tickets accepted by this process", ("model",))
STREAM_FOLLOWERS = Gauge("tickets_stream_followers", "Streams open in this process")

# The dispatcher.
IN_FLIGHT = Gauge("tickets_in_flight", "Generations of this process on a server", ("server", "model"))
SLOTS = Gauge(
    "tickets_slots",
    "Generations that this process may have on a server; 0 while it may start none",
    ("server", "model"),
)
QUEUE_SECONDS = Histogram(
    "tickets_request_queue_time_seconds", "Time from submit to the first claim", ("model",), buckets=WAIT_BUCKETS
)
FIRST_TOKEN_SECONDS = Histogram(
    "tickets_time_to_first_token_seconds",
    "Time from the request to the engine to its first token",
    ("model",),
    buckets=(0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 10, 20, 40, 80, 160),
)
TOKEN_SECONDS = Histogram(
    "tickets_time_per_output_token_seconds",
    "Mean time between the tokens of a generation after the first",
    ("model",),
    buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 1, 2.5),
)
ATTEMPT_SECONDS = Histogram(
    "tickets_attempt_seconds",
    "Time from claim to the end of an attempt",
    ("model",),
    buckets=(0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 1800),
)
ATTEMPTS_RETURNED = Counter(
    "tickets_attempts_returned_total", "Claims that this process gave back to the queue", ("model", "code")
)
LEASES_LOST = Counter("tickets_leases_lost_total", "Claims this process lost to a lease that ran out")
PROMPT_TOKENS = Counter("tickets_prompt_tokens_total", "Tokens of prompts of settled tickets", ("model",))
GENERATION_TOKENS = Counter("tickets_generation_tokens_total", "Tokens generated for settled tickets", ("model",))
GPU_SECONDS = Counter("tickets_gpu_seconds_total", "Busy time of servers, shared among what ran there", ("model",))
COST = Counter("tickets_cost_dollars_total", "Price of that time, of servers whose price is known", ("model",))
QUARANTINED = Gauge("tickets_model_quarantined", "1 while a model is set aside for not answering", ("server", "model"))
RELOADS = Counter(
    "tickets_model_reloads_total", "Dead models that this process loaded again", ("server", "model", "outcome")
)
WEBHOOKS = Counter("tickets_webhook_tries_total", "Tries to deliver a webhook by this process", ("outcome",))
STREAM_EVENTS = Counter("tickets_stream_events_total", "Events of followed results stored by this process")


class Snapshot(Collector):
    """Gauges that are replaced all at once, so that no scrape sees half of them."""

    def __init__(self, name: str, documentation: str, labels: tuple[str, ...] = ()) -> None:
        self._family = (name, documentation, labels)
        self._values: Mapping[tuple[str, ...], float] = {}
        REGISTRY.register(self)

    def replace(self, values: Mapping[tuple[str, ...], float]) -> None:
        self._values = values

    def describe(self) -> Iterable[GaugeMetricFamily]:
        name, documentation, labels = self._family
        return [GaugeMetricFamily(name, documentation, labels=labels)]

    def collect(self) -> Iterator[GaugeMetricFamily]:
        name, documentation, labels = self._family
        family = GaugeMetricFamily(name, documentation, labels=labels)
        for values, value in self._values.items():
            family.add_metric(values, value)
        yield family


# Read from Postgres by the API: the same in every process, so that dashboards take the maximum.
PENDING = Snapshot(
    "tickets_pending", "Pending tickets of the whole service; reason is running, or why they wait", ("model", "reason")
)
OLDEST_WAIT = Snapshot(
    "tickets_oldest_wait_seconds", "Age of the oldest ticket that waits, whole service; 0 where none does", ("model",)
)
DELIVERIES_PENDING = Snapshot("tickets_webhook_deliveries_pending", "Webhook deliveries to be made, whole service")
HOSTS = Snapshot("tickets_hosts", "Rented hosts that have not ended, whole service", ("pool", "state"))
HOST_DOLLARS_PER_HOUR = Snapshot(
    "tickets_host_dollars_per_hour", "What rented hosts cost an hour now, whole service", ("pool",)
)
HOST_DOLLARS = Snapshot(
    "tickets_host_dollars",
    "What rented hosts have cost, whole service; span is the running hour, day or month, or total",
    ("pool", "span"),
)
BUDGET_DOLLARS = Snapshot(
    "tickets_budget_dollars",
    "Budget of a pool of hosts, or with an empty pool of all, whole service; span as that of what they cost",
    ("pool", "span"),
)

_models: set[str] = set()
Metric = TypeVar("Metric", Counter, Histogram)


def model_label(model: str) -> str:
    """The model's name, or `other` for each after the first 500 of a process."""
    if model not in _models:
        if len(_models) >= MAX_MODELS:
            return OTHER
        _models.add(model)
    return model


@lru_cache(maxsize=4096)
def of_model(metric: Metric, model: str, *labels: str) -> Metric:
    """The series of a model: to look one up by its labels costs more than to add to it."""
    return metric.labels(model_label(model), *labels)


def method_label(method: str) -> str:
    return method if method in METHODS else OTHER
