"""UUIDv7 (RFC 9562): ids that sort by the time they were made."""

import os
import threading
import time
from datetime import UTC, datetime
from uuid import UUID

FIRST_ID, LAST_ID = UUID(int=0), UUID(int=(1 << 128) - 1)

_lock = threading.Lock()
_last_ms = 0
_counter = 0


def uuid7() -> UUID:
    """A new id; ids of one process are strictly increasing, also within a millisecond."""
    global _last_ms, _counter
    random = int.from_bytes(os.urandom(10))
    with _lock:
        now_ms = time.time_ns() // 1_000_000
        if now_ms > _last_ms:
            _last_ms = now_ms
            _counter = random >> 69
        else:
            _counter += 1
            if _counter > 0xFFF:
                _last_ms += 1
                _counter = 0
        ms, counter = _last_ms, _counter
    return UUID(int=(ms << 80) | (0x7 << 76) | (counter << 64) | (0b10 << 62) | random & ((1 << 62) - 1))


def id_in_order(ms: int, place: int) -> UUID:
    """An id of that millisecond, where `place` orders it among others; 4,096 of them share a millisecond."""
    random = int.from_bytes(os.urandom(8)) & ((1 << 62) - 1)
    return UUID(int=(ms + (place >> 12) << 80) | (0x7 << 76) | ((place & 0xFFF) << 64) | (0b10 << 62) | random)


def time_of(id_: UUID) -> datetime:
    """When a UUIDv7 was made, to the millisecond, in UTC."""
    return datetime.fromtimestamp((id_.int >> 80) / 1000, UTC)


def lowest_at(moment: datetime) -> UUID:
    """The lowest id that could have been made in the millisecond of `moment`."""
    ms = max(0, min(int(moment.timestamp() * 1000), (1 << 48) - 1))
    return UUID(int=ms << 80)


def end_of(moment: datetime) -> UUID:
    """The lowest id that could have been made after the millisecond of `moment`."""
    return UUID(int=lowest_at(moment).int + (1 << 80))
