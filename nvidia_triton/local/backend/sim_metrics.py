"""What the engine reports to Triton's metrics: figures that vLLM's backend has too, and two of the simulation's own."""

from collections import Counter

import triton_python_backend_utils as pb_utils

_TIMES_TO_FIRST = [0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0]
_TIMES_PER_TOKEN = [0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5]
_TIMES_TO_END = [1.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0]
_CHOICES = [1, 2, 5, 10, 20]


def _tokens(context: int) -> list[int]:
    """1, 2, 5, 10 and so on up to the model's context."""
    steps = [digit * 10**power for power in range(len(str(context))) for digit in (1, 2, 5)]
    return [step for step in steps if step <= context]


class Metrics:
    """Takes note of what the engine does, and tells Triton with each `report`."""

    def __init__(self, labels: dict, context: int, vllm: bool) -> None:
        """`vllm`: the figures of the real backend too, where its parameter asks for them."""
        self._labels = labels
        # A family that is collected takes its metrics with it.
        self._families: list = []
        self._running = self._make("sim_requests_running", "Requests that hold a slot.", "GAUGE")
        self._waiting = self._make("sim_requests_waiting", "Requests that wait for a slot.", "GAUGE")
        self._shown = (0, 0)
        self._counters: dict = {}
        self._histograms: dict = {}
        self._counted: Counter = Counter()
        self._observed: list = []
        if not vllm:
            return
        for name, text in (
            ("prompt_tokens_total", "Number of prefill tokens processed."),
            ("generation_tokens_total", "Number of generation tokens processed."),
        ):
            self._counters[name] = self._make(f"vllm:{name}", text, "COUNTER")
        for name, text, buckets in (
            ("time_to_first_token_seconds", "Histogram of time to first token in seconds.", _TIMES_TO_FIRST),
            ("time_per_output_token_seconds", "Histogram of time per output token in seconds.", _TIMES_PER_TOKEN),
            ("e2e_request_latency_seconds", "Histogram of end to end request latency in seconds.", _TIMES_TO_END),
            ("request_prompt_tokens", "Number of prefill tokens processed.", _tokens(context)),
            ("request_generation_tokens", "Number of generation tokens processed.", _tokens(context)),
            ("request_params_n", "Histogram of the n request parameter.", _CHOICES),
        ):
            self._histograms[name] = self._make(f"vllm:{name}", text, "HISTOGRAM", buckets)

    def _make(self, name: str, text: str, kind: str, buckets: list | None = None):
        family = pb_utils.MetricFamily(name=name, description=text, kind=getattr(pb_utils.MetricFamily, kind))
        self._families.append(family)
        return family.Metric(labels=self._labels, **({} if buckets is None else {"buckets": buckets}))

    def stepped(self, request, before: int, now: float) -> None:
        """A request's message has been made, after `before` tokens; now it has `request.done`."""
        if not self._counters:
            return
        if not before:
            self._counted["prompt_tokens_total"] += request.job.input_tokens
            self._observe("time_to_first_token_seconds", request.first_token_at - request.arrived)
        if request.done > 1:
            self._observe("time_per_output_token_seconds", request.token_seconds)
        self._counted["generation_tokens_total"] += _generated(request, request.done) - _generated(request, before)
        if request.finished:
            self._observe("e2e_request_latency_seconds", now - request.arrived)
            self._observe("request_prompt_tokens", request.job.input_tokens)
            self._observe("request_generation_tokens", _generated(request, request.done))
            self._observe("request_params_n", len(request.completions))

    def _observe(self, name: str, value: float) -> None:
        self._observed.append((self._histograms[name], value))

    def report(self, running: int, waiting: int) -> None:
        if self._shown != (running, waiting):
            self._shown = (running, waiting)
            self._running.set(running)
            self._waiting.set(waiting)
        counted, self._counted = self._counted, Counter()
        for name, count in counted.items():
            self._counters[name].increment(count)
        observed, self._observed = self._observed, []
        for histogram, value in observed:
            histogram.observe(value)


def _generated(request, count: int) -> int:
    """Tokens of all its sequences once each has up to `count`."""
    return sum(min(count, len(each.tokens)) for each in request.completions)
