"""Pages of results: bounded in bytes, and read without touching what they do not show."""

import json
import random
from typing import Any

import pytest
from sqlalchemy.dialects import postgresql

from app.db.engine import Database
from app.db.ids import uuid7
from app.db.tables import results
from app.dispatch.janitor import add_words
from app.queue.words import WordStore
from app.services import ticket_walk
from app.services.pages import PAGE_BYTES, SLICE_BYTES
from app.services.results import LISTED
from tests.service import Service

MIB = 1024 * 1024
INSERT = """
INSERT INTO results (id, context_id, model, parameters, status, completed_at, output, outputs, finish_reason)
VALUES ($1, $2, $3, $4, 'completed', now(), $5, $6, 'stop')
"""


def noise(size: int, seed: int = 0) -> str:
    """A text that does not compress to less than half."""
    return random.Random(seed).randbytes(size // 2).hex()


@pytest.fixture
async def context_id(database: Database) -> Any:
    id_ = uuid7()
    async with database.hot() as connection:
        await connection.execute("INSERT INTO contexts (id, content) VALUES ($1, 'x')", id_)
    return id_


async def stored(database: Database, context_id: Any, output: str, choices: Any = None, **columns: Any) -> str:
    id_ = uuid7()
    async with database.hot() as connection:
        model, parameters = columns.get("model", "m"), columns.get("parameters", {})
        await connection.execute(INSERT, id_, context_id, model, parameters, output, choices)
    return str(id_)


async def pages(api: Service, query: str = "limit=1000") -> list[list[dict[str, Any]]]:
    url: str | None = f"/results/?{query}"
    found = []
    while url is not None:
        answer = await api.client.get(url)
        assert answer.status_code == 200, answer.text
        found.append(answer.json())
        url = answer.links.get("next", {}).get("url")
    return found


async def test_a_page_of_large_results_ends_early_and_goes_on(
    api: Service, database: Database, context_id: Any
) -> None:
    ids = [await stored(database, context_id, "small") for _ in range(3)]
    ids += [await stored(database, context_id, noise(3 * MIB // 2, n)) for n in range(12)]
    ids += [await stored(database, context_id, noise(PAGE_BYTES + MIB), model="other")]
    found = await pages(api)
    assert [[result["id"] for result in page] for page in found] == [
        [ids[15]],
        ids[10:15][::-1],
        ids[5:10][::-1],
        ids[:5][::-1],
    ]
    assert [len(page) for page in await pages(api, "limit=4&model=m")] == [4, 4, 4, 3]
    assert [result["id"] for page in await pages(api, "limit=1000&model=m") for result in page] == ids[14::-1]


@pytest.mark.parametrize("place", ["outputs", "parameters"])
async def test_documents_count_as_what_they_come_to_and_not_as_they_are_compressed(
    api: Service, database: Database, context_id: Any, place: str
) -> None:
    text = "so it goes " * (2 * MIB // 11)
    for _ in range(9):
        if place == "outputs":
            await stored(database, context_id, "x", [{"index": 0, "text": text, "finish_reason": "stop"}])
        else:
            await stored(database, context_id, "x", parameters={"stop": [text]})
    async with database.hot() as connection:
        compressed = await connection.fetchval(f"SELECT sum(pg_column_size({place})) FROM results")
    assert compressed < SLICE_BYTES
    assert [len(page) for page in await pages(api)] == [3, 3, 3]


async def test_sizes_are_looked_up_without_reading_what_is_large(
    api: Service, database: Database, context_id: Any
) -> None:
    """40 MiB in some 5,000 blocks, and more in the index of where they are."""
    for n in range(20):
        await stored(database, context_id, noise(MIB, n), [{"text": noise(MIB, -n - 1)}])
    query = LISTED.page([results.c.owner_id == 0]).order_by(results.c.id.desc()).limit(1000)
    statement = query.compile(dialect=postgresql.dialect(), compile_kwargs={"literal_binds": True})
    async with database.hot() as connection:
        assert await connection.fetchval("SELECT pg_total_relation_size('results')") > 30 * MIB
        plan = json.loads(await connection.fetchval(f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {statement}"))[0]["Plan"]
    assert plan["Actual Rows"] == 20
    assert plan["Shared Hit Blocks"] + plan["Shared Read Blocks"] < 50


async def test_results_are_found_by_the_words_of_prompt_and_answer(
    api: Service, database: Database, context_id: Any
) -> None:
    ids = [await stored(database, context_id, "A heron by the lake") for _ in range(5)]
    await stored(database, context_id, "A heron")
    waits = await api.send(prompt="Heron! Lake?")
    await add_words(WordStore(database))
    found = await pages(api, "text=LAKE+heron&limit=2")
    assert [each["id"] for page in found for each in page] == [waits, *reversed(ids)]
    assert [page[0]["id"] for page in await pages(api, "text=x+lake&status=completed&limit=1")] == ids[::-1]
    assert await pages(api, "text=lake&model=other") == [[]]
    assert (await api.client.get("/results/?text=!")).status_code == 422


async def test_several_filters_find_the_same_however_far_each_request_comes(
    api: Service, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And a request ends where its time is over, without what it has not looked at."""
    draw = random.Random(5)
    contexts = [str(uuid7()) for _ in range(3)]
    async with database.hot() as connection:
        await connection.executemany(
            "INSERT INTO contexts (id, content) VALUES ($1, 'x')", [(id_,) for id_ in contexts]
        )
        await connection.executemany(
            "INSERT INTO results (id, context_id, model, parameters, status, completed_at, output, finish_reason,"
            " error_code, error_message, client_reference, owner_id, created_at) VALUES ($1, $2, $3, '{}', $4,"
            " CASE WHEN $4 <> 'pending' THEN now() END, CASE WHEN $4 = 'completed' THEN 'x' END,"
            " CASE WHEN $4 = 'completed' THEN 'stop' END, CASE WHEN $4 = 'failed' THEN 'x' END,"
            " CASE WHEN $4 = 'failed' THEN 'x' END, $5, $6, uuid_extract_timestamp($1))",
            [
                (
                    uuid7(),
                    draw.choice(contexts[:2]),
                    draw.choice("ab"),
                    draw.choice(("pending", "completed", "failed")),
                    draw.choice(("r", None)),
                    # Nobody else's are found.
                    0 if number % 10 else 1,
                )
                for number in range(200)
            ],
        )
        rows = [
            dict(row) for row in await connection.fetch("SELECT * FROM results WHERE owner_id = 0 ORDER BY id DESC")
        ]
    monkeypatch.setattr(ticket_walk, "FIRST_ROWS", 7)
    monkeypatch.setattr(ticket_walk, "MOST_ROWS", 14)
    monkeypatch.setattr(ticket_walk, "MAX_SECONDS", 0.0)
    moment = rows[60]["created_at"].isoformat().replace("+", "%2B")
    made = {str(row["id"]): row["created_at"] for row in rows}
    short = False
    for wanted in (
        *(
            {"context_id": id_, "status": status}
            for id_ in contexts[1:]
            for status in ("pending", "completed", "failed")
        ),
        {"model": "a", "status": "pending"},
        {"model": "b"},
        {"status": "failed"},
        {"context_id": contexts[0]},
        {"model": "b", "status": "failed", "context_id": contexts[0]},
        {"client_reference": "r", "model": "a", "status": "completed", "context_id": contexts[1]},
        {"client_reference": "none", "model": "a"},
    ):
        expected = [str(row["id"]) for row in rows if all(str(row[name]) == value for name, value in wanted.items())]
        query = "&".join(f"{name}={value}" for name, value in wanted.items())
        for limit in (3, 1000):
            found = await pages(api, f"limit={limit}&{query}")
            assert [each["id"] for page in found for each in page] == expected, (query, limit)
            short |= len(found) > 1 and limit == 1000
        found = await pages(api, f"{query}&created_after={moment}")
        later = [id_ for id_ in expected if made[id_] > rows[60]["created_at"]]
        assert [each["id"] for page in found for each in page] == later
        found = await pages(api, f"{query}&created_before={moment}")
        earlier = [id_ for id_ in expected if made[id_] < rows[60]["created_at"]]
        assert [each["id"] for page in found for each in page] == earlier
    assert short
