"""Figures that take long to read are shown as they were read lately."""

import asyncio

import pytest

from app.services import lately_read
from app.services.lately_read import LatelyRead


async def test_what_takes_long_is_shown_as_it_was_and_read_once_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    # Due again at once.
    monkeypatch.setattr(lately_read, "MAX_SHARE", float("inf"))
    numbers = iter(range(100))
    slow = asyncio.Event()
    slow.set()

    async def read(key: str) -> str:
        number = next(numbers)
        if number == 2:
            raise ValueError("broken")
        await slow.wait()
        return f"{key}{number}"

    kept = LatelyRead(read)
    assert await asyncio.gather(*(kept.get("a") for _ in range(5))) == ["a0"] * 5
    slow.clear()
    assert [await kept.get("a") for _ in range(2)] == ["a0"] * 2
    slow.set()
    assert await kept.get("a") == "a1"
    with pytest.raises(ValueError, match="broken"):
        await kept.get("b")
    assert await kept.get("b") == "b3"
