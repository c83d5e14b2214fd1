"""How many bytes of request bodies this process holds at once."""

from __future__ import annotations

from typing import Self

from app.config import Settings
from app.errors import BodiesFull

RETRY_SECONDS = 2
# Bodies up to this size, in bytes, have a sixteenth more room: they are taken while large ones fill the rest.
SMALL_BODY = 64 * 1024
SMALL_SHARE = 16


class BodyRoom:
    """`MAX_BODIES_BYTES`, shared by the requests under way, each from its body's first byte to the answer's last."""

    def __init__(self, settings: Settings) -> None:
        self._room = settings.max_bodies_bytes
        self._held = 0

    def share(self) -> Share:
        """What one request holds, nothing at first; all of it is free again at the end of a `with`."""
        return Share(self)

    def exchange(self, held: int, size: int) -> None:
        room = self._room + (self._room // SMALL_SHARE if size <= SMALL_BODY else 0)
        if size > held and self._held - held + size > room:
            raise BodiesFull(
                "The requests under way hold as many bytes as this process has room for, and nothing of this one was "
                "kept: send it again after Retry-After. Small requests are taken meanwhile. If that does not help, "
                "whoever runs the service has to start more APIs, or give them more memory and raise MAX_BODIES_BYTES.",
                headers={"Retry-After": str(RETRY_SECONDS), "Connection": "close"},
            )
        self._held += size - held

    def free(self, held: int) -> None:
        self._held -= held


class Share:
    """What one request holds, in bytes."""

    def __init__(self, room: BodyRoom) -> None:
        self._room = room
        self.held = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._room.free(self.held)

    def hold(self, size: int) -> None:
        """Holds `size` bytes instead of what it held.

        Raises:
            BodiesFull: there is no room for more.
        """
        self._room.exchange(self.held, size)
        self.held = size
