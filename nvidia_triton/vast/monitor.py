"""How Triton does behind the tunnels: its health, and what its models have done so far."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import httpx
from prometheus_client.parser import text_string_to_metric_families
from rich.table import Table

from nvidia_triton.vast import tunnel
from nvidia_triton.vast.context import Context
from nvidia_triton.vast.control import ANSWER_SECONDS, LOOPBACK, Control
from nvidia_triton.vast.errors import TargetError
from nvidia_triton.vast.loading import engine_reason

NANOSECONDS_IN_MS = 1e6
# What an engine with REPORT_CUSTOM_METRICS in its config.pbtxt says of itself.
TOKENS_IN, TOKENS_OUT = "vllm:prompt_tokens_total", "vllm:generation_tokens_total"
LATENCY_SUM, LATENCY_COUNT = "vllm:e2e_request_latency_seconds_sum", "vllm:e2e_request_latency_seconds_count"
CAPTION = (
    "compute: a whole generation where the engine reports it; else only Triton's part of it, since generations run "
    "outside of its clock"
)
COLUMNS = ("requests", "failures", "queue ms", "compute ms", "tokens in", "tokens out")


def health(context: Context, contract_id: int | None) -> tuple[bool, str]:
    """Healthy is a live server with a ready model and none that failed, behind every tunnel or the contract's one."""
    chosen = [each for each in tunnel.contracts(context.state) if contract_id in (None, each)]
    if not chosen:
        return False, _no_tunnel(contract_id)
    found = [_health_of(context, each) for each in chosen]
    return all(healthy for healthy, _ in found), "; ".join(reason for _, reason in found)


def model_stats(context: Context, contract_id: int | None) -> Table:
    """A row for every loaded model; the averages are milliseconds of one request.

    Raises:
        TargetError: there is no tunnel, or nothing answers behind it.
    """
    chosen = [each for each in tunnel.contracts(context.state) if contract_id in (None, each)]
    if not chosen:
        raise TargetError(_no_tunnel(contract_id))
    table = Table("server", "model", caption=CAPTION)
    for column in COLUMNS:
        table.add_column(column, justify="right")
    for ident in chosen:
        http_port, _, metrics_port = tunnel.local_ports(context.state, ident)
        try:
            with Control(http_port) as control:
                rows = control.statistics()
            engines = _engine_metrics(metrics_port)
        except httpx.HTTPError:
            raise TargetError(_silent(context, ident)) from None
        for row in rows:
            table.add_row(f"vast-{ident}", row["name"], *_cells(row, engines.get(row["name"], {})))
    return table


def _health_of(context: Context, ident: int) -> tuple[bool, str]:
    name = f"vast-{ident}"
    try:
        with Control(tunnel.local_ports(context.state, ident)[0]) as control:
            if not control.is_live():
                return False, _silent(context, ident)
            if not control.is_ready():
                return False, f"{name}: Triton is live and not ready"
            models = control.index()
    except httpx.HTTPError:
        return False, _silent(context, ident)
    redact = context.settings.redact
    if failed := [
        f"{each.name} failed to load ({redact(engine_reason(each.reason))})" for each in models if each.failed
    ]:
        return False, f"{name}: {', '.join(failed)}"
    ready = sorted(each.name for each in models if each.ready)
    if not ready:
        busy = [f"{each.name} is {each.state.lower()}" for each in models if each.busy]
        hint = f"`make deploy-models-tritonserver CONTRACT_ID={ident}` loads models"
        return False, f"{name}: no model is ready; {', '.join(busy) or hint}"
    return True, f"{name}: {', '.join(ready)} ready"


def _no_tunnel(contract_id: int | None) -> str:
    which = "" if contract_id is None else f" CONTRACT_ID={contract_id}"
    to = "any instance" if contract_id is None else f"instance {contract_id}"
    return f"there is no tunnel to {to}: start one with `make ssh-tunnels-tritonserver{which}`"


def _silent(context: Context, ident: int) -> str:
    record = context.state.read(f"{tunnel.PREFIX}{ident}")
    if tunnel.supervisor(context.state, ident) is None:
        reason = record.get("problem") or "its process has ended"
        return (
            f"vast-{ident}: the tunnel is down: {reason} `make ssh-tunnels-tritonserver CONTRACT_ID={ident}` starts it"
        )
    if not record.get("up"):
        return f"vast-{ident}: the tunnel is being made anew: {record.get('problem') or 'it has just ended'}"
    return (
        f"vast-{ident}: the tunnel is up and Triton does not answer through it: "
        f"`make run-tritonserver CONTRACT_ID={ident}` starts it, `make check-logs-tritonserver CONTRACT_ID={ident}` "
        "shows its log"
    )


def _cells(row: Mapping[str, Any], engine: Mapping[str, float]) -> list[str]:
    stats = row["inference_stats"]
    compute = sum(int(stats[part]["ns"]) for part in ("compute_input", "compute_infer", "compute_output"))
    count = int(stats["compute_infer"]["count"])
    if engine.get(LATENCY_COUNT):
        compute, count = int(engine[LATENCY_SUM] * 1e9), int(engine[LATENCY_COUNT])
    return [
        f"{int(stats['success']['count']):,}",
        f"{int(stats['fail']['count']):,}",
        _average(int(stats["queue"]["ns"]), int(stats["queue"]["count"])),
        _average(compute, count),
        *(f"{int(engine[key]):,}" if key in engine else "-" for key in (TOKENS_IN, TOKENS_OUT)),
    ]


def _average(nanoseconds: int, count: int) -> str:
    return f"{nanoseconds / count / NANOSECONDS_IN_MS:,.1f}" if count else "-"


def _engine_metrics(metrics_port: int) -> dict[str, dict[str, float]]:
    """By model, summed over its versions."""
    answer = httpx.get(f"http://{LOOPBACK}:{metrics_port}/metrics", timeout=ANSWER_SECONDS, trust_env=False)
    answer.raise_for_status()
    found: dict[str, dict[str, float]] = defaultdict(lambda: defaultdict(float))
    for family in text_string_to_metric_families(answer.text):
        for sample in family.samples:
            if sample.name in (TOKENS_IN, TOKENS_OUT, LATENCY_SUM, LATENCY_COUNT):
                found[sample.labels.get("model", "")][sample.name] += sample.value
    return found
