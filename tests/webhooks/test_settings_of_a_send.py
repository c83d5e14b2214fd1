"""What a request may ask for, and the secret from a terminal."""

import subprocess
import sys
from typing import Any

import pytest

from app.dispatch.webhooks import PAUSES, asked_pause, pause_after
from tests.conftest import ROOT
from tests.service import Service

URL = "https://example.com/hook"


@pytest.mark.parametrize(
    ("webhook", "field"),
    [
        ({"url": "http://127.0.0.1/"}, "webhook.url"),
        ({"url": ""}, "webhook.url"),
        ({"url": "https://example.com/" + "x" * 2000}, "webhook.url"),
        ({}, "webhook.url"),
        ({"url": URL, "events": []}, "webhook.events"),
        ({"url": URL, "events": ["result.started"]}, "webhook.events.0"),
        ({"url": URL, "secret": "x"}, "webhook.secret"),
        (URL, "webhook"),
    ],
)
async def test_what_cannot_be_delivered_is_refused_and_nothing_is_stored(
    api: Service, webhook: Any, field: str
) -> None:
    context = await api.context()
    answer = await api.client.post(f"/models/send/tiny/{context}", json={"webhook": webhook})
    assert (answer.status_code, answer.json()["errors"][0]["field"]) == (422, field)
    assert (await api.client.get("/results/")).json() == []


async def test_another_webhook_is_another_request(api: Service) -> None:
    context = await api.context()
    keyed = {"Idempotency-Key": "k"}

    async def send(**body: Any) -> int:
        answer = await api.client.post(f"/models/send/tiny/{context}", json=body, headers=keyed)
        return int(answer.status_code)

    assert [await send(webhook={"url": URL}), await send(webhook={"url": URL}), await send()] == [202, 202, 422]


async def test_a_keys_webhook_serves_where_the_send_names_none(api: Service) -> None:
    asked = {"name": "alice", "webhook": {"url": URL, "events": ["result.failed"]}}
    made = (await api.client.post("/keys/", json=asked)).json()
    assert made["webhook"] == asked["webhook"]
    api.client.headers["Authorization"] = f"Bearer {made['key']}"
    of_key = await api.send()
    of_send = await api.send(webhook={"url": URL + "/2"})
    for id_ in (of_key, of_send):
        await api.client.post(f"/results/{id_}/cancel")
    urls = [(await api.client.get(f"/results/{id_}/webhooks")).json()[0]["url"] for id_ in (of_key, of_send)]
    assert urls == [URL, URL + "/2"]


async def test_a_key_with_a_webhook_that_leads_inside_is_not_made(api: Service) -> None:
    answer = await api.client.post("/keys/", json={"name": "bob", "webhook": {"url": "http://10.0.0.1/"}})
    assert (answer.status_code, answer.json()["errors"][0]["field"]) == (422, "webhook.url")
    refused = run(api, "app.cli.keys", "create", "bob", "--webhook", "http://10.0.0.1/")
    assert (refused.returncode, refused.stdout) == (1, "")
    assert "must not point to a private" in refused.stderr
    assert run(api, "app.cli.keys", "create", "bob", "--webhook", URL).returncode == 0
    assert [key["webhook"]["url"] for key in (await api.client.get("/keys/")).json()] == [URL]


def run(api: Service, module: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", module, *arguments],
        cwd=ROOT,
        env={"DATABASE_URL": api.settings.database_url},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


async def test_each_owner_has_a_secret_of_its_own_for_those_who_may_submit(api: Service) -> None:
    async def secret(**key: Any) -> Any:
        made = (await api.client.post("/keys/", json=key)).json()["key"]
        return await api.client.get("/webhooks/secret", headers={"Authorization": f"Bearer {made}"})

    mine = (await api.client.get("/webhooks/secret")).json()["secret"]
    theirs = (await secret(name="alice")).json()["secret"]
    again = (await secret(name="second", owner="alice")).json()["secret"]
    assert mine.startswith("whsec_")
    assert theirs == again != mine
    refused = await secret(name="reader", owner="alice", scopes=["read"])
    assert (refused.status_code, refused.json()["code"]) == (403, "scope_missing")


async def test_the_secret_is_printed_and_rotated_from_a_terminal(api: Service) -> None:
    shown = (await api.client.get("/webhooks/secret")).json()["secret"]
    assert run(api, "app.cli.webhooks").stdout == shown + "\n"
    rotated = run(api, "app.cli.webhooks", "--rotate").stdout.strip()
    assert rotated == (await api.client.get("/webhooks/secret")).json()["secret"] != shown
    missing = run(api, "app.cli.webhooks", "nobody")
    assert (missing.returncode, missing.stdout) == (1, "")
    assert "There is no such owner" in missing.stderr


def test_the_tries_fit_into_72_hours() -> None:
    assert sum(PAUSES) < 72 * 3600
    assert [pause_after(tries, 0.0) for tries in range(1, 11)] == [*PAUSES, None]
    assert pause_after(1, 1.0) == 4.5


@pytest.mark.parametrize(
    ("header", "seconds"),
    [(None, 0), ("", 0), ("x", 0), ("-5", 0), ("120", 120), ("9" * 5000, 86400), ("Wed, 21 Oct 2015 07:28:00 GMT", 0)],
)
def test_retry_after_is_read_within_bounds(header: str | None, seconds: float) -> None:
    assert asked_pause(header) == seconds
