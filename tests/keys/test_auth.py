"""Who gets in, and with which answer the others are turned away."""

import asyncio
import re
from collections.abc import Callable
from typing import Any
from uuid import uuid4

import asyncpg
import pytest

from app.config import Settings
from app.db.engine import Database
from app.queue.audit import KEYLESS
from app.services.callers import Scope
from app.services.keys import ALPHABET, FRESH_SECONDS, KEY, Keys, base62
from tests.api.test_bad_input import check_problem
from tests.keys.conftest import MakeKey, bearer
from tests.service import Service, eventually, running_api

NOBODYS = "sk-" + "0" * 43


def check_refused(answer: Any, code: str, *words: str) -> None:
    check_problem(answer, 401, code, *words)
    assert answer.headers["www-authenticate"].startswith("Bearer")


def test_a_key_has_256_bits_and_always_the_same_length() -> None:
    for secret in (bytes(32), b"\xff" * 32, bytes(range(32))):
        text = base62(secret)
        assert KEY.fullmatch("sk-" + text)
        value = 0
        for character in text:
            value = value * 62 + ALPHABET.index(character)
        assert value.to_bytes(32) == secret


async def test_only_the_hash_of_a_key_is_stored(make_key: MakeKey, database: Database) -> None:
    key = await make_key()
    assert KEY.fullmatch(key)
    async with database.hot() as connection:
        row = await connection.fetchrow("SELECT * FROM api_keys")
    assert key[3:] not in repr(dict(row))
    assert row["hint"] == f"sk-…{key[-4:]}"


async def test_without_a_key_nothing_but_the_open_paths_is_answered(guarded: Service) -> None:
    for path in ("/health/live", "/health/ready", "/metrics", "/docs", "/openapi.json"):
        assert (await guarded.client.get(path)).status_code == 200, path
    for path in ("/contexts/", "/results/", "/models/", "/keys/", "/usage", "/nowhere", "/healthy", "/docsx"):
        check_refused(await guarded.client.get(path), "invalid_api_key", "Authorization: Bearer", "make key")
    for authorization in ("", "Basic YTpi", "Bearer", NOBODYS):
        answer = await guarded.client.post("/contexts/", json={}, headers={"Authorization": authorization})
        check_refused(answer, "invalid_api_key", "Authorization: Bearer")
        assert answer.headers["www-authenticate"] == "Bearer"


async def test_a_key_lets_in_and_bearer_may_be_written_any_way(guarded: Service, make_key: MakeKey) -> None:
    key = await make_key()
    for authorization in (f"Bearer {key}", f"bearer {key}", f"BEARER   {key}"):
        answer = await guarded.client.get("/contexts/", headers={"Authorization": authorization})
        assert answer.status_code == 200


async def test_wrong_expired_and_revoked_keys_are_told_apart(guarded: Service, make_key: MakeKey) -> None:
    ask = guarded.client.get
    for wrong in (NOBODYS, "sk-short", "x", NOBODYS + "\u00e9", "sk-" + "0" * 4000):
        answer = await ask("/contexts/", headers={"Authorization": f"Bearer {wrong}".encode()})
        check_refused(answer, "invalid_api_key", "not known")
        assert "invalid_token" in answer.headers["www-authenticate"]
        assert wrong not in answer.text
    expired = await make_key(expires_days=1e-9)
    check_refused(await ask("/contexts/", headers=bearer(expired)), "api_key_expired", "make key")


async def test_a_key_expires_while_it_is_remembered(guarded: Service, make_key: MakeKey) -> None:
    key = await make_key(expires_days=0.5 / 86400)

    async def turned_away() -> bool:
        answer = await guarded.client.get("/contexts/", headers=bearer(key))
        assert answer.status_code == 200 or answer.json()["code"] == "api_key_expired"
        return answer.status_code == 401

    await eventually(turned_away, "the key expires", seconds=FRESH_SECONDS)


async def test_below_v1_refusals_have_openais_shape(guarded: Service, make_key: MakeKey) -> None:
    answer = await guarded.client.get("/v1/models")
    assert (answer.status_code, answer.headers["content-type"]) == (401, "application/json")
    error = answer.json()["error"]
    assert error["code"] == "invalid_api_key"
    assert set(error) == {"message", "type", "param", "code"}
    assert answer.headers["www-authenticate"] == "Bearer"
    reader = await make_key(scopes=(Scope.READ,))
    answer = await guarded.client.post("/v1/chat/completions", content=b"{", headers=bearer(reader))
    assert (answer.status_code, answer.json()["error"]["code"]) == (403, "scope_missing")


async def test_scopes_bound_what_a_key_may_do(guarded: Service, make_key: MakeKey, admin: str) -> None:
    only = {scope: await make_key(scope.value, scopes=(scope,)) for scope in Scope}
    client = guarded.client
    asked = [
        ("GET", "/contexts/", Scope.READ, 200),
        ("GET", "/usage", Scope.READ, 200),
        ("POST", "/contexts/", Scope.SUBMIT, 201),
        ("DELETE", f"/contexts/{uuid4()}", Scope.SUBMIT, 404),
        ("GET", "/keys/", Scope.ADMIN, 200),
        ("POST", "/keys/", Scope.ADMIN, 201),
        ("DELETE", f"/keys/{uuid4()}", Scope.ADMIN, 404),
    ]
    for method, path, needed, status in asked:
        body = {"content": "x"} if path == "/contexts/" else {"name": "x"} if path == "/keys/" else None
        for scope, key in only.items():
            answer = await client.request(method, path, json=body, headers=bearer(key))
            if scope is needed:
                assert answer.status_code == status, answer.text
            else:
                check_problem(answer, 403, "scope_missing", needed.value, scope.value)
        assert (await client.request(method, path, json=body, headers=bearer(admin))).status_code == status


async def test_keys_are_made_listed_and_revoked_over_http(guarded: Service, admin: str) -> None:
    client, admins = guarded.client, bearer(admin)
    wanted = {
        "name": "laptop",
        "owner": "bob",
        "scopes": ["read"],
        "expires_in_days": 30,
        "requests_per_minute": 60,
        "pending_limit": 100,
        "tokens_per_day": 1_000_000,
        "weight": 3,
    }
    answer = await client.post("/keys/", json=wanted, headers=admins)
    assert answer.status_code == 201, answer.text
    made = answer.json()
    key = made.pop("key")
    assert made.items() >= {name: value for name, value in wanted.items() if name != "expires_in_days"}.items()
    assert (made["state"], made["revoked_at"]) == ("active", None)
    listed = (await client.get("/keys/", headers=admins)).json()
    assert made in listed
    assert key not in str(listed)

    assert (await client.get("/contexts/", headers=bearer(key))).status_code == 200
    assert (await client.delete(f"/keys/{made['id']}", headers=admins)).status_code == 204
    check_refused(await client.get("/contexts/", headers=bearer(key)), "api_key_revoked", "make key")
    states = {each["id"]: each["state"] for each in (await client.get("/keys/", headers=admins)).json()}
    assert states[made["id"]] == "revoked"
    check_problem(await client.delete(f"/keys/{uuid4()}", headers=admins), 404, "key_not_found", "GET /keys/")


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "name"),
        ({"name": ""}, "name"),
        ({"name": "a\u0000"}, "name"),
        ({"name": "all"}, "owner"),
        ({"name": "x", "owner": "all"}, "owner"),
        ({"name": "x", "scopes": []}, "scopes"),
        ({"name": "x", "scopes": ["root"]}, "scopes"),
        ({"name": "x", "scopes": [["read"]]}, "scopes"),
        ({"name": "x", "expires_in_days": 0}, "expires_in_days"),
        ({"name": "x", "expires_in_days": 1e9}, "expires_in_days"),
        ({"name": "x", "requests_per_minute": 0}, "requests_per_minute"),
        ({"name": "x", "pending_limit": 2**31}, "pending_limit"),
        ({"name": "x", "tokens_per_day": 2**63}, "tokens_per_day"),
        ({"name": "x", "weight": 0}, "weight"),
        ({"name": "x", "weight": 40000}, "weight"),
        ({"name": "x", "rpm": 5}, "rpm"),
    ],
)
async def test_a_bad_key_is_not_made(guarded: Service, admin: str, body: Any, field: str) -> None:
    answer = await guarded.client.post("/keys/", json=body, headers=bearer(admin))
    problem = check_problem(answer, 422, "invalid_request")
    assert problem["errors"][0]["field"].startswith(field)
    assert len((await guarded.client.get("/keys/", headers=bearer(admin))).json()) == 1


async def test_a_revocation_reaches_other_processes_within_seconds(
    guarded: Service, make_key: MakeKey, database: Database
) -> None:
    key = await make_key()
    assert (await guarded.client.get("/contexts/", headers=bearer(key))).status_code == 200
    elsewhere = Keys(database)
    await elsewhere.revoke((await elsewhere.list())[0]["id"], KEYLESS)

    async def turned_away() -> bool:
        return (await guarded.client.get("/contexts/", headers=bearer(key))).status_code == 401

    await eventually(turned_away, "the revocation is known", seconds=FRESH_SECONDS + 1)


async def test_a_known_key_costs_no_query(make_key: MakeKey, database: Database) -> None:
    keys = Keys(database)
    known = await make_key()
    await asyncio.gather(*(keys.caller(known) for _ in range(50)))
    async with database.hot() as connection:
        await connection.execute("ALTER TABLE api_keys RENAME TO hidden")
    assert (await keys.caller(known)).owner_id > 0
    with pytest.raises(asyncpg.UndefinedTableError):
        await keys.caller(NOBODYS)


async def test_guesses_are_remembered_too_and_push_no_real_key_out(
    make_key: MakeKey, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.services.keys.MOST_REMEMBERED", 5)
    keys = Keys(database)
    known = await make_key()
    await keys.caller(known)
    guesses = [f"sk-{number:043d}" for number in range(20)]
    for guess in guesses:
        with pytest.raises(Exception, match="not known"):
            await keys.caller(guess)
    async with database.hot() as connection:
        await connection.execute("ALTER TABLE api_keys RENAME TO hidden")
    await keys.caller(known)
    with pytest.raises(Exception, match="not known"):
        await keys.caller(guesses[-1])
    with pytest.raises(asyncpg.UndefinedTableError):
        await keys.caller(guesses[0])


async def test_where_none_is_needed_a_key_counts_and_a_placeholder_does_not(
    make_settings: Callable[..., Settings], make_key: MakeKey
) -> None:
    key = await make_key()
    async with running_api(make_settings()) as service:
        mine = await service.client.post("/contexts/", json={"content": "x"}, headers=bearer(key))
        url = f"/contexts/{mine.json()['id']}"
        assert (await service.client.get(url, headers=bearer(key))).status_code == 200
        for headers in ({}, bearer("EMPTY"), bearer("sk-none"), bearer("sk-proj-" + "a" * 40)):
            assert (await service.client.get(url, headers=headers)).status_code == 404
        check_refused(await service.client.get(url, headers=bearer(NOBODYS)), "invalid_api_key")


def test_production_does_not_start_without_keys() -> None:
    with pytest.raises(ValueError, match=re.escape("make key NAME=")):
        Settings(environment="production", database_url="postgresql://a:long-and-random@h/d", auth_required=False)
