"""Picks: which answer was the best, who says so, and how often each model was."""

from typing import Any
from uuid import uuid4

import asyncpg

from app.db.ids import uuid7
from app.queue.store import QueueStore
from tests.comparisons.test_comparisons import TWO, compare, table
from tests.keys.conftest import MakeKey
from tests.keys.conftest import guarded as guarded
from tests.keys.conftest import make_key as make_key
from tests.service import Service


async def pick(service: Service, id_: str, result_id: str | None) -> dict[str, Any]:
    answer = await service.client.put(f"/comparisons/{id_}/pick", json={"result_id": result_id})
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


async def test_an_answer_is_picked_once_by_each_key_and_the_view_says_who_it_was(
    service: Service, make_key: MakeKey
) -> None:
    made = await compare(service, parameters={"max_tokens": 3})
    first, second = (entry["result_id"] for entry in (await table(service, made["id"]))["entries"])
    await pick(service, made["id"], first)
    assert (await pick(service, made["id"], None))["model"] is None
    last = await pick(service, made["id"], second)
    assert (last["model"], last["models"], last["result_id"]) == ("slow", ["tiny", "slow"], second)
    assert (await service.client.get("/picks/")).json() == [last]
    connection = await asyncpg.connect(service.settings.database_url)
    row = await connection.fetchrow("SELECT * FROM picks")
    await connection.close()
    assert (row["picked"], row["models"], row["prompt"]) == ("slow", ["tiny", "slow"], "Tell me a story.")
    assert row["servers"] == [service.settings.triton_urls[0]] * 2
    for _ in range(2):
        assert (await service.client.delete(f"/comparisons/{made['id']}/pick")).status_code == 204
    assert (await service.client.get("/picks/")).json() == []


async def test_what_cannot_be_picked_is_refused_and_changes_nothing(service: Service) -> None:
    made = await compare(service, [{"model": "tiny"}], content="[[sim:hang]]")
    path = f"/comparisons/{made['id']}/pick"
    pending = await service.client.put(path, json={"result_id": None})
    assert (pending.status_code, pending.json()["code"]) == (409, "comparison_pending")
    await service.client.post(f"/comparisons/{made['id']}/cancel")
    assert (await table(service, made["id"]))["status"] == "failed"
    for result_id in (made["entries"][0]["result_id"], str(uuid4())):
        refused = await service.client.put(path, json={"result_id": result_id})
        assert refused.status_code == 422, refused.text
        assert refused.json()["errors"][0]["field"] == "result_id"
    assert (await service.client.put(f"/comparisons/{uuid7()}/pick", json={})).status_code == 404
    assert (await service.client.get("/picks/")).json() == []


async def test_picks_outlive_what_the_retention_takes_and_go_with_a_deletion(
    service: Service, store: QueueStore
) -> None:
    ids = []
    for _ in range(2):
        made = await compare(service, parameters={"max_tokens": 2})
        entries = (await table(service, made["id"]))["entries"]
        await pick(service, made["id"], entries[0]["result_id"])
        ids.append(made["id"])
    assert (await service.client.delete(f"/comparisons/{ids[0]}")).status_code == 204
    assert [each["comparison_id"] for each in (await service.client.get("/picks/")).json()] == [ids[1]]
    connection = await asyncpg.connect(service.settings.database_url)
    await connection.execute("DELETE FROM results")
    assert await store.remove_comparisons(uuid7(), 10) == 1
    assert await connection.fetchval("SELECT picked FROM picks") == "tiny"
    await connection.close()


async def test_wins_are_summed_over_the_comparisons_of_several(service: Service) -> None:
    """As the page of picks shows them."""
    for entries, chosen in ((TWO, 0), (TWO, 0), (TWO, 1), (TWO, None), ([{"model": "tiny"}] * 2, 0)):
        made = await compare(service, entries, parameters={"max_tokens": 1})
        results = [entry["result_id"] for entry in (await table(service, made["id"]))["entries"]]
        await pick(service, made["id"], None if chosen is None else results[chosen])
    page = (await service.client.get("/console/compare/picks")).text
    cells = page.replace('</td><td class="n">', " ")
    assert 'tiny</th><td class="n">2 4 1 50 %' in cells
    assert 'slow</th><td class="n">1 4 1 25 %' in cells
