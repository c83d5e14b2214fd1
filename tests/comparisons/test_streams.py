"""All results of a comparison in one stream: whole, resumed, and to the end of the last."""

import asyncpg
import pytest

from tests.comparisons.follower import ComparisonFollower
from tests.comparisons.test_comparisons import compare
from tests.service import Service

SLOWLY = {"content": "[[sim:slow=20]]", "parameters": {"max_tokens": 30, "ignore_eos": True}, "stream": True}


async def test_every_result_comes_in_parts_and_ends(service: Service) -> None:
    made = await compare(service, [{"model": "tiny"}, {"model": "slow"}, {"model": "tiny"}], **SLOWLY)
    follower = await ComparisonFollower(made["id"]).follow(service)
    follower.check()
    ids = [entry["result_id"] for entry in made["entries"]]
    assert set(follower.results) == set(ids)
    assert follower.models == dict(zip(ids, ("tiny", "slow", "tiny"), strict=True))
    assert follower.cursor == "end,end,end"
    assert len(follower.cursors) > 15
    for id_ in ids:
        assert follower.results[id_] == await service.result(id_)


async def test_a_client_that_drops_again_and_again_misses_nothing(service: Service) -> None:
    made = await compare(service, **SLOWLY)
    follower = ComparisonFollower(made["id"])
    drops = 0
    while len(follower.results) < 2:
        await follower.follow(service, most=3)
        drops += 1
    follower.check()
    assert drops > 2
    assert follower.signals == []


async def test_whoever_has_seen_all_ends_is_told_to_stop(service: Service) -> None:
    made = await compare(service, parameters={"max_tokens": 3})
    follower = await ComparisonFollower(made["id"]).follow(service)
    url = f"/comparisons/{made['id']}/stream"
    again = await service.client.get(url, headers={"Last-Event-ID": str(follower.cursor)})
    assert again.status_code == 204
    rest = await service.client.get(url, params={"starting_after": "end,-"})
    assert rest.text.count("event: completed") == 1


async def test_one_that_fails_is_an_event_among_others(service: Service) -> None:
    entries = [{"model": "tiny", "parameters": {"logprobs": 900}}, {"model": "slow"}]
    made = await compare(service, entries, **SLOWLY)
    follower = await ComparisonFollower(made["id"]).follow(service)
    follower.check()
    statuses = [follower.results[entry["result_id"]]["status"] for entry in made["entries"]]
    assert statuses == ["failed", "completed"]


async def test_a_cursor_whose_events_are_gone_begins_anew(service: Service) -> None:
    made = await compare(service, **SLOWLY)
    follower = await ComparisonFollower(made["id"]).follow(service, most=4)
    whole = await ComparisonFollower(made["id"]).follow(service)
    connection = await asyncpg.connect(service.settings.database_url)
    await connection.execute("UPDATE results SET completed_at = completed_at - interval '1 day'")
    await connection.execute("DELETE FROM result_events")
    await connection.close()
    await follower.follow(service)
    assert follower.signals
    assert {signal for signal, _ in follower.signals} == {"restarted"}
    assert follower.texts == whole.texts


async def test_a_result_that_was_removed_ends_nothing_else(service: Service) -> None:
    made = await compare(service, parameters={"max_tokens": 3})
    await ComparisonFollower(made["id"]).follow(service)
    removed, kept = (entry["result_id"] for entry in made["entries"])
    connection = await asyncpg.connect(service.settings.database_url)
    await connection.execute("DELETE FROM results WHERE id = $1", removed)
    await connection.close()
    follower = await ComparisonFollower(made["id"]).follow(service)
    assert follower.signals == [("removed", removed)]
    assert set(follower.results) == {kept}
    assert follower.cursor == "end,end"


@pytest.mark.parametrize("cursor", ["", "1", "1,2,3", "1,x", "-1,0", "end", "²,1", "99999999999,0", "x" * 300])
async def test_a_cursor_that_is_none_is_refused(api: Service, cursor: str) -> None:
    made = await compare(api)
    url = f"/comparisons/{made['id']}/stream"
    answer = await api.client.get(url, headers={"Last-Event-ID": cursor.encode("latin-1")})
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid_request")


async def test_a_cursor_beyond_the_end_is_refused(service: Service) -> None:
    made = await compare(service, parameters={"max_tokens": 3})
    await ComparisonFollower(made["id"]).follow(service)
    answer = await service.client.get(f"/comparisons/{made['id']}/stream", params={"starting_after": "-,5000"})
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid_request")
    assert made["entries"][1]["result_id"] in answer.json()["detail"]
