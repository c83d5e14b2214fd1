"""The metrics against a service that runs, and against the table of the documents."""

import asyncio
import re
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import asyncpg
import pytest
from prometheus_client import Counter, Gauge, Histogram

from app.config import Settings
from app.db.ids import uuid7
from app.queue.backlog import PENDING
from app.services import backlog
from app.telemetry import metrics
from app.telemetry.metrics import MAX_MODELS, OTHER, Snapshot
from tests.operations.scrape import scrape, value
from tests.service import Service, eventually, running_api, running_dispatcher

OPERATIONS = (Path(__file__).resolve().parents[2] / "docs" / "operations.md").read_text()
BOUNDED = {
    "model",
    "server",
    "status",
    "code",
    "reason",
    "method",
    "route",
    "task",
    "outcome",
    "sqlstate",
    "pool",
    "state",
    "span",
}


def documented(name: str, metric: object) -> tuple[str, str, tuple[str, ...], str] | None:
    if isinstance(metric, Snapshot):
        (family,) = metric.describe()
        return family.name, "gauge", tuple(family._labelnames), family.documentation
    if isinstance(metric, Counter | Gauge | Histogram):
        kind = type(metric).__name__.lower()
        (family, *_) = metric.describe()
        suffix = "_total" if kind == "counter" else ""
        return family.name + suffix, kind, tuple(metric._labelnames), family.documentation
    return None


METRICS = [row for name, metric in vars(metrics).items() if (row := documented(name, metric))]


def table() -> str:
    lines = []
    for name, kind, labels, text in METRICS:
        shown = ", ".join(f"`{label}`" for label in labels)
        lines.append(f"| `{name}` | {kind} | {shown} | {text[0].lower() + text[1:] if text[1].islower() else text} |")
    return "\n".join(lines)


def test_the_documented_metrics_are_those_of_the_code() -> None:
    assert table() in OPERATIONS, table()


def test_names_have_units_and_labels_have_a_bound() -> None:
    for name, kind, labels, _ in METRICS:
        assert name.startswith("tickets_")
        assert set(labels) <= BOUNDED, name
        assert (kind == "counter") == name.endswith("_total"), name
        if kind == "histogram":
            assert name.endswith(("_seconds",)), name


async def test_a_ticket_leaves_its_figures(service: Service) -> None:
    before = await scrape(service.client)
    result = await service.run(stream=True, max_tokens=20, ignore_eos=True)
    after = await scrape(service.client)

    def grown(name: str, **labels: str) -> float:
        return value(after, name, model="tiny", **labels) - value(before, name, model="tiny", **labels)

    usage = result["usage"]
    assert grown("tickets_submitted_total") == 1
    assert grown("tickets_settled_total", status="completed", code="") == 1
    assert grown("tickets_prompt_tokens_total") == usage["prompt_tokens"] > 0
    assert grown("tickets_generation_tokens_total") == usage["completion_tokens"] == 20
    assert grown("tickets_gpu_seconds_total") > 0
    assert grown("tickets_e2e_request_latency_seconds_count", status="completed") == 1
    for name in ("request_queue_time", "time_to_first_token", "time_per_output_token", "attempt"):
        assert grown(f"tickets_{name}_seconds_count") == 1, name
    first, total = grown("tickets_time_to_first_token_seconds_sum"), grown("tickets_attempt_seconds_sum")
    assert 0 < first < total
    assert 0 < grown("tickets_time_per_output_token_seconds_sum") * 19 < total
    server = service.settings.triton_urls[0]
    assert value(after, "tickets_server_up", server=server) == 1
    assert value(after, "tickets_slots", server=server, model="tiny") == service.settings.model_concurrency
    assert value(after, "tickets_listening") == 1
    await service.run(max_tokens=20, ignore_eos=True)
    after = await scrape(service.client)
    assert grown("tickets_generation_tokens_total") == 40
    # An answer that came whole has no first token.
    assert grown("tickets_time_to_first_token_seconds_count") == 1


async def test_a_ticket_that_is_cancelled_while_it_waits_counts_as_a_failure(api: Service) -> None:
    labels = {"model": "tiny", "status": "failed", "code": "cancelled"}
    before = value(await scrape(api.client), "tickets_settled_total", **labels)
    id_ = await api.send()
    await api.client.post(f"/results/{id_}/cancel")
    await api.client.post(f"/results/{id_}/cancel")
    assert value(await scrape(api.client), "tickets_settled_total", **labels) == before + 1


async def test_a_priced_server_costs_dollars(make_settings: Callable[..., Settings], tmp_path: Path) -> None:
    (url,) = make_settings().triton_urls
    servers = tmp_path / "servers.json"
    servers.write_text(f'{{"servers": [{{"url": "{url}", "hourly_price": 3600}}]}}')
    settings = make_settings(triton_urls=(), triton_servers_file=servers)
    async with running_api(settings) as service, running_dispatcher(settings):
        before = await scrape(service.client)
        await service.run(max_tokens=5)
        after = await scrape(service.client)
        dollars, seconds = (
            value(after, name, model="tiny") - value(before, name, model="tiny")
            for name in ("tickets_cost_dollars_total", "tickets_gpu_seconds_total")
        )
        assert dollars == pytest.approx(seconds)
        assert dollars > 0


@pytest.fixture
async def often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backlog, "FRESH_SECONDS", 0.0)
    monkeypatch.setattr(backlog, "MAX_SHARE", 1.0)


@pytest.fixture
async def rows(database_url: str) -> AsyncIterator[asyncpg.Connection]:
    connection = await asyncpg.connect(database_url)
    yield connection
    await connection.close()


@pytest.mark.usefixtures("often")
async def test_what_is_pending_is_told_by_model_and_reason(api: Service, rows: asyncpg.Connection) -> None:
    context = await api.context()
    await rows.execute(
        "INSERT INTO results (id, context_id, model, parameters, created_at, available_at) SELECT uuidv7(), $1, model,"
        " '{}', now() - make_interval(secs => age), now() + make_interval(secs => due) FROM (VALUES"
        " ('tiny', 100, 0), ('tiny', 50, 0), ('tiny', 10, 60), ('gone', 1000, 0)) AS v(model, age, due)",
        context,
    )
    await rows.execute(
        "INSERT INTO results (id, context_id, model, parameters, created_at, available_at, attempt_token,"
        " attempt_started_at) VALUES (uuidv7(), $1, 'tiny', '{}', now() - interval '1 hour', now() + interval '60 s',"
        " gen_random_uuid(), now())",
        context,
    )

    async def probed() -> bool:
        return value(await scrape(api.client), "tickets_pending", model="tiny", reason="queued") == 2

    await eventually(probed, "the model is known to be ready")
    samples = await scrape(api.client)
    assert value(samples, "tickets_pending", model="tiny", reason="running") == 1
    assert value(samples, "tickets_pending", model="tiny", reason="backoff") == 1
    assert value(samples, "tickets_pending", model="gone", reason="no_server") == 1
    assert 100 <= value(samples, "tickets_oldest_wait_seconds", model="tiny") < 200
    assert 1000 <= value(samples, "tickets_oldest_wait_seconds", model="gone") < 1100

    await rows.execute("DELETE FROM results")
    samples = await scrape(api.client)
    assert set(samples["tickets_pending"].values()) == {0}
    assert (("model", "gone"),) in samples["tickets_oldest_wait_seconds"]


@pytest.mark.usefixtures("often")
async def test_webhook_deliveries_that_wait_are_counted(api: Service, rows: asyncpg.Connection) -> None:
    await rows.execute(
        "INSERT INTO webhook_deliveries (owner_id, event, url, due_at) VALUES (0, 'x', 'https://h/', now()),"
        " (0, 'x', 'https://h/', NULL)"
    )
    assert value(await scrape(api.client), "tickets_webhook_deliveries_pending") == 1


async def test_what_was_read_is_kept_for_a_while(api: Service) -> None:
    await api.send()
    assert sum((await scrape(api.client))["tickets_pending"].values()) == 1
    await api.send()
    assert sum((await scrape(api.client))["tickets_pending"].values()) == 1


@pytest.mark.usefixtures("often")
async def test_scrapes_share_one_query_and_do_not_wait_for_a_database_that_hangs(
    api: Service, rows: asyncpg.Connection
) -> None:
    await api.send()
    assert sum((await scrape(api.client))["tickets_pending"].values()) == 1
    async with rows.transaction():
        await rows.execute("LOCK results IN ACCESS EXCLUSIVE MODE")
        for samples in await asyncio.gather(*(scrape(api.client) for _ in range(10))):
            assert sum(samples["tickets_pending"].values()) == 1
        # Statements that are planned before a ticket comes may wait for the lock as well.
        waiting = """
            SELECT count(*) FROM pg_locks l JOIN pg_stat_activity a USING (pid)
            WHERE l.relation = 'results'::regclass AND NOT l.granted AND left(a.query, 100) = left($1, 100)
        """
        assert await rows.fetchval(waiting, PENDING) == 1


@pytest.mark.usefixtures("often")
async def test_gauges_of_a_database_that_is_away_are_gone_and_the_fault_counts(
    make_settings: Callable[..., Settings], database: object
) -> None:
    settings = make_settings()
    async with running_api(settings) as service:
        await service.send()
        samples = await scrape(service.client)
        assert sum(samples["tickets_pending"].values()) == 1
        before = sum(samples.get("tickets_database_faults_total", {}).values())
        name = settings.database_url.rsplit("/", 1)[1]
        admin = await asyncpg.connect(settings.database_url.replace(name, "postgres"))
        await admin.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS false")
        await admin.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = $1", name)

        async def gone() -> bool:
            samples = await scrape(service.client)
            return not samples["tickets_pending"] and value(samples, "tickets_listening") == 0

        await eventually(gone, "the gauges are gone")
        assert sum((await scrape(service.client))["tickets_database_faults_total"].values()) > before
        await admin.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS true")
        await admin.close()

        async def back() -> bool:
            samples = await scrape(service.client)
            return bool(samples["tickets_pending"]) and value(samples, "tickets_listening") == 1

        await eventually(back, "the gauges are back")


def test_labels_of_clients_have_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "_models", set())
    labels = [metrics.model_label(f"m{n}") for n in range(MAX_MODELS + 10)]
    assert labels[:MAX_MODELS] == [f"m{n}" for n in range(MAX_MODELS)]
    assert set(labels[MAX_MODELS:]) == {OTHER}
    assert metrics.model_label("m3") == "m3"


async def test_an_unknown_method_or_path_makes_no_series_of_its_own(api: Service) -> None:
    for method in ("PROPFIND", "MKCALENDAR"):
        await api.client.request(method, f"/{uuid7()}")
    series = (await scrape(api.client))["tickets_http_request_seconds_count"]
    labels = [dict(each) for each in series]
    assert {each["method"] for each in labels} <= {*metrics.METHODS, OTHER}
    assert not any(re.search(r"[0-9a-f]{8}-", each["route"]) for each in labels)
