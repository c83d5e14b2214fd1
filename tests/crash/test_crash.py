"""A short run of the kit, and proof that it would see what it looks for."""

from itertools import pairwise
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from tests.crash.batches import Sent, wrong_with
from tests.crash.check import Evidence, judge
from tests.crash.kit import Diary, Options, crash
from tests.crash.load import Tally
from tests.crash.schedule import Act, Target, draw, lanes
from tests.crash.stack import LEASE_SECONDS

SEED = 13
TICKET = UUID(int=1)


@pytest.mark.parametrize("seconds", [15.0, pytest.param(60.0, marks=pytest.mark.long)])
async def test_every_promise_holds_under_blows(tmp_path: Path, seconds: float) -> None:
    options = Options(SEED, seconds, rate=150, patience=60, backlog=1000, mixed=True)
    diary = Diary(tmp_path / "events.log")
    report = await crash(options, draw(SEED, seconds, LEASE_SECONDS, mixed=True), tmp_path, diary, lambda *_: None)
    diary.close()
    assert report.problems == [], f"seed {SEED}, see {diary.path}"
    verdict = report.verdict
    assert verdict.acknowledged > 100
    assert verdict.settled == verdict.acknowledged + verdict.unacknowledged == verdict.completed + verdict.cancelled
    assert verdict.cancelled
    assert verdict.batches
    assert {entry.target for entry in report.recoveries} >= {
        Target.API,
        Target.DISPATCHER,
        Target.POSTGRES,
        Target.LLAMA,
    }


def test_a_seed_draws_one_schedule() -> None:
    assert draw(1, 300, 3) == draw(1, 300, 3) != draw(2, 300, 3)


def test_a_schedule_deals_every_trick_and_heals_in_time() -> None:
    plan = draw(3, 300, 3, mixed=True)
    assert plan[:-1] == draw(3, 300, 3)
    assert {(blow.target, blow.act) for lane in plan for blow in lane} == {
        (trick.target, trick.act) for lane in lanes(3, mixed=True) for trick in lane.tricks
    }
    for lane in plan:
        for blow, following in pairwise(lane):
            assert blow.at + blow.hold < following.at
        assert lane[-1].at + lane[-1].hold <= 300
    freezes = [blow.hold for lane in plan for blow in lane if blow.act is Act.FREEZE]
    assert min(freezes) < 3 < max(freezes)


def row(**changes: Any) -> dict[str, Any]:
    return {
        "id": TICKET, "client_reference": "a", "status": "completed", "error_code": None, "attempt_count": 1,
        "cancel_requested": False, "hash": 1, "ended": 1.0, **changes,
    }  # fmt: skip


def attempt(outcome: str, number: int = 1) -> dict[str, Any]:
    code = None if outcome == "completed" else outcome
    return {"result_id": TICKET, "number": number, "outcome": outcome, "error_code": code, "dispatcher": "d"}


def problems(rows: list[Any], ledger: list[Any], changes: set[UUID] | None = None, seen: int = 1) -> list[str]:
    tally = Tally(acknowledged={TICKET: 1.0}, keyed={"a"})
    return judge(Evidence(rows, ledger, changes or set()), tally, {TICKET: seen}).problems


def test_the_check_accepts_what_is_right() -> None:
    assert problems([row()], [attempt("completed")]) == []
    assert problems([row(attempt_count=2)], [attempt("lease_lost"), attempt("completed", 2)]) == []


@pytest.mark.parametrize(
    ("found", "said"),
    [
        (([], []), "lost"),
        (([row(status="pending")], []), "stuck"),
        (([row()], [attempt("completed")], {TICKET}), "changed after they were final"),
        (([row()], [attempt("completed")], set(), 2), "changed after they were final"),
        (([row(attempt_count=2)], [attempt("completed"), attempt("completed", 2)]), "settled twice"),
        (([row(attempt_count=2)], [attempt("completed")]), "ledger"),
        (([row()], [attempt("retried")]), "ledger"),
        (([row(status="failed", error_code="engine_died")], [attempt("failed")]), "failed with engine_died"),
        (([row(status="failed", error_code="cancelled", attempt_count=0)], []), "nobody asked"),
        (([row(), row(id=UUID(int=2))], [attempt("completed")]), "made two tickets"),
    ],
)
def test_the_check_sees(found: tuple[Any, ...], said: str) -> None:
    assert any(said in problem for problem in problems(*found))


def test_the_check_of_batches_sees_what_is_wrong_with_their_files() -> None:
    assert wrong_with(Sent("b", 12, status="completed", answers=[str(number) for number in range(12)])) == []
    cancelled = Sent("b", 2, cancelled=True, status="cancelled", answers=["1"], errors=[("0", "batch_cancelled")])
    assert wrong_with(cancelled) == []
    for sent, said in (
        (Sent("b", 2), "not at its end"),
        (Sent("b", 2, status="cancelled", answers=["0", "1"]), "is cancelled"),
        (Sent("b", 2, status="completed", answers=["0"]), "lacks 1 of 2 lines, for example 1"),
        (Sent("b", 2, status="completed", answers=["0", "1", "1"]), "1 lines more than once"),
        (Sent("b", 2, status="completed", answers=["1", "0"]), "another order"),
        (Sent("b", 2, status="completed", answers=["0"], errors=[("1", "x")]), "failed with x"),
    ):
        assert any(said in each for each in wrong_with(sent)), sent
