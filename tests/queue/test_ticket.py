"""The rules that need no database."""

from datetime import UTC, datetime, timedelta

import pytest

from app.queue.ticket import BACKOFF_LONGEST_SECONDS, Phase, Status, backoff_seconds, phase_of, rank_of

NOW = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.mark.parametrize(
    ("status", "claimed", "cancel", "phase"),
    [
        (Status.PENDING, False, False, Phase.QUEUED),
        (Status.PENDING, True, False, Phase.RUNNING),
        (Status.PENDING, True, True, Phase.CANCELLING),
        (Status.PENDING, False, True, Phase.CANCELLING),
        (Status.COMPLETED, False, True, None),
        (Status.FAILED, False, False, None),
    ],
)
def test_phases(status: Status, claimed: bool, cancel: bool, phase: Phase | None) -> None:
    assert phase_of(status, claimed=claimed, cancel_requested=cancel) == phase


def test_a_higher_priority_goes_first_and_a_low_one_rises() -> None:
    low = rank_of(NOW, 0, 60)
    assert rank_of(NOW + timedelta(seconds=59), 1, 60) < low
    assert rank_of(NOW + timedelta(seconds=61), 1, 60) > low
    assert rank_of(NOW, -1, 60) > low


def test_backoff_doubles_up_to_its_limit_with_jitter() -> None:
    assert [backoff_seconds(n, draw=1.0) for n in (1, 2, 3)] == [1, 2, 4]
    assert backoff_seconds(1, draw=0.0) == 0.5
    assert backoff_seconds(50, draw=1.0) == BACKOFF_LONGEST_SECONDS
    drawn = {backoff_seconds(3) for _ in range(20)}
    assert len(drawn) > 1
    assert all(2 <= seconds <= 4 for seconds in drawn)
