"""Work that expires soon goes in time for it, before work of its owner and priority that can wait, within bounds."""

import random
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple
from uuid import UUID

from app.db.ids import uuid7
from app.queue.store import QueueStore
from app.queue.ticket import Submission, rank_of
from tests.service import Service

AGEING = 60.0
COUNT = 100
NOW = datetime.now(UTC)


class Ticket(NamedTuple):
    """Seconds after the beginning; without `expires`, it may come at any time."""

    number: int
    came: float
    expires: float | None
    priority: int = 0

    @property
    def due(self) -> float:
        """The rule: when it expires, or when it has waited for a step of priority."""
        due = self.came + AGEING
        return (due if self.expires is None else min(due, self.expires)) - self.priority * AGEING

    @property
    def rank(self) -> datetime:
        expires_at = None if self.expires is None else NOW + timedelta(seconds=self.expires)
        return rank_of(NOW + timedelta(seconds=self.came), self.priority, AGEING, expires_at)


def arrivals(draw: random.Random, count: int, pace: float) -> list[Ticket]:
    came, tickets = 0.0, []
    for number in range(count):
        came += draw.expovariate(1 / pace)
        slack = draw.choice([None, draw.uniform(1, AGEING), draw.uniform(AGEING, 10 * AGEING)])
        tickets.append(Ticket(number, came, None if slack is None else came + slack))
    return tickets


def served(tickets: list[Ticket], order: Any) -> dict[Ticket, float]:
    """When each is done: one at a time, each takes a second, and of those that are there the first in order goes."""
    left, waiting, now, done = list(tickets), [], 0.0, {}
    while left or waiting:
        while left and left[0].came <= now:
            waiting.append(left.pop(0))
        if not waiting:
            now = left[0].came
            continue
        ticket = min(waiting, key=order)
        waiting.remove(ticket)
        now += 1
        done[ticket] = now
    return done


def orders(draw: random.Random) -> list[Callable[[Ticket], Any]]:
    """Others that one might serve in."""
    drawn = [draw.random() for _ in range(COUNT)]
    return [
        lambda ticket: ticket.number,
        lambda ticket: (ticket.expires is None, ticket.expires or 0.0, ticket.number),
        lambda ticket: ticket.expires or ticket.came + 10 * AGEING,
        lambda ticket: ticket.expires or ticket.came + AGEING,
        lambda ticket: drawn[ticket.number],
    ]


def test_nothing_is_late_that_another_order_would_have_served_in_time() -> None:
    """Each is served when it is due or before, where any order can do that with a second to spare."""
    possible = in_order_of_arrival = 0
    for seed in range(150):
        draw = random.Random(seed)
        tickets = arrivals(draw, COUNT, draw.uniform(0.9, 1.2))
        ours = served(tickets, lambda ticket: (ticket.rank, ticket.number))
        others = [served(tickets, order) for order in orders(draw)]
        in_time = [all(done[ticket] <= ticket.due - 1 for ticket in tickets) for done in others]
        if any(in_time):
            assert all(ours[ticket] <= ticket.due for ticket in tickets), seed
            possible += 1
            in_order_of_arrival += in_time[0]
        for ticket in tickets:
            after = [other for other in tickets if other.came > ticket.came + AGEING]
            assert all(ours[other] > ours[ticket] for other in after), "more than a step of priority later"
    assert possible > 3 * in_order_of_arrival > 0, "or the order of arrival would do as well"


def test_one_that_expires_soon_overtakes_no_higher_priority_that_came_a_step_before() -> None:
    soon = Ticket(1, 0, 1)
    assert soon.rank < Ticket(0, -58, None).rank
    assert soon.rank > Ticket(0, -60, None).rank
    assert soon.rank > Ticket(0, 0, None, priority=1).rank
    assert Ticket(1, 0, 3600).rank == Ticket(1, 0, None).rank


async def test_claims_follow_the_rule(store: QueueStore, rows: Any) -> None:
    context = uuid7()
    await rows.execute("INSERT INTO contexts (id, content) VALUES ($1, 'p')", context)
    draw, waiting, came = random.Random(5), {}, 0.0
    numbers = iter(range(10_000))

    async def submit(count: int) -> None:
        nonlocal came
        tickets = []
        for _ in range(count):
            came += draw.uniform(0, 10)
            expires = draw.choice([None, came + draw.uniform(100, 100 + 2 * AGEING)])
            ticket = Ticket(next(numbers), came, expires, draw.choice([0, 0, 0, 1, -1]))
            id_ = uuid7()
            waiting[id_] = ticket
            at = NOW + timedelta(seconds=came)
            expires_at = None if expires is None else NOW + timedelta(seconds=expires)
            tickets.append(Submission(id_, context, "m", {}, ticket.priority, ticket.rank, at, expires_at=expires_at))
        await store.submit(tickets)

    async def claim(count: int) -> list[UUID]:
        slots = [("m", "s", None)] * count
        return [each.id for each in (await store.claim(slots, lease_seconds=60.0, dispatcher="d")).claims]

    for _ in range(60):
        await submit(draw.randint(1, 5))
        ids = await claim(draw.randint(1, 5))
        expected = sorted(waiting, key=lambda id_: (waiting[id_].due, waiting[id_].number))[: len(ids)]
        assert ids == expected
        for id_ in ids:
            del waiting[id_]


async def test_a_ticket_says_how_much_earlier_it_goes(api: Service) -> None:
    context = await api.context()
    plain = await api.send(context, model="tiny")
    far = await api.send(context, model="tiny", expires_in=3600)
    soon = await api.send(context, model="tiny", expires_in=20)
    waiting = {id_: (await api.result(id_))["waiting"] for id_ in (plain, far, soon)}
    assert [waiting[id_]["position"] for id_ in (soon, plain, far)] == [1, 2, 3]
    assert waiting[plain]["ahead_seconds"] is None
    assert waiting[far]["ahead_seconds"] is None
    assert 39 < waiting[soon]["ahead_seconds"] < 41
