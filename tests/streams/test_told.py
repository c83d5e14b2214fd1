"""Rows that go along with the notifications of them."""

import asyncio
from typing import Any
from uuid import uuid4

import pytest
from pydantic_core import from_json

from app.db.engine import Database
from app.queue.events import ROWS_CHANNEL, EventStore, Stored, rows_told
from app.queue.store import QueueStore
from app.services import streams
from app.services.channels import Channel
from tests.service import Service, eventually
from tests.streams.follower import Follower
from tests.streams.test_events import claimed, said, settlement

LARGE = "漢字" * 1500


async def test_all_that_is_written_is_told_in_order_and_large_rows_without_their_text(
    store: QueueStore, database: Database, rows: Any
) -> None:
    told: list[str] = []
    await rows.add_listener(ROWS_CHANNEL, lambda *call: told.append(call[-1]))
    claims = [await claimed(store) for _ in range(30)]
    texts = [["é\n" * 200, LARGE if place == 7 else "b", "c"] for place, claim in enumerate(claims)]
    await EventStore(database).write(
        [
            said(claim, text, sequence=sequence)
            for claim, its in zip(claims, texts, strict=True)
            for sequence, text in enumerate(its)
        ]
    )

    async def all_told() -> bool:
        return sum(len(list(rows_told(payload))) for payload in told) == 90

    await eventually(all_told, "all rows are told")
    assert len(told) > 1
    assert max(len(payload.encode()) for payload in told) < 8000
    read = [row for payload in told for row in rows_told(payload)]
    expected = sorted((c.id, n, text) for c, its in zip(claims, texts, strict=True) for n, text in enumerate(its))
    assert [(id_, sequence) for id_, sequence, _ in read] == [row[:2] for row in expected]
    assert [choices and from_json(choices)[0]["text"] for _, _, choices in read] == [
        None if text == LARGE else text for _, _, text in expected
    ]


async def test_a_told_row_is_sent_without_a_read_and_what_is_missing_is_read(
    api: Service, store: QueueStore, database: Database, rows: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Nothing is looked for but what notifications make it look for.
    monkeypatch.setattr(streams, "LOOK_AGAIN_SECONDS", 3600.0)
    claim = await claimed(store)
    follower = Follower(str(claim.id))
    following = asyncio.create_task(follower.follow(api))
    writer = EventStore(database)
    texts = ["a", "b", "c", "d", LARGE, "f"]

    async def seen(number: int) -> None:
        async def there() -> bool:
            return len(follower.seen) == number

        await eventually(there, f"{number} events are sent", seconds=10)

    def row(sequence: int) -> str:
        return said(claim, texts[sequence], len("".join(texts[:sequence]))).choices

    async def keep(sequence: int) -> None:
        await rows.execute(
            "INSERT INTO result_events (result_id, sequence, attempt, choices) VALUES ($1, $2, 1, $3::text::jsonb)",
            claim.id,
            sequence,
            row(sequence),
        )

    async def tell(sequence: int) -> None:
        await rows.execute("SELECT pg_notify($1, $2)", ROWS_CHANNEL, f"{claim.id} {sequence} {row(sequence)}")

    await writer.write([said(claim, "a")])
    await seen(1)
    # It is not stored, so nobody can have read it.
    await tell(1)
    await tell(1)
    await seen(2)
    # The notification of 2 is lost.
    for sequence in (1, 2, 3):
        await keep(sequence)
    await tell(3)
    await seen(4)
    await writer.write([said(claim, LARGE, 4, 4)])
    await seen(5)
    # The listening connection is lost with a notification.
    await rows.execute(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
        " WHERE datname = current_database() AND query LIKE 'LISTEN%'"
    )
    await writer.write([said(claim, "f", 4 + len(LARGE), 5)])
    await seen(6)
    await store.settle([settlement(claim, "".join(texts))])
    (await following).check()
    assert [message.data["deltas"][0]["text"] for message in follower.seen] == texts


def test_a_read_that_began_before_a_row_was_told_adds_it_once() -> None:
    id_ = uuid4()
    channel = Channel(id_)
    first, second, third = ([{"index": 0, "at": at, "text": text}] for at, text in enumerate("abc"))
    channel.take(Stored(id_, [(0, first)], False, False), None)
    assert channel.expects(1)
    assert not channel.expects(2)
    channel.append(1, second)
    channel.take(Stored(id_, [(1, second), (2, third)], False, False), None)
    assert [event.deltas[0].text for event in channel.events] == ["a", "b", "c"]
    assert channel.has(2)
    assert not channel.has(3)


def test_a_row_is_not_taken_before_those_that_were_there_are_read() -> None:
    assert not Channel(uuid4()).expects(0)
