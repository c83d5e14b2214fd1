"""What a key may spend, on which models, and how much an owner may store."""

import asyncio
import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from app.config import Settings
from app.db.engine import Database
from app.services.callers import Caller
from app.services.limits import Limits
from app.services.standing import Standing, period_end
from tests.api.test_bad_input import check_problem
from tests.keys.conftest import MakeKey, bearer
from tests.service import Service, eventually, running_api


async def use(rows: Any, *, days_ago: int = 0, tokens: int = 0, dollars: float | None = None) -> None:
    """Counts something as used by the only key there is."""
    id_, owner_id = await rows.fetchrow("SELECT id, owner_id FROM api_keys")
    await rows.execute(
        "INSERT INTO usage VALUES ((now() AT TIME ZONE 'UTC')::date - $1::int, $2, $3, 'tiny', 1, 0, $4, 0, 1, $5)",
        days_ago,
        owner_id,
        id_,
        tokens,
        dollars,
    )


async def context_of(service: Service, key: str) -> str:
    answer = await service.client.post("/contexts/", json={"content": "x"}, headers=bearer(key))
    assert answer.status_code == 201, answer.text
    return str(answer.json()["id"])


CAPS = [
    ("tokens_per_day", 100, {"tokens": 100}, "token_limit_reached", "100 tokens a day"),
    ("tokens_per_month", 1000, {"tokens": 1000}, "token_limit_reached", "1,000 tokens a month"),
    ("dollars_per_day", 0.5, {"dollars": 0.5}, "spending_limit_reached", "$0.50 a day"),
    ("dollars_per_month", 20.0, {"dollars": 20.25}, "spending_limit_reached", "$20.00 a month and has spent $20.25"),
]


@pytest.mark.parametrize(("name", "limit", "used", "code", "words"), CAPS)
async def test_a_cap_says_which_it_is_and_when_it_ends(
    guarded: Service, make_key: MakeKey, rows: Any, name: str, limit: float, used: dict[str, Any], code: str, words: str
) -> None:
    key = await make_key(**{name: limit})
    context = await context_of(guarded, key)
    send = f"/models/send/tiny/{context}"
    assert (await guarded.client.post(send, headers=bearer(key))).status_code == 202
    await use(rows, **used)

    async def refused() -> Any:
        answer = await guarded.client.post(send, headers=bearer(key))
        return answer if answer.status_code == 429 else None

    answer = await eventually(refused, "the cap is reached")
    problem = check_problem(answer, 429, code, words, "midnight UTC")
    assert problem["limit"] == name
    seconds = (period_end(name, datetime.now(UTC)) - datetime.now(UTC)).total_seconds()
    assert abs(int(answer.headers["retry-after"]) - seconds) < 30
    # Looking is free, and tells how it stands.
    (cap,) = (await guarded.client.get("/usage", headers=bearer(key))).json()["limits"]
    assert (cap["limit"], cap["most"]) == (name, limit)
    assert cap["used"] >= limit
    below_v1 = await guarded.client.post("/v1/chat/completions", json={}, headers=bearer(key))
    assert (below_v1.status_code, below_v1.json()["error"]["code"]) == (429, code)
    assert words in below_v1.json()["error"]["message"]


async def test_yesterday_counts_for_the_month_only(make_key: MakeKey, rows: Any, database: Database) -> None:
    await make_key(tokens_per_day=10, tokens_per_month=1000, dollars_per_day=1.0, dollars_per_month=50.0)
    today = datetime.now(UTC).date()
    for days_ago in (0, 1, 31):
        await use(rows, days_ago=days_ago, tokens=7, dollars=0.25)
    await use(rows, tokens=1)
    id_, owner_id = await rows.fetchrow("SELECT id, owner_id FROM api_keys")
    caller = Caller(
        owner_id, id_, tokens_per_day=10, tokens_per_month=1000, dollars_per_day=1.0, dollars_per_month=50.0
    )
    caps = {cap.name: cap.used for cap in await Limits(database).caps(caller)}
    in_month = 2 if today.day > 1 else 1
    assert caps == {
        "tokens_per_day": 8,
        "tokens_per_month": 1 + 7 * in_month,
        "dollars_per_day": 0.25,
        "dollars_per_month": 0.25 * in_month,
    }


def test_a_month_ends_where_the_next_begins() -> None:
    for moment, ends in (
        (datetime(2026, 1, 31, 23, 59, tzinfo=UTC), datetime(2026, 2, 1, tzinfo=UTC)),
        (datetime(2026, 12, 1, tzinfo=UTC), datetime(2027, 1, 1, tzinfo=UTC)),
        (datetime(2028, 2, 29, 12, tzinfo=UTC), datetime(2028, 3, 1, tzinfo=UTC)),
    ):
        assert period_end("tokens_per_month", moment) == ends
        assert period_end("tokens_per_day", moment) - moment <= timedelta(days=1)
    assert Standing(Caller(1)).counted_since(datetime(2026, 5, 5, tzinfo=UTC).date()) is None


async def test_a_key_for_some_models_reaches_no_other(guarded: Service, make_key: MakeKey, rows: Any) -> None:
    key, free = await make_key("narrow", models=["tiny"]), await make_key("wide", owner="narrow")
    narrow = bearer(key)
    context = await context_of(guarded, key)
    client = guarded.client
    assert (await client.post(f"/models/send/tiny/{context}", headers=narrow)).status_code == 202
    for model in ("slow", "noop", "nowhere", "lora"):
        answer = await client.post(f"/models/send/{model}/{context}", headers=narrow)
        check_problem(answer, 403, "model_not_allowed", "tiny", model)
        assert (await client.get(f"/models/{model}", headers=narrow)).status_code == 403
    answer = await client.post("/v1/completions", json={"model": "slow", "prompt": "x"}, headers=narrow)
    assert (answer.status_code, answer.json()["error"]["code"]) == (403, "model_not_allowed")
    # A name that nobody knows gives away no other name.
    answer = await client.post("/v1/completions", json={"model": "nowhere", "prompt": "x"}, headers=narrow)
    assert answer.status_code == 404
    assert "slow" not in answer.text
    listed = (await client.get("/v1/models", headers=narrow)).json()["data"]
    assert [each["id"] for each in listed] == ["tiny"]
    assert [each["name"] for each in (await client.get("/models/", headers=narrow)).json()] == ["tiny"]
    assert len((await client.get("/v1/models", headers=bearer(free))).json()["data"]) > 1
    # What another key of the owner sent is not run again by this one.
    sent = await client.post(f"/models/send/noop/{context}", headers=bearer(free))
    await client.post(f"/results/{sent.json()['result_id']}/cancel", headers=bearer(free))
    retried = await client.post(f"/results/{sent.json()['result_id']}/retry", headers=narrow)
    check_problem(retried, 403, "model_not_allowed")
    assert await rows.fetchval("SELECT count(*) FROM results WHERE model <> 'tiny'") == 1


def test_a_models_name_stands_for_its_adapters_and_an_adapter_for_itself() -> None:
    caller = Caller(1, models=("base", "other:fr"))
    for allowed in (("base",), ("base", "any"), ("other", "fr")):
        assert caller.may_use(*allowed)
    for other in (("other",), ("other", "de"), ("bas",)):
        assert not caller.may_use(*other)
    assert [caller.sees(model) for model in ("base", "other", "othe")] == [True, True, False]
    assert Caller(1).may_use("anything")


async def test_a_line_of_a_batch_is_bound_to_the_keys_models(guarded: Service, make_key: MakeKey) -> None:
    key = bearer(await make_key(models=["tiny"]))
    lines = [
        {"custom_id": model, "method": "POST", "url": "/v1/completions", "body": {"model": model, "prompt": "x"}}
        for model in ("tiny", "slow")
    ]
    content = "\n".join(json.dumps(line) for line in lines)
    file = await guarded.client.post(
        "/v1/files", data={"purpose": "batch"}, files={"file": ("a", content)}, headers=key
    )
    batch = await guarded.client.post(
        "/v1/batches",
        json={"input_file_id": file.json()["id"], "endpoint": "/v1/completions", "completion_window": "24h"},
        headers=key,
    )

    async def ended() -> Any:
        found = (await guarded.client.get(f"/v1/batches/{batch.json()['id']}", headers=key)).json()
        return found if found["status"] != "validating" else None

    found = await eventually(ended, "the batch is checked")
    assert found["status"] == "failed"
    assert [(error["line"], error["code"]) for error in found["errors"]["data"]] == [(2, "model_not_allowed")]


async def upload(service: Service, key: str, size: int, **data: str) -> Any:
    return await service.client.post(
        "/v1/files", data={"purpose": "batch"} | data, files={"file": ("a", b"x" * size)}, headers=bearer(key)
    )


async def test_uploads_count_as_requests(guarded: Service, make_key: MakeKey) -> None:
    key = await make_key(requests_per_minute=2)
    answers = [await upload(guarded, key, 10) for _ in range(3)]
    assert [answer.status_code for answer in answers] == [200, 200, 429]
    assert answers[2].json()["error"]["code"] == "request_limit_reached"


async def test_an_owner_has_a_storage_quota(
    make_settings: Callable[..., Settings], make_key: MakeKey, rows: Any
) -> None:
    key, second, generous = (
        await make_key("one"),
        await make_key("two", owner="one"),
        await make_key("three", owner="one", storage_bytes=10**9),
    )
    async with running_api(make_settings(auth_required=True, max_owner_file_bytes=1000)) as service:
        first = await upload(service, key, 600)
        assert first.status_code == 200
        answer = await upload(service, second, 500)
        assert (answer.status_code, answer.json()["error"]["code"]) == (413, "storage_quota_reached")
        assert "1,000 bytes" in answer.json()["error"]["message"]
        assert "retry-after" not in answer.headers
        assert (await upload(service, generous, 500, **expiry(3600))).status_code == 200
        full = await upload(service, key, 1)
        assert full.status_code == 413
        assert 3500 < int(full.headers["retry-after"]) <= 3600
        assert (await upload(service, await make_key("stranger"), 900)).status_code == 200
        gone = await service.client.delete(f"/v1/files/{first.json()['id']}", headers=bearer(key))
        assert gone.status_code == 200
        assert (await upload(service, key, 500)).status_code == 200
        # Exactly as many as fit, however many come at once.
        fourth = await make_key("four")
        answers = await asyncio.gather(*(upload(service, fourth, 300) for _ in range(8)))
        assert sorted(answer.status_code for answer in answers) == [200] * 3 + [413] * 5
    assert await rows.fetchval("SELECT count(*) FROM file_chunks WHERE file_id NOT IN (SELECT id FROM files)") == 0


def expiry(seconds: int) -> dict[str, str]:
    return {"expires_after[anchor]": "created_at", "expires_after[seconds]": str(seconds)}


async def test_a_key_shows_its_person_and_its_bounds(guarded: Service, admin: str, database: Database) -> None:
    wanted = {
        "name": "intern",
        "person": "Alice Smith",
        "models": ["tiny", "lora:fr"],
        "tokens_per_month": 5,
        "dollars_per_day": 0.5,
        "dollars_per_month": 10.0,
        "storage_bytes": 4096,
    }
    made = await guarded.client.post("/keys/", json=wanted, headers=bearer(admin))
    assert made.status_code == 201, made.text
    assert made.json().items() >= wanted.items()
    for name, bad in (
        ("person", ""),
        ("models", []),
        ("models", [""]),
        ("models", ["a\0"]),
        ("tokens_per_month", 0),
        ("dollars_per_day", 0),
        ("dollars_per_month", -1),
        ("dollars_per_month", 1e300),
        ("storage_bytes", 2**63),
    ):
        answer = await guarded.client.post("/keys/", json={"name": "x", name: bad}, headers=bearer(admin))
        problem = check_problem(answer, 422, "invalid_request")
        assert problem["errors"][0]["field"].startswith(name)
