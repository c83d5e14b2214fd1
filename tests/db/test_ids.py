"""UUIDv7."""

import itertools
import time
from datetime import UTC, datetime

from app.db.ids import lowest_at, time_of, uuid7


def test_ids_of_one_process_are_strictly_increasing() -> None:
    ids = [uuid7() for _ in range(20_000)]
    assert all(earlier < later for earlier, later in itertools.pairwise(ids))
    assert {id_.version for id_ in ids} == {7}


def test_an_id_tells_when_it_was_made() -> None:
    before = time.time()
    made = time_of(uuid7()).timestamp()
    assert before - 0.002 <= made <= time.time() + 0.05


def test_the_lowest_id_of_a_moment_bounds_all_ids_made_then() -> None:
    id_ = uuid7()
    assert lowest_at(time_of(id_)) <= id_
    assert lowest_at(datetime(1, 1, 2, tzinfo=UTC)).int == 0
