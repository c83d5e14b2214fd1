"""Nobody reaches what belongs to another: every route of the OpenAPI document that takes an id, by every method."""

import json
import re
from typing import Any

import asyncpg
import httpx
import pytest

from app.db.ids import uuid7
from app.openai.ids import object_id
from tests.keys.conftest import MakeKey, bearer
from tests.service import Service

METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE", "HEAD")
# What these name belongs to nobody, or is for admins alone.
SHARED = {"model_name", "model", "key_id", "server_id", "host_id", "setting"}
PLACEHOLDER = re.compile(r"\{(\w+)[^}]*\}")
MESSAGES = [{"role": "user", "content": "secret words"}]
REQUESTS: dict[str, dict[str, Any]] = {
    "chat.completion": {"model": "tiny", "messages": MESSAGES},
    "text_completion": {"model": "tiny", "prompt": "secret words"},
    "response": {"model": "tiny", "instructions": "secret words"},
}


# Where a body of nothing is refused for what it lacks.
BODIES: dict[str, dict[str, Any]] = {
    "/results/{result_id}/rating": {"rating": "good"},
    "/instructions/{instructions_id}": {"name": "x", "text": "x"},
}


class Owned:
    """Things of one owner, all final, and their ids by the names these have in paths."""

    def __init__(self) -> None:
        self.ids: dict[str, str] = {}
        # Where the same name stands for different things.
        self.ids_below: dict[str, dict[str, str]] = {}

    async def make(self, rows: Any, owner_id: int) -> None:
        context = uuid7()
        await rows.execute(
            "INSERT INTO contexts (id, owner_id, content) VALUES ($1, $2, 'secret words')", context, owner_id
        )
        self.ids["context_id"] = str(context)

        async def result(kind: str | None) -> Any:
            id_ = uuid7()
            await rows.execute(
                "INSERT INTO results (id, owner_id, context_id, model, parameters, kind, request, client_reference,"
                " status, completed_at, output, finish_reason, prompt_tokens, completion_tokens)"
                " VALUES ($1, $2, $3, 'tiny', '{}', $4, $5, 'secret name', 'completed', now(), 'secret', 'stop', 1, 1)",
                id_,
                owner_id,
                context,
                kind,
                json.dumps(REQUESTS[kind]) if kind else None,
            )
            return id_

        native = await result(None)
        self.ids["result_id"] = str(native)
        self.ids["delivery_id"] = str(
            await rows.fetchval(
                "INSERT INTO webhook_deliveries (owner_id, result_id, event, url)"
                " VALUES ($1, $2, 'result.completed', 'https://secret.example/') RETURNING id",
                owner_id,
                native,
            )
        )
        await rows.execute(
            "INSERT INTO output_files (result_id, response, name, element, media_type, data)"
            " VALUES ($1, 0, 'picture', 0, 'application/octet-stream', 'secret')",
            native,
        )
        self.ids["name"] = "picture"
        conversation = uuid7()
        await rows.execute("INSERT INTO conversations (id, owner_id) VALUES ($1, $2)", conversation, owner_id)
        self.ids["conversation_id"], self.ids["item_id"] = object_id("conversation", conversation), "msg_secret"
        await rows.execute(
            "INSERT INTO conversation_items (conversation_id, item_id, item) VALUES ($1, 'msg_secret', $2)",
            conversation,
            json.dumps({"id": "msg_secret", "type": "message", "role": "user", "content": MESSAGES}),
        )
        self.ids["comparison_id"] = str(uuid7())
        await rows.execute(
            "INSERT INTO comparisons (id, owner_id, context_id, with_prompt, result_ids, models)"
            " VALUES ($1, $2, $3, true, $4, '{tiny}')",
            self.ids["comparison_id"],
            owner_id,
            context,
            [native],
        )
        await rows.execute(
            "INSERT INTO comparison_picks (id, owner_id, comparison_id, context_id, result_id, models, servers, model)"
            " VALUES ($1, $2, $3, $4, $5, '{tiny}', '{secret}', 'tiny')",
            uuid7(),
            owner_id,
            self.ids["comparison_id"],
            context,
            native,
        )
        await rows.execute(
            "INSERT INTO ratings (result_id, owner_id, rating, comment) VALUES ($1, $2, 1, 'secret')", native, owner_id
        )
        self.ids["instructions_id"] = str(
            await rows.fetchval(
                "INSERT INTO instructions (id, owner_id, name, text) VALUES (uuidv7(), $1, 'secret', 'secret')"
                " RETURNING id",
                owner_id,
            )
        )
        for path, kind in (("/v1/chat/completions", "chat.completion"), ("/v1/completions", "text_completion")):
            self.ids_below[path] = {"completion_id": object_id(kind, await result(kind))}
        self.ids["response_id"] = object_id("response", await result("response"))

    async def upload(self, client: httpx.AsyncClient, key: str) -> None:
        """An upload, a file, and a batch of it."""
        upload = await client.post(
            "/v1/uploads",
            json={"filename": "secret.jsonl", "purpose": "batch", "bytes": 1, "mime_type": "text/plain"},
            headers=bearer(key),
        )
        assert upload.status_code == 200, upload.text
        self.ids["upload_id"] = upload.json()["id"]
        line = {"custom_id": "secret", "method": "POST", "url": "/v1/completions", "body": REQUESTS["text_completion"]}
        file = await client.post(
            "/v1/files",
            data={"purpose": "batch"},
            files={"file": ("secret.jsonl", json.dumps(line))},
            headers=bearer(key),
        )
        assert file.status_code == 200, file.text
        self.ids["file_id"] = file.json()["id"]
        batch = await client.post(
            "/v1/batches",
            json={"input_file_id": file.json()["id"], "endpoint": "/v1/completions", "completion_window": "24h"},
            headers=bearer(key),
        )
        assert batch.status_code == 200, batch.text
        self.ids["batch_id"] = batch.json()["id"]

    def known(self) -> set[str]:
        return set(self.ids).union(*self.ids_below.values())

    def filled(self, path: str) -> str:
        ids = self.ids | next((each for start, each in self.ids_below.items() if path.startswith(start)), {})
        return PLACEHOLDER.sub(lambda match: ids.get(match[1], "tiny"), path)


@pytest.fixture
async def owned(guarded: Service, make_key: MakeKey) -> tuple[str, str, Owned]:
    """Keys of two owners, and what belongs to the first."""
    mine, theirs = await make_key("alice"), await make_key("bob")
    owned = Owned()
    connection = await asyncpg.connect(guarded.settings.database_url)
    await owned.make(connection, await connection.fetchval("SELECT id FROM owners WHERE name = 'alice'"))
    await connection.close()
    await owned.upload(guarded.client, mine)
    return mine, theirs, owned


async def paths(service: Service) -> dict[str, dict[str, Any]]:
    document: dict[str, dict[str, Any]] = (await service.client.get("/openapi.json")).json()["paths"]
    return document


async def test_an_id_of_another_owner_is_not_found_whatever_is_tried(
    guarded: Service, owned: tuple[str, str, Owned]
) -> None:
    mine, theirs, things = owned
    known = await paths(guarded)
    of_ids = {path: set(PLACEHOLDER.findall(path)) - SHARED for path in known}
    unknown = set().union(*of_ids.values()) - things.known()
    assert not unknown, f"Owned makes nothing whose id is called {unknown}"
    of_ids = {path: names for path, names in of_ids.items() if names}

    async def look(path: str) -> Any:
        return await guarded.client.get(things.filled(path), headers=bearer(mine))

    readable = [path for path in of_ids if "get" in known[path]]
    before = {path: (await look(path)).text for path in readable}
    tried = 0
    for path in of_ids:
        for method in METHODS:
            body = BODIES.get(path, {}) if method in ("POST", "PUT", "PATCH") else None
            answer = await guarded.client.request(method, things.filled(path), json=body, headers=bearer(theirs))
            offered = ("get" if method == "HEAD" else method.lower()) in known[path]
            assert answer.status_code == (404 if offered else 405), f"{method} {path}: {answer.text}"
            assert "secret" not in answer.text
            tried += offered
    assert tried >= 8
    for path in readable:
        answer = await look(path)
        assert (answer.status_code, answer.text) == (200, before[path]), path


async def test_no_list_shows_what_belongs_to_another(guarded: Service, owned: tuple[str, str, Owned]) -> None:
    mine, theirs, things = owned
    ids = {*things.ids.values(), *(id_ for each in things.ids_below.values() for id_ in each.values())}
    known = await paths(guarded)
    shown = set()
    for path in [path for path, methods in known.items() if "get" in methods and "{" not in path]:
        seen = await guarded.client.get(path, headers=bearer(theirs))
        assert not [id_ for id_ in ids if id_ in seen.text or id_.replace("-", "") in seen.text], path
        own = await guarded.client.get(path, headers=bearer(mine))
        if [id_ for id_ in ids if id_ in own.text]:
            shown.add(path)
    assert shown >= {
        "/contexts/",
        "/results/",
        "/comparisons/",
        "/picks/",
        "/ratings/",
        "/instructions/",
        "/v1/files",
        "/v1/batches",
    }
    for query in ("client_reference=secret+name", f"context_id={things.ids['context_id']}", "model=tiny"):
        answers = [await guarded.client.get(f"/results/?{query}", headers=bearer(key)) for key in (mine, theirs)]
        assert [bool(answer.json()) for answer in answers] == [True, False]


async def test_an_idempotency_key_of_another_owner_gives_nothing_away(
    guarded: Service, owned: tuple[str, str, Owned]
) -> None:
    mine, theirs, _ = owned
    ids = []
    for key in (mine, theirs, mine):
        answer = await guarded.client.post(
            "/contexts/", json={"content": "same"}, headers=bearer(key) | {"Idempotency-Key": "k"}
        )
        assert answer.status_code == 201
        ids.append(answer.json()["id"])
    assert ids[0] == ids[2] != ids[1]
