"""One prompt to several models: stored together or not at all, and read, cancelled and deleted as one."""

import asyncio
from typing import Any
from uuid import uuid4

import asyncpg
import pytest

from app.db.ids import uuid7
from app.db.tables.results import SettledColumns
from app.queue.store import QueueStore
from app.queue.ticket import Claim, Outcome, Release, Settlement, Status
from tests.keys.conftest import MakeKey, bearer
from tests.keys.conftest import guarded as guarded
from tests.keys.conftest import make_key as make_key
from tests.service import Service

TWO = [{"model": "tiny"}, {"model": "slow"}]
CHAT = [{"role": "user", "content": "Say hello."}]


async def compare(service: Service, entries: list[dict[str, Any]] = TWO, **fields: Any) -> dict[str, Any]:
    body = {"content": "Tell me a story.", "entries": entries} | fields
    answer = await service.client.post("/comparisons/", json=body)
    assert answer.status_code == 202, answer.text
    found: dict[str, Any] = answer.json()
    assert answer.headers["location"] == f"/comparisons/{found['id']}"
    return found


async def table(service: Service, id_: str, seconds: int = 30) -> dict[str, Any]:
    answer = await service.client.get(f"/comparisons/{id_}", headers={"Prefer": f"wait={seconds}"})
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


async def counts(service: Service) -> dict[str, int]:
    connection = await asyncpg.connect(service.settings.database_url)
    try:
        tables = ("comparisons", "results", "contexts", "result_events")
        return {table: await connection.fetchval(f"SELECT count(*) FROM {table}") for table in tables}
    finally:
        await connection.close()


async def test_answers_stand_side_by_side_in_the_order_of_the_request(service: Service) -> None:
    made = await compare(service, [{"model": "slow"}, {"model": "tiny"}], parameters={"max_tokens": 5})
    assert [entry["status"] for entry in made["entries"]] == ["pending"] * 2
    found = await table(service, made["id"])
    assert found["status"] == "completed"
    assert [entry["model"] for entry in found["entries"]] == ["slow", "tiny"]
    for entry in found["entries"]:
        result = await service.result(entry["result_id"])
        assert result["context_id"] == made["context_id"]
        assert entry["output"] == result["output"]
        assert entry["output"]
        assert entry["usage"] == result["usage"]
        assert entry["usage"]["completion_tokens"] == 5
        assert entry["seconds"] > 0
        assert entry["server"] == service.settings.triton_urls[0]
        assert entry["error"] is None
        assert entry["result_url"] == f"/results/{entry['result_id']}"
    assert await counts(service) | {"result_events": 0} == {
        "comparisons": 1,
        "results": 2,
        "contexts": 1,
        "result_events": 0,
    }


async def test_an_entrys_parameters_go_over_the_common_ones(api: Service) -> None:
    entries = [
        {"model": "tiny"},
        {"model": "tiny", "parameters": {"temperature": 0.5, "seed": None}},
        {"model": "slow", "parameters": {"max_tokens": 7}},
    ]
    made = await compare(api, entries, parameters={"temperature": 0.25, "seed": 3}, priority=2, client_reference="c")
    asked = [await api.result(entry["result_id"]) for entry in made["entries"]]
    default = api.settings.default_max_tokens
    shown = [{name: each["parameters"].get(name) for name in ("temperature", "seed", "max_tokens")} for each in asked]
    assert shown == [
        {"temperature": 0.25, "seed": 3, "max_tokens": default},
        {"temperature": 0.5, "seed": None, "max_tokens": default},
        {"temperature": 0.25, "seed": 3, "max_tokens": 7},
    ]
    assert [(each["priority"], each["client_reference"]) for each in asked] == [(2, "c")] * 3


async def test_one_that_fails_leaves_the_others_alone(service: Service) -> None:
    # No engine allows so many alternatives.
    entries = [{"model": "tiny"}, {"model": "tiny", "parameters": {"logprobs": 900}}, {"model": "slow"}]
    made = await compare(service, entries, parameters={"max_tokens": 4})
    found = await table(service, made["id"])
    assert found["status"] == "completed"
    assert [entry["status"] for entry in found["entries"]] == ["completed", "failed", "completed"]
    failed = found["entries"][1]
    assert failed["output"] is None
    assert failed["error"]["code"] == (await service.result(failed["result_id"]))["error"]["code"]


async def test_a_chat_is_rendered_by_each_models_template(service: Service) -> None:
    made = await compare(service, [{"model": "chat"}], messages=CHAT, content=None, parameters={"max_tokens": 4})
    found = await table(service, made["id"])
    assert [entry["status"] for entry in found["entries"]] == ["completed"]
    again = await compare(service, [{"model": "chat"}], content=None, context_id=made["context_id"])
    assert again["context_id"] == made["context_id"]
    assert (await table(service, again["id"]))["status"] == "completed"


async def test_a_stored_prompt_is_compared_and_stays(service: Service) -> None:
    context = await service.context("Once upon a time")
    made = await compare(service, content=None, context_id=context, parameters={"max_tokens": 3})
    assert made["context_id"] == context
    assert (await table(service, made["id"]))["status"] == "completed"
    assert (await service.client.delete(f"/comparisons/{made['id']}")).status_code == 204
    assert await counts(service) == {"comparisons": 0, "results": 0, "contexts": 1, "result_events": 0}


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"content": "x", "entries": [{"model": "tiny"}, {"model": "nobody"}]}, "entries.1.model"),
        ({"messages": CHAT, "entries": [{"model": "chat"}, {"model": "tiny"}]}, "entries.1.model"),
        (
            {
                "messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:,x"}}]}],
                "entries": [{"model": "chat"}],
            },
            "entries.0.messages[0].content[0].image_url",
        ),
        ({"content": "x", "entries": [{"model": "tiny", "parameters": {"lora_name": "x"}}] * 17}, "entries"),
        ({"content": "x", "entries": []}, "entries"),
        ({"content": "x", "entries": [{"model": "tiny", "temperature": 1}]}, "entries.0.temperature"),
        ({"content": "x", "messages": CHAT, "entries": TWO}, "body"),
        ({"entries": TWO}, "body"),
        ({"context_id": str(uuid4()), "metadata": {}, "entries": TWO}, "body"),
        (
            {
                "content": "x",
                "parameters": {"n": 2},
                "entries": [{"model": "tiny"}, {"model": "slow", "parameters": {"temperature": 0}}],
            },
            "entries.1.parameters",
        ),
        (
            {
                "content": "x",
                "parameters": {"min_tokens": 9},
                "entries": [{"model": "tiny"}, {"model": "slow", "parameters": {"max_tokens": 4}}],
            },
            "entries.1.parameters",
        ),
    ],
)
async def test_what_is_wrong_is_named_and_nothing_is_stored(api: Service, body: dict[str, Any], field: str) -> None:
    answer = await api.client.post("/comparisons/", json=body)
    assert answer.status_code == 422, answer.text
    assert answer.json()["errors"][0]["field"] == field
    assert await counts(api) == {"comparisons": 0, "results": 0, "contexts": 0, "result_events": 0}


async def test_a_prompt_that_is_not_there_is_a_404(api: Service) -> None:
    answer = await api.client.post("/comparisons/", json={"context_id": str(uuid4()), "entries": TWO})
    assert (answer.status_code, answer.json()["code"]) == (404, "context_not_found")
    for method, path in (("GET", ""), ("DELETE", ""), ("POST", "/cancel"), ("GET", "/stream")):
        answer = await api.client.request(method, f"/comparisons/{uuid4()}{path}")
        assert (answer.status_code, answer.json()["code"]) == (404, "comparison_not_found")


async def test_the_same_key_makes_one_comparison(api: Service) -> None:
    body = {"content": "x", "entries": TWO}
    headers = {"Idempotency-Key": "one"}
    answers = await asyncio.gather(*(api.client.post("/comparisons/", json=body, headers=headers) for _ in range(8)))
    assert {answer.status_code for answer in answers} == {202}
    assert len({answer.json()["id"] for answer in answers}) == 1
    assert sum("idempotent-replayed" not in answer.headers for answer in answers) == 1
    other = await api.client.post("/comparisons/", json=body | {"priority": 1}, headers=headers)
    assert (other.status_code, other.json()["code"]) == (422, "idempotency_mismatch")
    assert await counts(api) == {"comparisons": 1, "results": 2, "contexts": 1, "result_events": 0}


async def test_pages_newest_first(api: Service) -> None:
    made = [(await compare(api))["id"] for _ in range(3)]
    first = await api.client.get("/comparisons/", params={"limit": 2})
    assert [each["id"] for each in first.json()] == made[:0:-1]
    assert [entry["status"] for entry in first.json()[0]["entries"]] == ["pending"] * 2
    assert "output" not in first.json()[0]["entries"][0]
    second = await api.client.get(first.headers["link"].split(";")[0].strip("<>"))
    assert [each["id"] for each in second.json()] == made[:1]
    assert "link" not in second.headers


async def test_cancel_ends_all_and_then_it_can_be_deleted(service: Service) -> None:
    made = await compare(service, content="[[sim:slow=50]]", parameters={"max_tokens": 200, "ignore_eos": True})
    url = f"/comparisons/{made['id']}"
    refused = await service.client.delete(url)
    assert (refused.status_code, refused.json()["code"]) == (409, "comparison_pending")
    assert (await service.client.post(f"{url}/cancel")).status_code == 200
    found = await table(service, made["id"])
    assert found["status"] == "failed"
    assert [entry["error"]["code"] for entry in found["entries"]] == ["cancelled"] * 2
    assert (await service.client.delete(url)).status_code == 204
    assert (await service.client.get(url)).status_code == 404
    assert await counts(service) == {"comparisons": 0, "results": 0, "contexts": 0, "result_events": 0}


async def test_a_result_that_was_removed_on_its_own_is_shown_as_removed(api: Service) -> None:
    made = await compare(api)
    connection = await asyncpg.connect(api.settings.database_url)
    await connection.execute("DELETE FROM results WHERE id = $1", made["entries"][0]["result_id"])
    await connection.close()
    found = (await api.client.get(f"/comparisons/{made['id']}")).json()
    assert [entry["status"] for entry in found["entries"]] == ["removed", "pending"]
    assert (await api.client.post(f"/comparisons/{made['id']}/cancel")).json()["status"] == "failed"
    listed = (await api.client.get("/comparisons/")).json()
    assert [entry["status"] for entry in listed[0]["entries"]] == ["removed", "failed"]
    assert (await api.client.delete(f"/comparisons/{made['id']}")).status_code == 204


async def test_the_retention_takes_it_after_its_results(api: Service, store: QueueStore) -> None:
    made = await compare(api)
    assert await store.remove_comparisons(uuid7(), 10) == 0
    await api.client.post(f"/comparisons/{made['id']}/cancel")
    assert await store.remove(uuid7(), -1, 10) == 2
    assert await store.remove_comparisons(uuid7(), 10) == 1
    assert (await api.client.get("/comparisons/")).json() == []


async def test_texts_that_come_to_too_much_are_left_to_their_results(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = await compare(service, [{"model": "tiny"}] * 3, content="[[sim:emit=0123456789]]")
    await table(service, made["id"])
    monkeypatch.setattr("app.services.comparisons.PAGE_BYTES", 20)
    found = await table(service, made["id"])
    assert [entry["output"] for entry in found["entries"]] == ["0123456789", "0123456789", None]


async def test_an_answer_costs_what_its_attempts_cost(api: Service, store: QueueStore) -> None:
    made = await compare(api)

    async def claim() -> Claim:
        claims = await store.claim([("tiny", "s", None)], lease_seconds=60, dispatcher="d")
        return claims.claims[0]

    first = await claim()
    again = Release(first.id, first.token, Outcome.RETRIED, "s", 0.0, True, "broken", "It broke.", 1.0, 0.25)
    assert await store.release([again]) == {first.id}
    second = await claim()
    answer = SettledColumns("t", None, "stop", 3, 5)
    done = Settlement(second.id, second.token, Status.COMPLETED, Outcome.COMPLETED, "s", answer, cost=0.5)
    assert await store.settle([done]) == {second.id}
    entries = (await api.client.get(f"/comparisons/{made['id']}")).json()["entries"]
    assert [(entry["cost"], entry["server"]) for entry in entries] == [(0.75, "s"), (None, None)]


async def test_owners_do_not_see_each_others(guarded: Service, make_key: MakeKey) -> None:
    alice, bob = bearer(await make_key("alice")), bearer(await make_key("bob"))
    answer = await guarded.client.post("/comparisons/", json={"content": "x", "entries": TWO}, headers=alice)
    made = answer.json()
    url = f"/comparisons/{made['id']}"
    for method, path in (("GET", ""), ("DELETE", ""), ("POST", "/cancel"), ("GET", "/stream")):
        refused = await guarded.client.request(method, url + path, headers=bob)
        assert (refused.status_code, refused.json()["code"]) == (404, "comparison_not_found")
    body = {"context_id": made["context_id"], "entries": TWO}
    refused = await guarded.client.post("/comparisons/", json=body, headers=bob)
    assert (refused.status_code, refused.json()["code"]) == (404, "context_not_found")
    assert (await guarded.client.get("/comparisons/", headers=bob)).json() == []
    assert [each["status"] for each in (await guarded.client.get(url, headers=alice)).json()["entries"]] == [
        "pending",
        "pending",
    ]


@pytest.mark.parametrize(
    ("limits", "status", "code"),
    [
        ({"pending_limit": 1}, 429, "pending_limit_reached"),
        ({"requests_per_minute": 1}, 429, "request_limit_reached"),
        ({"models": ["tiny"]}, 403, "model_not_allowed"),
    ],
)
async def test_a_keys_limits_and_models_count_for_each_entry(
    guarded: Service, make_key: MakeKey, limits: dict[str, Any], status: int, code: str
) -> None:
    headers = bearer(await make_key("limited", **limits))
    answer = await guarded.client.post("/comparisons/", json={"content": "x", "entries": TWO}, headers=headers)
    assert (answer.status_code, answer.json()["code"]) == (status, code)
    assert await counts(guarded) == {"comparisons": 0, "results": 0, "contexts": 0, "result_events": 0}


async def test_two_entries_are_two_requests_of_the_minute(guarded: Service, make_key: MakeKey) -> None:
    headers = bearer(await make_key("limited", requests_per_minute=3))
    body = {"content": "x", "entries": TWO}
    answer = await guarded.client.post("/comparisons/", json=body, headers=headers)
    assert answer.status_code == 202
    assert answer.headers["x-ratelimit-remaining-requests"] == "1"
    assert (await guarded.client.post("/comparisons/", json=body, headers=headers)).status_code == 429


async def test_a_deletion_by_another_key_is_in_the_audit_log(guarded: Service, make_key: MakeKey) -> None:
    first, second = [bearer(await make_key(name, owner="alice")) for name in ("one", "two")]
    made = (await guarded.client.post("/comparisons/", json={"content": "x", "entries": TWO}, headers=first)).json()
    url = f"/comparisons/{made['id']}"
    await guarded.client.post(f"{url}/cancel", headers=second)
    assert (await guarded.client.delete(url, headers=second)).status_code == 204
    connection = await asyncpg.connect(guarded.settings.database_url)
    rows = await connection.fetch("SELECT action, subject FROM audit WHERE action NOT LIKE 'key%' ORDER BY id")
    await connection.close()
    assert [row["action"] for row in rows] == ["result.cancelled", "result.cancelled", "comparison.deleted"]
    assert rows[-1]["subject"] == made["id"]
