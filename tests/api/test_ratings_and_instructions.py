"""Ratings of answers and named instructions by the API."""

from typing import Any
from uuid import uuid4

from app.db.ids import uuid7
from app.services.callers import Scope
from tests.keys.conftest import MakeKey, bearer
from tests.keys.conftest import guarded as guarded
from tests.keys.conftest import make_key as make_key
from tests.service import Service


async def answers(service: Service, *models: str) -> list[str]:
    """The ids of a final result of each model."""
    context = await service.context("A prompt.")
    sent = [await service.send(context, model, parameters={"max_tokens": 2}) for model in models]
    return [(await service.settled(id_))["id"] for id_ in sent]


async def test_answers_are_rated_and_the_ratings_listed_by_model(service: Service) -> None:
    client = service.client
    first, second = await answers(service, "tiny", "slow")
    for id_, body in ((first, {"rating": "good"}), (second, {"rating": "bad", "comment": "<b>No</b>"})):
        answer = await client.put(f"/results/{id_}/rating", json=body)
        assert answer.status_code == 200, answer.text
    assert (answer.json()["model"], answer.json()["comment"]) == ("slow", "<b>No</b>")
    changed = (await client.put(f"/results/{first}/rating", json={"rating": "bad"})).json()
    # What changed last stands first.
    page = await client.get("/ratings/?limit=1")
    assert page.json() == [changed]
    rest = (await client.get(page.links["next"]["url"])).json()
    assert [(each["result_id"], each["rating"]) for each in rest] == [(second, "bad")]
    for query, ids in (("model=slow", [second]), ("rating=bad", [first, second]), ("rating=good", []), ("model=x", [])):
        assert [each["result_id"] for each in (await client.get(f"/ratings/?{query}")).json()] == ids, query
    for _ in range(2):
        assert (await client.delete(f"/results/{first}/rating")).status_code == 204
    assert [each["result_id"] for each in (await client.get("/ratings/")).json()] == [second]


async def test_what_is_no_rating_changes_nothing(service: Service) -> None:
    client = service.client
    (id_,) = await answers(service, "tiny")
    for body in (
        {},
        {"rating": 1},
        {"rating": "fine"},
        {"rating": "good", "comment": "\x00"},
        {"rating": "good", "x": 1},
    ):
        assert (await client.put(f"/results/{id_}/rating", json=body)).status_code == 422, body
    assert (await client.get("/ratings/?rating=1")).status_code == 422
    assert (await client.put(f"/results/{uuid7()}/rating", json={"rating": "good"})).status_code == 404
    assert (await client.delete(f"/results/{uuid7()}/rating")).status_code == 404
    pending = await service.send(await service.context("[[sim:hang]]"))
    refused = await client.put(f"/results/{pending}/rating", json={"rating": "good"})
    assert (refused.status_code, refused.json()["code"]) == (409, "result_pending")
    assert (await client.get("/ratings/")).json() == []


async def test_instructions_go_on_from_each_other_and_are_changed_whole(service: Service) -> None:
    client = service.client

    async def make(**body: Any) -> dict[str, Any]:
        answer = await client.post("/instructions/", json=body)
        assert answer.status_code == 201, answer.text
        made: dict[str, Any] = answer.json()
        assert answer.headers["location"] == f"/instructions/{made['id']}"
        return made

    house = await make(name=" House ", text="Be polite.")
    child = await make(name="Support", text="Answer for the support.", parent_id=house["id"])
    assert (house["name"], house["own"], child["whole"]) == ("House", True, "Be polite.\n\nAnswer for the support.")
    changed = await client.put(f"/instructions/{house['id']}", json={"name": "House", "text": "Be brief."})
    assert changed.status_code == 200, changed.text
    assert (await client.get(f"/instructions/{child['id']}")).json()["whole"] == "Be brief.\n\nAnswer for the support."
    listed = (await client.get("/instructions/")).json()
    assert [(each["name"], each["parent_id"]) for each in listed] == [("House", None), ("Support", house["id"])]
    for body, field in (
        ({"name": "House", "text": "x"}, "name"),
        ({"name": " ", "text": "x"}, "name"),
        ({"name": "x" * 121, "text": "x"}, "name"),
        ({"name": "x", "text": ""}, "text"),
        ({"name": "x", "text": "\x00"}, "text"),
        ({"name": "x", "text": "x", "parent_id": str(uuid4())}, "parent_id"),
        ({"name": "x", "text": "x", "parent_id": "House"}, "parent_id"),
    ):
        refused = await client.post("/instructions/", json=body)
        assert (refused.status_code, refused.json()["errors"][0]["field"]) == (422, field), refused.text
    assert len((await client.get("/instructions/")).json()) == 2
    used = await client.delete(f"/instructions/{house['id']}")
    assert (used.status_code, used.json()["code"]) == (409, "instructions_in_use")
    for each in (child, house):
        assert (await client.delete(f"/instructions/{each['id']}")).status_code == 204
        assert (await client.get(f"/instructions/{each['id']}")).status_code == 404


async def test_shared_instructions_are_read_by_all_and_changed_by_their_owner(
    guarded: Service, make_key: MakeKey
) -> None:
    client = guarded.client
    alice, bob = bearer(await make_key("alice", scopes=tuple(Scope))), bearer(await make_key("bob"))
    body = {"name": "All", "text": "Said to all.", "shared": True}
    assert (await client.post("/instructions/", json=body, headers=bob)).status_code == 403
    id_ = (await client.post("/instructions/", json=body, headers=alice)).json()["id"]
    seen = (await client.get(f"/instructions/{id_}", headers=bob)).json()
    assert (seen["own"], seen["shared"], seen["whole"]) == (False, True, "Said to all.")
    assert (await client.put(f"/instructions/{id_}", json=body, headers=bob)).status_code == 404
    assert (await client.delete(f"/instructions/{id_}", headers=bob)).status_code == 404
    child = await client.post("/instructions/", json={"name": "C", "text": "c", "parent_id": id_}, headers=bob)
    assert child.json()["whole"] == "Said to all.\n\nc"
    private = await client.put(f"/instructions/{id_}", json=body | {"shared": False}, headers=alice)
    assert (private.status_code, private.json()["code"]) == (409, "instructions_in_use")
