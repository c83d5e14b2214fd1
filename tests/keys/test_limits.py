"""The limits of a key: exact in one process, a second apart over several, and nothing is stored on a refusal."""

import asyncio
import re
from collections.abc import Callable
from typing import Any
from uuid import UUID

import pytest

from app.config import Settings
from app.db.engine import Database
from app.db.ids import uuid7
from app.key_errors import PendingLimitReached
from app.services.callers import ANONYMOUS, Caller
from app.services.limits import REFRESH_SECONDS, Limits
from app.services.standing import Window, duration
from tests.api.test_bad_input import check_problem
from tests.keys.conftest import MakeKey, bearer
from tests.service import Service, eventually, running_api


async def stored(rows: Any) -> int:
    return int(await rows.fetchval("SELECT count(*) FROM results"))


async def send(service: Service, key: str, context: str, headers: dict[str, str] | None = None) -> Any:
    return await service.client.post(f"/models/send/tiny/{context}", headers=bearer(key) | (headers or {}))


async def context_of(service: Service, key: str) -> str:
    answer = await service.client.post("/contexts/", json={"content": "x"}, headers=bearer(key))
    assert answer.status_code == 201, answer.text
    return str(answer.json()["id"])


def seconds_of(text: str) -> float:
    parts = re.fullmatch(r"(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s)?(?:(\d+)ms)?", text)
    assert parts, text
    hours, minutes, seconds, thousandths = (int(part or 0) for part in parts.groups())
    return hours * 3600 + minutes * 60 + seconds + thousandths / 1000


async def test_exactly_as_many_requests_as_allowed_get_through(guarded: Service, make_key: MakeKey, rows: Any) -> None:
    key = await make_key(requests_per_minute=20)
    context = await context_of(guarded, key)
    answers = await asyncio.gather(*(send(guarded, key, context) for _ in range(50)))
    taken = [answer for answer in answers if answer.status_code == 202]
    refused = [answer for answer in answers if answer.status_code == 429]
    assert (len(taken), len(refused)) == (20, 30)
    assert await stored(rows) == 20
    left = sorted(int(answer.headers["x-ratelimit-remaining-requests"]) for answer in taken)
    assert left[0] == 0
    assert left[-1] <= 19
    for answer in refused:
        check_problem(answer, 429, "request_limit_reached", "20 requests")
        assert answer.headers["x-ratelimit-limit-requests"] == "20"
        assert answer.headers["x-ratelimit-remaining-requests"] == "0"
        assert 50 <= int(answer.headers["retry-after"]) <= 61
        assert 50 <= seconds_of(answer.headers["x-ratelimit-reset-requests"]) <= 61


async def test_looking_is_not_counted_but_shows_what_is_left(guarded: Service, make_key: MakeKey) -> None:
    key = await make_key(requests_per_minute=3, tokens_per_day=500)
    context = await context_of(guarded, key)
    assert (await send(guarded, key, context)).status_code == 202
    for path in ("/results/", "/contexts/", "/usage", "/nowhere"):
        answer = await guarded.client.get(path, headers=bearer(key))
        assert answer.headers["x-ratelimit-remaining-requests"] == "2", path
        assert answer.headers["x-ratelimit-limit-tokens"] == answer.headers["x-ratelimit-remaining-tokens"] == "500"
        assert 0 < seconds_of(answer.headers["x-ratelimit-reset-tokens"]) <= 86400
    unlimited = await guarded.client.get("/results/", headers=bearer(await make_key("bob")))
    assert not [name for name in unlimited.headers if name.startswith("x-ratelimit")]


async def test_a_refusal_comes_before_the_body_is_read(guarded: Service, make_key: MakeKey) -> None:
    key = await make_key(requests_per_minute=1)
    context = await context_of(guarded, key)
    assert (await send(guarded, key, context)).status_code == 202
    url = guarded.client.base_url
    reader, writer = await asyncio.open_connection(url.host, url.port)
    writer.write(
        f"POST /models/send/tiny/{context} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {key}\r\n"
        "Content-Type: application/json\r\nContent-Length: 1000\r\n\r\n".encode()
    )
    status = await asyncio.wait_for(reader.readline(), 5)
    writer.close()
    assert status.split()[1] == b"429"


async def test_below_v1_a_limit_has_openais_shape(guarded: Service, make_key: MakeKey) -> None:
    key = await make_key(requests_per_minute=1)
    context = await context_of(guarded, key)
    assert (await send(guarded, key, context)).status_code == 202
    answer = await guarded.client.post("/v1/chat/completions", json={}, headers=bearer(key))
    assert (answer.status_code, answer.json()["error"]["code"]) == (429, "request_limit_reached")
    assert answer.headers["retry-after"]
    assert answer.headers["x-ratelimit-remaining-requests"] == "0"


async def test_keys_of_one_owner_have_limits_of_their_own(guarded: Service, make_key: MakeKey) -> None:
    one, other = [await make_key(name, owner="team", requests_per_minute=1) for name in ("one", "other")]
    context = await context_of(guarded, one)
    assert [(await send(guarded, key, context)).status_code for key in (one, one, other, other)] == [202, 429, 202, 429]


async def test_several_processes_learn_of_each_other_within_a_second(
    make_settings: Callable[..., Settings], make_key: MakeKey, rows: Any
) -> None:
    key = await make_key(requests_per_minute=10)
    settings = make_settings(auth_required=True)
    async with running_api(settings) as one, running_api(settings) as other:
        context = await context_of(one, key)
        assert [(await send(one, key, context)).status_code for _ in range(6)] == [202] * 6

        async def known() -> bool:
            answer = await other.client.get("/results/", headers=bearer(key))
            return answer.headers["x-ratelimit-remaining-requests"] == "4"

        await eventually(known, "the other process knows", seconds=2 * REFRESH_SECONDS + 0.5)
        answers = [(await send(other, key, context)).status_code for _ in range(6)]
        assert answers == [202] * 4 + [429] * 2
    assert await stored(rows) == 10
    # Both have stopped, and their counts stay.
    assert await rows.fetchval("SELECT sum(requests) FROM request_counts") >= 6


async def test_counts_that_could_not_be_sent_are_sent_later(make_key: MakeKey, database: Database, rows: Any) -> None:
    await make_key(requests_per_minute=10)
    key = await rows.fetchrow("SELECT id, owner_id FROM api_keys")
    caller = Caller(key["owner_id"], key["id"], requests_per_minute=10)
    limits = Limits(database)
    for _ in range(3):
        await limits.admit(caller, work=True, counts=True)
    await rows.execute("ALTER TABLE request_counts RENAME TO hidden")
    sharing = asyncio.create_task(limits.share())
    try:
        await asyncio.sleep(2 * REFRESH_SECONDS)
        for _ in range(2):
            await limits.admit(caller, work=True, counts=True)
        assert limits.headers(caller)["x-ratelimit-remaining-requests"] == "5"
        await rows.execute("ALTER TABLE hidden RENAME TO request_counts")

        async def all_sent() -> bool:
            return await rows.fetchval("SELECT sum(requests) FROM request_counts") == 5

        await eventually(all_sent, "every count arrives once")
        await asyncio.sleep(2 * REFRESH_SECONDS)
        assert await all_sent()
        assert limits.headers(caller)["x-ratelimit-remaining-requests"] == "5"
    finally:
        sharing.cancel()


async def test_no_more_tickets_are_pending_than_allowed(guarded: Service, make_key: MakeKey, rows: Any) -> None:
    key = await make_key(pending_limit=5)
    context = await context_of(guarded, key)
    answers = await asyncio.gather(*(send(guarded, key, context) for _ in range(20)))
    taken = [answer.json()["result_id"] for answer in answers if answer.status_code == 202]
    assert (len(taken), await stored(rows)) == (5, 5)
    refused = next(answer for answer in answers if answer.status_code == 429)
    check_problem(refused, 429, "pending_limit_reached", "5 tickets")
    assert refused.headers["retry-after"] == "1"

    for id_ in taken[:2]:
        await guarded.client.post(f"/results/{id_}/cancel", headers=bearer(key))

    async def room() -> bool:
        return (await send(guarded, key, context)).status_code == 202

    await eventually(room, "an ended ticket makes room")
    await eventually(room, "the second one too")
    assert (await send(guarded, key, context)).status_code == 429
    retried = await guarded.client.post(f"/results/{taken[0]}/retry", headers=bearer(key))
    check_problem(retried, 429, "pending_limit_reached")
    assert await stored(rows) == 7


async def test_tickets_of_the_same_key_count_wherever_they_were_made(
    make_settings: Callable[..., Settings], make_key: MakeKey, rows: Any
) -> None:
    key = await make_key(pending_limit=4)
    settings = make_settings(auth_required=True)
    async with running_api(settings) as one, running_api(settings) as other:
        context = await context_of(one, key)
        answers = [(await send(one, key, context)).status_code for _ in range(6)]
        assert answers == [202] * 4 + [429] * 2

        async def refused() -> bool:
            return (await send(other, key, context)).status_code == 429

        # Its first look is at the tables: nothing gets through here.
        assert await refused()
        await rows.execute(
            "UPDATE results SET status = 'failed', completed_at = now(), error_code = 'x',"
            " error_message = 'x' WHERE id = (SELECT min(id::text)::uuid FROM results)"
        )
        await eventually(lambda: _taken(other, key, context), "the room is found")
        await eventually(refused, "it is used up")

        async def refused_by_one() -> bool:
            return (await send(one, key, context)).status_code == 429

        # It may have seen the room before the other process took it.
        await eventually(refused_by_one, "the first process knows")
        assert await stored(rows) in (5, 6)


async def _taken(service: Service, key: str, context: str) -> bool:
    return bool((await send(service, key, context)).status_code == 202)


async def test_many_tickets_at_once_need_room_for_all(make_key: MakeKey, database: Database, rows: Any) -> None:
    await make_key(pending_limit=10)
    key = await rows.fetchrow("SELECT id, owner_id FROM api_keys")
    caller = Caller(key["owner_id"], key["id"], pending_limit=10)
    limits = Limits(database)
    async with limits.storing(caller, [uuid7() for _ in range(8)]):
        with pytest.raises(PendingLimitReached, match="3 more"):
            async with limits.storing(caller, [uuid7() for _ in range(3)]):
                pass
        async with limits.storing(caller, [uuid7() for _ in range(2)]):
            pass
    async with limits.storing(ANONYMOUS, [UUID(int=1)] * 100):
        pass


async def test_tokens_of_today_count_and_those_of_yesterday_do_not(
    guarded: Service, make_key: MakeKey, rows: Any
) -> None:
    key = await make_key(tokens_per_day=100)
    id_, owner_id = await rows.fetchrow("SELECT id, owner_id FROM api_keys")
    context = await context_of(guarded, key)

    async def use(days_ago: int, tokens: int) -> None:
        await rows.execute(
            "INSERT INTO usage VALUES ((now() AT TIME ZONE 'UTC')::date - $1::int, $2, $3, 'tiny', 1, 0, $4, 1, 0)",
            days_ago,
            owner_id,
            id_,
            tokens - 1,
        )

    async def left() -> str:
        answer = await guarded.client.get("/results/", headers=bearer(key))
        return str(answer.headers["x-ratelimit-remaining-tokens"])

    async def left_is(expected: str) -> None:
        async def seen() -> bool:
            return await left() == expected

        await eventually(seen, f"{expected} tokens are left")

    await use(1, 1000)
    await use(0, 99)
    await left_is("1")
    assert (await send(guarded, key, context)).status_code == 202
    await use(0, 50)
    await left_is("0")
    answer = await send(guarded, key, context)
    check_problem(answer, 429, "token_limit_reached", "100 tokens", "149", "UTC")
    assert 0 < int(answer.headers["retry-after"]) <= 86400
    assert await stored(rows) == 1


async def test_a_limited_key_costs_no_query_per_request(make_key: MakeKey, database: Database, rows: Any) -> None:
    await make_key(requests_per_minute=1000)
    key = await rows.fetchrow("SELECT id, owner_id FROM api_keys")
    caller = Caller(key["owner_id"], key["id"], requests_per_minute=1000, tokens_per_day=10**9, pending_limit=100)
    limits = Limits(database)
    await limits.admit(caller, work=True, counts=True)
    await rows.execute("ALTER TABLE request_counts RENAME TO hidden")
    for _ in range(200):
        await limits.admit(caller, work=True, counts=True)
        async with limits.storing(ANONYMOUS, [uuid7()]):
            pass
    assert limits.headers(caller)["x-ratelimit-remaining-requests"] == "799"


def test_a_window_never_holds_more_than_its_minute() -> None:
    window = Window()
    for _ in range(3):
        window.count(1000.9)
    window.count(1030.0)
    assert window.used(1059.0) == 4
    assert window.used(1060.99) == 4
    assert window.used(1061.0) == 1
    assert window.until_one_leaves(1031.0) == 30.0
    assert window.until_empty(1031.0) == 60.0
    assert Window().until_empty(5.0) == 0.0


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.0174, "17ms"), (0.0, "0ms"), (1.2, "1s"), (59.6, "1m0s"), (360, "6m0s"), (3723, "1h2m3s"), (86400, "24h0m0s")],
)
def test_durations_are_written_as_openai_does(seconds: float, text: str) -> None:
    assert duration(seconds) == text
