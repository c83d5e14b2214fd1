"""The audit log: who did what to keys and to what another key had made; nothing in it can be changed."""

import asyncio
import json
from datetime import UTC, datetime, timedelta
from typing import Any

import asyncpg
import pytest

from app.db.engine import Database
from app.dispatch.janitor import trim_audit
from app.queue.audit import AuditStore
from tests.keys.conftest import MakeKey, bearer
from tests.keys.test_command import command
from tests.service import Service


async def entries(service: Service, admin: str, query: str = "") -> list[dict[str, Any]]:
    answer = await service.client.get(f"/audit/{query}", headers=bearer(admin))
    assert answer.status_code == 200, answer.text
    found: list[dict[str, Any]] = answer.json()
    return found


async def test_who_made_and_revoked_a_key(guarded: Service, make_key: MakeKey, admin: str) -> None:
    body = {"name": "laptop", "owner": "bob", "person": "Bob", "scopes": ["read"]}
    made = (await guarded.client.post("/keys/", json=body, headers=bearer(admin))).json()
    for _ in range(2):
        assert (await guarded.client.delete(f"/keys/{made['id']}", headers=bearer(admin))).status_code == 204
    revoked, created, root = await entries(guarded, admin)
    assert (revoked["action"], created["action"]) == ("key.revoked", "key.created")
    assert root["actor"] == "tests"
    for entry in (revoked, created):
        assert (entry["actor"], entry["actor_key_name"], entry["owner"]) == ("api", "root", "bob")
        assert entry["subject"] == made["id"]
    assert created["details"] == {"name": "laptop", "person": "Bob", "scopes": ["read"]}
    assert made["key"] not in json.dumps([revoked, created])


async def test_a_command_is_named_with_its_user(guarded: Service, admin: str) -> None:
    done = await command(guarded, "create", "from-a-shell", "--person", "Carol", "--models", "tiny slow",
                         "--dollars-per-month", "9.5", "--storage-bytes", "1000")  # fmt: skip
    assert done.returncode == 0, done.stderr
    for words in ("$9.50 a month", "1,000 bytes of files", "for tiny, slow only"):
        assert words in done.stderr
    assert "Carol" in (await command(guarded, "list")).stdout
    id_ = done.stderr.split()[2]
    assert (await command(guarded, "revoke", id_)).returncode == 0
    revoked, created, _ = await entries(guarded, admin)
    for entry in (revoked, created):
        assert entry["actor"].startswith("command, ")
        assert (entry["actor_key_id"], entry["subject"]) == (None, id_)


async def test_what_another_key_made_and_this_one_ended_is_noted(
    guarded: Service, make_key: MakeKey, admin: str
) -> None:
    mine, colleague = await make_key("mine", owner="team"), await make_key("colleague", owner="team")
    client = guarded.client

    async def make(key: str) -> dict[str, str]:
        made = {}
        context = await client.post("/contexts/", json={"content": "x"}, headers=bearer(key))
        made["context"] = context.json()["id"]
        sent = await client.post(f"/models/send/tiny/{made['context']}", headers=bearer(key))
        made["result"] = sent.json()["result_id"]
        line = {"custom_id": "a", "method": "POST", "url": "/v1/completions", "body": {"model": "tiny", "prompt": "x"}}
        for name in ("file", "other_file"):
            file = await client.post(
                "/v1/files", data={"purpose": "batch"}, files={"file": ("a", json.dumps(line))}, headers=bearer(key)
            )
            made[name] = file.json()["id"]
        batch = await client.post(
            "/v1/batches",
            json={"input_file_id": made["other_file"], "endpoint": "/v1/completions", "completion_window": "24h"},
            headers=bearer(key),
        )
        made["batch"] = batch.json()["id"]
        return made

    async def end(made: dict[str, str], key: str) -> None:
        for method, path in (
            ("POST", f"/results/{made['result']}/cancel"),
            ("POST", f"/v1/batches/{made['batch']}/cancel"),
            ("DELETE", f"/v1/files/{made['file']}"),
            ("DELETE", f"/contexts/{made['context']}"),
        ):
            answer = await client.request(method, path, headers=bearer(key))
            assert answer.status_code < 300, answer.text

    before = len(await entries(guarded, admin))
    await end(await make(mine), mine)
    assert len(await entries(guarded, admin)) == before
    made = await make(colleague)
    await end(made, mine)
    noted = (await entries(guarded, admin))[: -before or None]
    assert [(entry["action"], entry["subject"]) for entry in reversed(noted)] == [
        ("result.cancelled", made["result"]),
        ("batch.cancelled", made["batch"]),
        ("file.deleted", made["file"]),
        ("context.deleted", made["context"]),
    ]
    assert {(entry["actor_key_name"], entry["owner"]) for entry in noted} == {("mine", "team")}
    assert len({entry["subject_key_id"] for entry in noted}) == 1
    assert noted[0]["subject_key_id"] not in (None, noted[0]["actor_key_id"])


async def test_pages_are_those_of_the_other_lists(guarded: Service, make_key: MakeKey, admin: str) -> None:
    for number in range(5):
        await make_key(f"key-{number}")
    seen: list[str] = []
    url: str | None = "/audit/?limit=2"
    while url:
        answer = await guarded.client.get(url, headers=bearer(admin))
        assert len(answer.json()) <= 2
        seen += [entry["id"] for entry in answer.json()]
        url = answer.links["next"]["url"] if "next" in answer.links else None
    assert seen == [entry["id"] for entry in await entries(guarded, admin)]
    assert seen == sorted(seen, reverse=True)
    assert len(seen) == 6
    assert await entries(guarded, admin, "?action=key.revoked") == []
    assert len(await entries(guarded, admin, "?action=key.created")) == 6
    assert (await guarded.client.get("/audit/?action=x", headers=bearer(admin))).status_code == 422


async def test_postgres_refuses_every_change(make_key: MakeKey, rows: Any, database: Database) -> None:
    await make_key()
    for statement in (
        "UPDATE audit SET actor = 'nobody'",
        "DELETE FROM audit",
        "TRUNCATE audit",
        "DELETE FROM audit WHERE created_at < now() + interval '1 day'",
        "INSERT INTO audit (id, action, actor, subject) SELECT id, 'x', 'x', 'x' FROM audit"
        " ON CONFLICT (id) DO UPDATE SET actor = 'x'",
    ):
        with pytest.raises(asyncpg.InsufficientPrivilegeError, match="append-only"):
            await rows.execute(statement)
    assert await rows.fetchval("SELECT count(*) FROM audit WHERE actor = 'tests'") == 1
    # What the retention may remove is bounded by its own moment, and only while it runs.
    await AuditStore(database).remove(datetime.now(UTC) - timedelta(days=1), 100)
    with pytest.raises(asyncpg.InsufficientPrivilegeError):
        await rows.execute("DELETE FROM audit")


async def test_the_retention_removes_what_is_older(make_key: MakeKey, rows: Any, database: Database) -> None:
    await make_key()
    await rows.execute(
        "INSERT INTO audit (created_at, action, actor, subject)"
        " SELECT now() - make_interval(days => n), 'x', 'x', n::text FROM generate_series(1, 2500) n"
    )
    await trim_audit(AuditStore(database), 30.5)
    assert await rows.fetchval("SELECT count(*) FROM audit") == 31
    assert await rows.fetchval("SELECT max(subject::int) FROM audit WHERE action = 'x'") == 30
    await asyncio.gather(*(trim_audit(AuditStore(database), 10.5) for _ in range(3)))
    assert await rows.fetchval("SELECT max(subject::int) FROM audit WHERE action = 'x'") == 10
