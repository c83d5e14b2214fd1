"""Stored prompts over HTTP."""

import asyncio

from tests.service import Service


async def test_a_context_comes_back_as_it_was_stored(api: Service) -> None:
    content = 'A line\nand "another" — ünïcode 🙂 \u2028 \t'
    metadata = {"source": "tests", "nested": {"list": [1, 2.5, None, True]}}
    created = await api.client.post("/contexts/", json={"content": content, "metadata": metadata})
    assert created.status_code == 201
    body = created.json()
    assert created.headers["location"] == f"/contexts/{body['id']}"
    assert set(body) == {"id", "content", "inputs", "metadata", "created_at"}
    found = await api.client.get(created.headers["location"])
    assert found.status_code == 200
    assert found.json() == body
    assert (body["content"], body["metadata"]) == (content, metadata)


async def test_metadata_is_optional(api: Service) -> None:
    id_ = await api.context("plain")
    assert (await api.client.get(f"/contexts/{id_}")).json()["metadata"] is None


async def test_pages_are_newest_first_and_cover_everything_once(api: Service) -> None:
    made = [await api.context(f"prompt {number}") for number in range(7)]
    seen: list[str] = []
    url: str | None = "/contexts/?limit=3"
    sizes = []
    while url:
        page = await api.client.get(url)
        assert page.status_code == 200
        sizes.append(len(page.json()))
        seen += [context["id"] for context in page.json()]
        url = page.links.get("next", {}).get("url")
    assert seen == made[::-1]
    assert sizes == [3, 3, 1]


async def test_a_full_last_page_has_no_next(api: Service) -> None:
    for number in range(4):
        await api.context(f"prompt {number}")
    first = await api.client.get("/contexts/?limit=2")
    last = await api.client.get(first.links["next"]["url"])
    assert len(last.json()) == 2
    assert "next" not in last.links


async def test_a_page_of_large_contexts_ends_early_and_goes_on(api: Service) -> None:
    made = [await api.context("x" * 1_000_000) for _ in range(10)]
    first = await api.client.get("/contexts/")
    rest = await api.client.get(first.links["next"]["url"])
    assert (len(first.json()), len(rest.json())) == (8, 2)
    assert [context["id"] for context in first.json() + rest.json()] == made[::-1]
    assert "next" not in rest.links


async def test_time_filters_are_exclusive_bounds(api: Service) -> None:
    made = []
    for number in range(3):
        id_ = await api.context(f"prompt {number}")
        made.append((await api.client.get(f"/contexts/{id_}")).json())
        await asyncio.sleep(0.002)
    middle = made[1]["created_at"]
    after = await api.client.get("/contexts/", params={"created_after": middle})
    before = await api.client.get("/contexts/", params={"created_before": middle})
    assert [context["id"] for context in after.json()] == [made[2]["id"]]
    assert [context["id"] for context in before.json()] == [made[0]["id"]]
