"""The dashboard and the alerts: well-formed, and every metric and label that they name is in a scrape."""

import asyncio
import json
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from app.config import Settings
from nvidia_triton.local.settings import free_ports
from tests.operations.scrape import Samples, scrape
from tests.service import Process, eventually, running_api

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"
ALERTS = DEPLOY / "prometheus" / "alerts.yml"
DASHBOARD = json.loads((DEPLOY / "grafana" / "dashboard.json").read_text())
OPERATIONS = (DEPLOY.parent / "docs" / "operations.md").read_text()
METRIC = re.compile(r"\b(tickets_[a-z0-9_]+)(?:\{([^}]*)\})?")
PROMTOOL = shutil.which("promtool")
needs_promtool = pytest.mark.skipif(
    PROMTOOL is None, reason="needs promtool: apt-get install prometheus, or a release of prometheus.io"
)


def panels() -> Iterator[dict[str, Any]]:
    for panel in DASHBOARD["panels"]:
        if panel["type"] != "row":
            yield panel


def expressions() -> dict[str, list[str]]:
    found = {panel["title"]: [target["expr"] for target in panel["targets"]] for panel in panels()}
    for variable in DASHBOARD["templating"]["list"]:
        if variable["type"] == "query":
            found[variable["name"]] = [variable["definition"]]
    for rule in rules():
        found[rule["alert"]] = [rule["expr"]]
    return found


def rules() -> list[dict[str, Any]]:
    (group,) = yaml.safe_load(ALERTS.read_text())["groups"]
    listed: list[dict[str, Any]] = group["rules"]
    return listed


def filled(expression: str) -> str:
    """As Grafana sends it."""
    for name, value in {"__rate_interval": "1m", "__range": "1h", "model": ".*", "server": ".*"}.items():
        expression = expression.replace(f"${name}", value)
    return expression


def test_the_dashboard_has_what_grafana_11_wants() -> None:
    assert DASHBOARD["schemaVersion"] >= 39
    assert [each["name"] for each in DASHBOARD["templating"]["list"]] == ["datasource", "model", "server"]
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(set(ids)) == len(ids)
    cells: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        own = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not own & cells, panel["title"]
        assert max(x for x, _ in own) < 24
        cells |= own
    for panel in panels():
        assert panel["datasource"]["uid"] == "${datasource}"
        assert panel["title"]
        assert panel["description"]
        assert panel["fieldConfig"]["defaults"]["unit"]


def test_every_alert_is_explained() -> None:
    for rule in rules():
        assert f"`{rule['alert']}`" in OPERATIONS
        assert rule["labels"]["severity"] in ("warning", "critical")
        assert {"summary", "description"} <= set(rule["annotations"])


async def scrapes(settings: Settings, folder: Path) -> list[Samples]:
    """Of an API and a dispatcher that have met success, failure, a cancel, a webhook and a stream."""
    (port,) = free_ports(1)
    own = settings.model_copy(update={"dispatcher_metrics_port": port})
    async with running_api(settings) as service:
        context = await service.context()
        # While it is pending: what is read from the tables is kept for a while.
        pending = await service.send(context)
        first = await scrape(service.client)
        async with (
            Process("app.worker", own, folder / "dispatcher.log") as dispatcher,
            httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", trust_env=False) as metrics,
        ):
            await dispatcher.says("dispatching")
            webhook = {"url": "http://127.0.0.1:9/", "events": ["result.completed"]}
            await service.settled(pending)
            await service.settled(await service.send(context, parameters={"max_tokens": 5}, webhook=webhook))
            await service.run("[[sim:error=invalid]]")
            async with service.client.stream(
                "GET", f"/results/{await service.send(context, stream=True)}/stream"
            ) as answer:
                async for _ in answer.aiter_lines():
                    pass

            async def tried() -> bool:
                return bool((await scrape(metrics)).get("tickets_webhook_tries_total"))

            await eventually(tried, "the webhook is tried")
            return [first, await scrape(service.client), await scrape(metrics)]


# Series that begin with the fault that they count.
ONLY_AFTER_A_FAULT = {
    "tickets_model_quarantined",
    "tickets_model_reloads_total",
    "tickets_database_faults_total",
    "tickets_attempts_returned_total",
}


A_HOST = """
WITH host AS (
    INSERT INTO hosts (pool, provider, label, offer, hourly_price, models, state)
    VALUES ('p', 'vast', 'label', '1', 0.5, '{tiny}', 'ready') RETURNING id
), pool AS (
    INSERT INTO pools (name, models, settings) VALUES ('p', '{tiny}', '{"budget": {"day": 5, "hour": null}}')
)
INSERT INTO host_charges (host_id, from_at, pool, hourly_price) SELECT id, now(), 'p', 0.5 FROM host
"""


async def test_every_metric_that_is_named_is_in_a_scrape(
    make_settings: Callable[..., Settings], tmp_path: Path, rows: Any
) -> None:
    await rows.execute(A_HOST)
    (url,) = make_settings().triton_urls
    servers = tmp_path / "servers.json"
    servers.write_text(json.dumps({"servers": [{"url": url, "hourly_price": 1.5}]}))
    settings = make_settings(
        triton_urls=(), triton_servers_file=servers, webhook_allow_private=True, webhook_allow_http=True
    )
    samples: dict[str, set[str]] = {}
    for each in await scrapes(settings, tmp_path):
        for name, series in each.items():
            labels = {label for values in series for label, _ in values}
            samples[name] = samples.get(name, set()) | labels
    for where, listed in expressions().items():
        for expression in listed:
            for name, selectors in METRIC.findall(expression):
                if name in ONLY_AFTER_A_FAULT:
                    assert name.removesuffix("_total") in samples, (where, name)
                    continue
                assert name in samples, (where, name)
                for label in re.findall(r"(\w+)\s*(?:=~|!~|!=|=)", selectors):
                    assert label in samples[name], (where, name, label)


async def promtool(*arguments: str) -> str:
    assert PROMTOOL is not None
    done = await asyncio.to_thread(
        subprocess.run, [PROMTOOL, *arguments], cwd=DEPLOY, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return str(done.stdout)


@needs_promtool
async def test_promtool_accepts_the_alerts_and_they_do_what_they_say() -> None:
    assert f"{len(rules())} rules found" in await promtool("check", "rules", str(ALERTS))
    await promtool("test", "rules", str(ALERTS.with_name("alerts_test.yml")))
    tested = {rule["alertname"] for each in TESTS for rule in each["alert_rule_test"] if rule["exp_alerts"]}
    assert tested == {rule["alert"] for rule in rules()}


TESTS = yaml.safe_load(ALERTS.with_name("alerts_test.yml").read_text())["tests"]


@needs_promtool
async def test_promtool_accepts_every_query_of_the_dashboard(tmp_path: Path) -> None:
    records = [
        {"record": f"panel:{n}", "expr": filled(expression)}
        for n, expression in enumerate(target["expr"] for panel in panels() for target in panel["targets"])
    ]
    file = tmp_path / "panels.yml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": records}]}))
    await promtool("check", "rules", str(file))
