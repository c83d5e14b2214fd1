"""Idempotency-Key: one thing for one key."""

import asyncio
from typing import Any

import asyncpg
import pytest

from tests.api.test_bad_input import check_problem
from tests.service import Service

KEY = {"Idempotency-Key": "key-1"}


async def rows(api: Service, query: str) -> Any:
    connection = await asyncpg.connect(api.settings.database_url)
    found = await connection.fetchval(query)
    await connection.close()
    return found


async def test_the_same_context_is_made_once(api: Service) -> None:
    body = {"content": "once", "metadata": {"a": [1, {"b": None}]}}
    first = await api.client.post("/contexts/", json=body, headers=KEY)
    again = await api.client.post("/contexts/", json=body, headers=KEY)
    assert (first.status_code, again.status_code) == (201, 201)
    assert first.json() == again.json()
    assert "idempotent-replayed" not in first.headers
    assert again.headers["idempotent-replayed"] == "true"
    assert again.headers["location"] == first.headers["location"]
    assert await rows(api, "SELECT count(*) FROM contexts") == 1


async def test_the_same_send_makes_one_ticket(api: Service) -> None:
    context = await api.context()
    url = f"/models/send/tiny/{context}"
    first = await api.client.post(url, json={"priority": 1}, headers=KEY)
    again = await api.client.post(url, json={"priority": 1, "parameters": {}}, headers=KEY)
    assert first.json() == again.json()
    assert again.status_code == 202
    assert again.headers["idempotent-replayed"] == "true"
    assert await rows(api, "SELECT count(*) FROM results") == 1


async def test_a_replayed_ticket_tells_the_state_it_has_reached(api: Service) -> None:
    context = await api.context()
    first = await api.client.post(f"/models/send/tiny/{context}", headers=KEY)
    await api.client.post(first.json()["cancel_url"])
    again = await api.client.post(f"/models/send/tiny/{context}", headers=KEY)
    assert (again.json()["result_id"], again.json()["status"]) == (first.json()["result_id"], "failed")


@pytest.mark.parametrize("change", [{"priority": 2}, {"parameters": {"seed": 1}}, {"client_reference": "x"}])
async def test_another_request_with_the_key_is_refused(api: Service, change: dict[str, Any]) -> None:
    context = await api.context()
    await api.client.post(f"/models/send/tiny/{context}", json={"priority": 1}, headers=KEY)
    answer = await api.client.post(f"/models/send/tiny/{context}", json={"priority": 1, **change}, headers=KEY)
    check_problem(answer, 422, "idempotency_mismatch", "24 hours")
    check_problem(await api.client.post("/contexts/", json={"content": "x"}, headers=KEY), 422, "idempotency_mismatch")
    assert await rows(api, "SELECT count(*) FROM results") == 1


async def test_equal_requests_at_the_same_moment_make_one(api: Service) -> None:
    context = await api.context()
    url = f"/models/send/tiny/{context}"
    answers = await asyncio.gather(*(api.client.post(url, headers=KEY) for _ in range(20)))
    assert {answer.status_code for answer in answers} == {202}
    assert len({answer.json()["result_id"] for answer in answers}) == 1
    assert sum("idempotent-replayed" not in answer.headers for answer in answers) == 1
    answers = await asyncio.gather(
        *(api.client.post("/contexts/", json={"content": "x"}, headers={"Idempotency-Key": "k2"}) for _ in range(20))
    )
    assert len({answer.json()["id"] for answer in answers}) == 1


async def test_a_refused_request_leaves_its_key_free(api: Service) -> None:
    missing = await api.client.post("/models/send/tiny/00000000-0000-7000-8000-000000000000", headers=KEY)
    assert missing.status_code == 404
    invalid = await api.client.post("/contexts/", json={"content": ""}, headers=KEY)
    assert invalid.status_code == 422
    assert await rows(api, "SELECT count(*) FROM idempotency_keys") == 0
    assert (await api.client.post("/contexts/", json={"content": "now"}, headers=KEY)).status_code == 201


async def test_a_key_is_free_again_after_a_day(api: Service) -> None:
    first = await api.client.post("/contexts/", json={"content": "x"}, headers=KEY)
    await rows(api, "UPDATE idempotency_keys SET created_at = now() - interval '25 hours' RETURNING 1")
    later = await api.client.post("/contexts/", json={"content": "y"}, headers=KEY)
    assert later.status_code == 201
    assert later.json()["id"] != first.json()["id"]


@pytest.mark.parametrize("key", ["", "x" * 256, "tab\there"])
async def test_bad_keys_are_refused(api: Service, key: str) -> None:
    answer = await api.client.post("/contexts/", json={"content": "x"}, headers={"Idempotency-Key": key})
    check_problem(answer, 422, "invalid_request", "Idempotency-Key")
