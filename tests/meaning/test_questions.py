"""Questions of chats are found by what they mean: by their owner alone, each once, whatever dies in between."""

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import Any
from uuid import UUID

import asyncpg
import httpx
import numpy as np

from app.config import Settings
from app.db.engine import Database, open_database
from app.db.ids import uuid7
from app.dispatch.question_vectors import QuestionVectors
from app.fleet.fleet import open_fleet
from app.queue.question_vectors import EXACT_UP_TO, MOST_TRIES, Extension, QuestionVectorStore
from app.queue.servers import ServerStore
from app.queue.store import QueueStore
from app.services.catalog import Catalog
from app.services.sessions import form_token
from tests.conftest import alembic, with_database
from tests.console.test_entrance import COOKIE, logged_in
from tests.console.test_pages import HOSTILE
from tests.keys.conftest import MakeKey, bearer
from tests.meaning.conftest import ask, vectors
from tests.postgres_server import RunningPostgres
from tests.service import Service, eventually, running_api, running_dispatcher

RICE, PASTA, SHARES = (
    "How long does brown rice have to simmer?",
    "What is the right cooking time for wholegrain rice?",
    "Why did the share price of the bank fall?",
)


FEW, MANY, OTHERS = 1, 2, 3


async def search(client: httpx.AsyncClient, text: str) -> str:
    form = {"form": form_token(client.cookies[COOKIE]), "text": text}
    answer = await client.post("/console/chat/meaning", data=form)
    assert answer.status_code == 200, answer.text
    return answer.text


async def test_questions_that_mean_the_same_are_found_by_their_owner_alone(
    guarded: Service, make_key: MakeKey, rows: Any
) -> None:
    alice, bob = await make_key("alice"), await make_key("bob", models=("chat",))
    async with logged_in(guarded, alice) as mine, logged_in(guarded, bob) as theirs:
        first, shares, _ = [await ask(mine, message) for message in (RICE, SHARES, HOSTILE + "'; DROP--%_\\")]
        other = await ask(theirs, "Boiling rice: how many minutes?")
        second = await ask(mine, PASTA)
        await vectors(rows, 5)

        async def similar(id_: str, key: str) -> httpx.Response:
            return await guarded.client.get(f"/results/{id_}/similar", headers=bearer(key))

        (found,) = (await similar(second, alice)).json()["questions"]
        assert (found["result_id"], found["question"], found["model"]) == (first, RICE, "chat")
        assert found["likeness"] > 0.5
        # What was asked later is no earlier question.
        assert (await similar(first, alice)).json() == {"status": "ready", "questions": []}
        assert (await similar(shares, alice)).json()["questions"] == []
        assert (await similar(other, bob)).json() == {"status": "ready", "questions": []}
        assert (await similar(second, bob)).status_code == 404
        assert (await theirs.get(f"/console/chat/similar/{second}")).status_code == 404
        page = (await mine.get(f"/console/chat/similar/{second}")).text
        assert (RICE in page, f"?at={first}" in page, SHARES in page) == (True, True, False)
        page = await search(mine, "minutes needed to cook rice")
        assert (RICE in page, PASTA in page, SHARES in page) == (True, True, False)
        page = await search(theirs, "cooking rice")
        assert ("how many minutes" in page, RICE in page, PASTA in page) == (True, False, False)
        for text in (HOSTILE, "'; DROP TABLE question_vectors; --", "%_\\", "\U0001f35a" * 60, "[1,2,3]"):
            page = await search(mine, text)
            assert "<script" not in page
        assert "&lt;script&gt;" in await search(mine, HOSTILE)
        assert (await mine.post("/console/chat/meaning", data={"text": "x"})).status_code == 403
        await eventually(lambda: nothing_left(rows), "the searches leave no ticket")
    used = (await guarded.client.get("/usage?group_by=model", headers=bearer(bob))).json()
    of_model = {row["model"]: row for row in used["groups"]}
    assert of_model["minilm"]["requests"] == 2
    assert of_model["minilm"]["prompt_tokens"] > 0


async def nothing_left(rows: Any) -> bool:
    return not await rows.fetchval("SELECT count(*) FROM results WHERE client_reference = 'search by meaning'")


async def test_an_answer_made_again_is_no_other_question_and_a_chat_takes_its_vectors_along(
    guarded: Service, make_key: MakeKey, rows: Any
) -> None:
    async with logged_in(guarded, await make_key("alice")) as client:
        first, second = await ask(client, RICE), await ask(client, PASTA)
        guarded.client.headers.update(bearer(await make_key("reader", owner="alice")))
        await guarded.settled(first)
        chat = await rows.fetchval("SELECT id FROM chats ORDER BY id LIMIT 1")
        form = {"form": form_token(client.cookies[COOKIE])}
        again = await client.post(f"/console/chat/{chat}/again", data=form | {"turn": first})
        assert again.status_code == 303
        await vectors(rows, 2)
        answered = again.headers["location"].split("at=")[1].split("#")[0]
        await guarded.settled(answered)
        assert (await guarded.client.get(f"/results/{answered}/similar")).json()["status"] == "ready"
        assert len((await guarded.client.get(f"/results/{second}/similar")).json()["questions"]) == 1
        assert (await client.post(f"/console/chat/{chat}/delete", data=form)).status_code == 303
        assert await rows.fetchval("SELECT count(*) FROM question_vectors") == 1
        assert (await guarded.client.get(f"/results/{second}/similar")).json()["questions"] == []


async def chats(rows: Any, number: int, owner_id: int = 0) -> None:
    """Rows of so many chats, each with one question that was answered."""
    await rows.execute(
        """
        WITH made AS (
            INSERT INTO chats (id, owner_id, title) SELECT uuidv7(), $2, 'A chat' FROM generate_series(1, $1)
            RETURNING id
        ), asked AS (
            INSERT INTO contexts (id, owner_id, messages)
            SELECT id, $2, jsonb_build_array(jsonb_build_object('role', 'user', 'content', 'Question ' || id)) FROM made
        )
        INSERT INTO results (id, owner_id, context_id, model, parameters, client_reference, status, completed_at,
                             output, finish_reason)
        SELECT uuidv7(), $2, id, 'chat', '{}', 'chat:' || id, 'completed', now(), 'Yes.', 'stop' FROM made
        """,
        number,
        owner_id,
    )


async def test_whatever_is_killed_in_between_each_question_gets_one_vector(
    make_settings: Callable[..., Settings], database: Database, rows: Any
) -> None:
    settings = make_settings(search_embedding_model=None)
    async with running_dispatcher(settings), open_fleet(settings, ServerStore(database)) as fleet:
        catalog = Catalog(database, fleet)
        await fleet.follow()
        await catalog.names(fresh=True)

        def passes() -> QuestionVectors:
            return QuestionVectors(database, QueueStore(database), catalog, settings, "embed")

        await QuestionVectorStore(database).extension(create=True)
        await chats(rows, 150)
        # Another one ends a few steps further each time, whatever it was doing; two at a time.
        for steps in range(1, 120, 3):
            tasks = [asyncio.create_task(passes().step()) for _ in range(2)]
            for _ in range(steps):
                await asyncio.sleep(0)
            for task in tasks:
                task.cancel()
            for task in tasks:
                with suppress(asyncio.CancelledError):
                    await task
        # As if the minute after which a ticket that was never stored counts as lost were over.
        await rows.execute(
            "UPDATE question_vectors v SET ticket_id = '01900000-0000-7000-8000-000000000000'"
            " WHERE NOT EXISTS (SELECT FROM results r WHERE r.id = v.ticket_id) AND ticket_id IS NOT NULL"
        )
        left = passes()

        async def made() -> bool:
            await left.step()
            return await rows.fetchval("SELECT count(*) FROM question_vectors WHERE vector IS NOT NULL") == 150

        await eventually(made, "all vectors are there", pause=0.2)
        assert await rows.fetchval("SELECT count(*) FROM question_vectors") == 150
        assert await rows.fetchval("SELECT count(DISTINCT vector) FROM question_vectors") == 150
        # What a kill left behind is removed with the next question of its owner.
        await rows.execute("UPDATE results SET completed_at = completed_at - interval '1 hour' WHERE task = 'embed'")
        await chats(rows, 1)

        async def swept() -> bool:
            await left.step()
            return await nothing_left(rows)

        await eventually(swept, "no ticket is left", pause=0.2)
        # Another model makes them all anew.
        other = QuestionVectors(database, QueueStore(database), catalog, settings, "minilm")

        async def renewed() -> bool:
            await other.step()
            of_model = "SELECT count(*) FROM question_vectors WHERE model = 'minilm' AND cardinality(vector) = 384"
            return await rows.fetchval(of_model) == 151

        await eventually(renewed, "vectors of the other model", pause=0.2)


async def test_a_question_that_the_model_refuses_keeps_no_other_from_its_vector(
    make_settings: Callable[..., Settings], database: Database, rows: Any
) -> None:
    settings = make_settings(search_embedding_model=None)
    async with open_fleet(settings, ServerStore(database)) as fleet:
        catalog = Catalog(database, fleet)
        await fleet.follow()
        passes = QuestionVectors(database, QueueStore(database), catalog, settings, "embed")
        await QuestionVectorStore(database).extension(create=True)
        await chats(rows, 3)
        refused = await rows.fetchval("SELECT id FROM results ORDER BY id LIMIT 1")

        async def answer() -> None:
            """As an engine would that fails each ticket with that question."""
            for row in await rows.fetch("SELECT id FROM results WHERE status = 'pending'"):
                asks = "SELECT count(*) FROM question_vectors WHERE (ticket_id, result_id) = ($1, $2)"
                failed = await rows.fetchval(asks, row["id"], refused)
                await rows.execute(
                    "UPDATE results SET status = $2, completed_at = now(), error_code = $3, error_message = $3,"
                    " output = $4, finish_reason = 'stop' WHERE id = $1",
                    row["id"],
                    *(("failed", "too_long", None) if failed else ("completed", None, "AACAPw==")),
                )

        async def ended() -> bool:
            await passes.step()
            await answer()
            over = f"SELECT count(*) FROM question_vectors WHERE tries = {MOST_TRIES} OR vector IS NOT NULL"
            return await rows.fetchval(over) == 3

        await eventually(ended, "no question waits any longer")
        done = await rows.fetch("SELECT result_id FROM question_vectors WHERE vector = '{1}'")
        assert len(done) == 2
        assert refused not in {row["result_id"] for row in done}
        assert await nothing_left(rows)


async def test_an_owner_of_few_or_many_gets_the_nearest_of_its_own(database: Database, rows: Any) -> None:
    store = QuestionVectorStore(database)
    extension = await store.extension(create=True)
    assert extension is not None
    random = np.random.default_rng(7)
    made: dict[int, dict[UUID, Any]] = {}
    for owner_id, number in ((FEW, 3), (MANY, EXACT_UP_TO + 500), (OTHERS, EXACT_UP_TO)):
        vectors = random.normal(size=(number, 8))
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        made[owner_id] = {uuid7(): vector for vector in vectors}
    records = [
        (id_, owner_id, uuid7(), "m", vector.tolist())
        for owner_id, vectors in made.items()
        for id_, vector in vectors.items()
    ]
    # Without the tickets, which are not read.
    await rows.execute("SET session_replication_role = replica")
    columns = ["result_id", "owner_id", "chat_id", "model", "vector"]
    await rows.copy_records_to_table("question_vectors", records=records, columns=columns)
    # At once, which costs a hundredth of it row by row.
    await store.index(8, extension)
    await rows.execute("ANALYZE question_vectors")
    asked = random.normal(size=8)
    asked /= np.linalg.norm(asked)
    for owner_id in (FEW, MANY):
        own = made[owner_id]
        right = sorted(own, key=lambda id_: -float(own[id_] @ asked))[:10]
        found = await store.near(owner_id, "m", asked.tolist(), 10, extension)
        assert len(found) == min(10, len(own))
        assert {id_ for id_, _, _ in found} <= own.keys()
        assert len({id_ for id_, _, _ in found} & set(right)) >= min(8, len(own))
        for id_, _, likeness in found:
            assert abs(likeness - float(own[id_] @ asked)) < 0.01
        assert [likeness for _, _, likeness in found] == sorted((each[2] for each in found), reverse=True)
    assert await store.near(4, "m", asked.tolist(), 10, extension) == []


async def test_a_database_without_the_extension_keeps_all_else(
    postgres: RunningPostgres, make_settings: Callable[..., Settings]
) -> None:
    """Its owner may not install what only a superuser may."""
    name = f"plain_{uuid7().hex}"
    connection = await asyncpg.connect(postgres.url)
    await connection.execute(f"CREATE ROLE {name} LOGIN PASSWORD 'plain'")
    await connection.execute(f"CREATE DATABASE {name} OWNER {name}")
    url = with_database(postgres.url, name).replace("//tickets:tickets-dev-only@", f"//{name}:plain@")
    try:
        done = await asyncio.to_thread(alembic, url, "upgrade", "head")
        assert done.returncode == 0, done.stderr
        settings = make_settings(database_url=url)
        async with running_api(settings) as service, running_dispatcher(settings):
            await service.client.get("/console/chat")
            id_ = await ask(service.client, RICE)
            assert (await service.settled(id_))["status"] == "completed"
            similar = await service.client.get(f"/results/{id_}/similar")
            assert (similar.status_code, similar.json()) == (200, {"status": "off", "questions": []})
            assert "brown rice" in (await service.client.get("/console/chat?text=brown")).text
            assert "CREATE EXTENSION vector" in await search(service.client, "rice")
            assert "CREATE EXTENSION vector" in (await service.client.get("/console/settings")).text
            async with open_database(settings) as database:
                assert await QuestionVectorStore(database).extension(create=True) is None
            rows = await asyncpg.connect(url)
            kept = "SELECT count(*) FROM log_lines WHERE message LIKE 'chats are not searched by meaning%'"
            await eventually(lambda: rows.fetchval(kept), "the log says what to do")
            assert await rows.fetchval("SELECT count(*) FROM question_vectors") == 0
            await rows.close()
    finally:
        await connection.execute(f"DROP DATABASE {name} WITH (FORCE)")
        await connection.execute(f"DROP ROLE {name}")
        await connection.close()


def test_indexes_that_can_be_filtered_are_needed() -> None:
    assert [Extension(version, "public").usable for version in ("0.7.4", "0.8.0", "0.10", "1.0")] == [
        False,
        True,
        True,
        True,
    ]
