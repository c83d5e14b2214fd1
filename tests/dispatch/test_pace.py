"""A long loop and what else its process does."""

import asyncio
import time

from app.background import Pace

WORK = 0.0005
STEPS = 200


def spend(seconds: float) -> None:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        pass


async def work(pace: Pace) -> float:
    """Seconds that so many steps take."""
    began = time.monotonic()
    for _ in range(STEPS):
        spend(WORK)
        await pace.step()
    return time.monotonic() - began


async def test_others_get_their_turn_and_as_much_time() -> None:
    turns = 0

    async def other() -> None:
        nonlocal turns
        while True:
            turns += 1
            spend(WORK)
            await asyncio.sleep(0)

    task = asyncio.create_task(other())
    await work(Pace())
    task.cancel()
    # Each time it gives way the other gets the two rounds of looking, and what fits into the pause.
    assert turns > STEPS * WORK / 0.002


async def test_what_arrives_meanwhile_is_done_before_the_loop_goes_on() -> None:
    """A timer that is due runs within a slice or two, however long the loop is."""
    order: list[str] = []

    async def long() -> None:
        pace = Pace()
        for _ in range(STEPS):
            spend(WORK)
            await pace.step()
        order.append("loop")

    loop = asyncio.get_running_loop()
    loop.call_later(0.005, order.append, "timer")
    await long()
    assert order == ["timer", "loop"]
