"""The policy's rules, one at a time."""

from dataclasses import replace
from typing import Any

from app.capacity.forecast import sustained
from app.capacity.machines import refused_for
from app.capacity.plan import (
    Amounts,
    Budget,
    Deadline,
    Demand,
    Destroy,
    Drain,
    Failure,
    Host,
    Market,
    Measured,
    Plan,
    Pool,
    Rent,
    Spent,
    State,
    Undrain,
    WaitReason,
)
from app.capacity.policy import IDLE_BESIDE_WORK, STALLED, SUSPECT, decide
from nvidia_triton.providers.base import Offer, Removed

# Noon of a day in the middle of a month, UTC.
NOW = 1_794_916_800.0
POOL = Pool("chat", ("m",), max_hosts=4, tokens_per_second=1000, startup=300, max_price=1.0)
CHEAP = Offer("1", "m1", "A", 1, 24, 0.4, 0.01)
DEAR = Offer("2", "m2", "B", 1, 24, 0.6, 0.01)
OFFERS = Market((DEAR, CHEAP, Offer("3", "m3", "A", 1, 24, 0.7, 0.01), Offer("4", "m4", "A", 1, 24, 0.8, 0.01)))


def host(name: str = "h", state: State = State.READY, age: float = 600, **fields: Any) -> Host:
    at = NOW - age
    values = {"machine": f"m-{name}", "gpu": "A", "price": 0.4, "created": at, "since": at, "busy": NOW}
    return Host(name, "chat", state, **{**values, "progress": NOW, **fields})


def plan(
    *hosts: Host,
    waiting: int = 0,
    tokens: float = 0,
    pool: Pool = POOL,
    market: Market | None = OFFERS,
    spent: Amounts | None = None,
    failures: tuple[Failure, ...] = (),
    measured: Measured | None = None,
    **demand: Any,
) -> Plan:
    asked = {"m": Demand("m", waiting, tokens, **demand)}
    markets = {} if market is None else {"chat": market}
    sums = Spent({"chat": spent or Amounts()}, spent or Amounts())
    return decide(NOW, [pool], asked, hosts, markets, sums, failures, measured)


def rents(found: Plan) -> list[str]:
    return [action.offer.id for action in found.actions if isinstance(action, Rent)]


def test_nothing_asked_rents_nothing() -> None:
    assert plan() == Plan()


def test_first_ticket_rents_cheapest_offer_and_says_so() -> None:
    found = plan(waiting=1, tokens=300)
    assert rents(found) == ["1"]
    (waiting,) = found.waiting
    assert (waiting.reason, waiting.step, waiting.ready_at) == (WaitReason.HOST_STARTING, "wanted", NOW + 300)


def test_offers_are_asked_for_only_when_a_host_is_wanted() -> None:
    assert plan(market=None).ask == ()
    assert plan(waiting=1, tokens=300, market=None).ask == ("chat",)


def test_most_tokens_for_a_dollar_go_first_and_little_work_to_the_cheapest() -> None:
    measured = Measured({("chat", "A"): 1000.0, ("chat", "B"): 2000.0})
    assert rents(plan(waiting=9, tokens=270_000, measured=measured)) == ["2"]
    assert rents(plan(waiting=1, tokens=300, measured=measured)) == ["1"]
    # The second one has only what the first leaves.
    dear = Market((Offer("b", "b", "B", 1, 24, 0.7, 0.01), Offer("a", "a", "A", 1, 24, 0.5, 0.01)))
    assert rents(plan(waiting=9, tokens=390_000, market=dear, measured=measured)) == ["b", "a"]


def test_burst_that_has_ended_rents_no_more_than_its_backlog_needs() -> None:
    waiting: dict[str, Any] = {"waiting": 500, "tokens": 150_000}
    assert rents(plan(**waiting, arriving=2500.0)) == ["1"]
    assert rents(plan(**waiting, arriving=2500.0, lately=2500.0)) == ["1", "2", "3", "4"]


def test_tickets_count_that_go_on_coming() -> None:
    assert sustained(0, 50_000) == sustained(50_000, 0) == 0
    assert sustained(100, 120) == 90


def test_host_under_way_is_counted() -> None:
    starting = host(state=State.LOADING, age=60)
    found = plan(starting, waiting=1, tokens=300)
    assert found.actions == ()
    (waiting,) = found.waiting
    assert (waiting.host, waiting.step, waiting.ready_at) == ("h", "loading", NOW + 240)


def test_work_that_is_done_before_a_host_is_ready_rents_none() -> None:
    assert rents(plan(host(running=16), waiting=100, tokens=250_000)) == []
    assert rents(plan(host(running=16), waiting=100, tokens=500_000)) == ["1"]


def test_more_work_rents_more_up_to_max() -> None:
    found = plan(host(running=16), waiting=999, tokens=2_000_000)
    assert rents(found) == ["1", "2", "3"]
    full = plan(*(host(str(n), running=16) for n in range(4)), waiting=999, tokens=9_000_000)
    assert full.actions == ()
    assert full.waiting[0].reason is WaitReason.MAX_HOSTS


def test_target_wait_below_a_minute_rents_more_and_keeps_more() -> None:
    hurried = replace(POOL, target_wait=10)
    assert len(rents(plan(waiting=99, tokens=400_000, pool=hurried))) > len(rents(plan(waiting=99, tokens=400_000)))
    two = (host("a", running=2), host("b", running=1))
    assert plan(*two, arriving=800).actions != ()
    assert plan(*two, arriving=800, pool=hurried).actions == ()


def test_long_target_wait_gathers_work_first() -> None:
    patient = replace(POOL, target_wait=7200)
    found = plan(waiting=1, tokens=300, pool=patient, oldest=60)
    assert found.actions == ()
    assert found.waiting[0].reason is WaitReason.NOT_YET
    assert rents(plan(waiting=1, tokens=300, pool=patient, oldest=6800)) == ["1"]
    urgent = plan(waiting=1, tokens=300, pool=patient, deadlines=(Deadline(450, 300),))
    assert rents(urgent) == ["1"]


def test_work_of_many_starts_does_not_gather_and_a_host_that_does_it_in_time_is_enough() -> None:
    patient = replace(POOL, target_wait=72_000)
    # Of ten hours and 20 s of them: what else comes meanwhile waits its own time.
    batch: dict[str, Any] = {"waiting": 50_000, "tokens": 36e6, "pool": patient, "oldest": 20, "lately": 50_000.0}
    assert rents(plan(**batch)) == ["1"]
    assert rents(plan(host(state=State.BOOTING, age=10), **batch)) == []


def test_deadline_rents_beside_a_busy_host() -> None:
    patient = replace(POOL, target_wait=7200)
    due = (Deadline(900, 1_500_000),)
    assert rents(plan(host(running=16), waiting=9, tokens=1_500_000, pool=patient, deadlines=due)) == ["1"]
    assert rents(plan(host(running=16), waiting=9, tokens=1_500_000, pool=patient)) == []


def test_failed_machine_is_avoided_for_a_while() -> None:
    failed = Failure("chat", "m1", NOW - 3600, "booting", "never answered")
    assert rents(plan(waiting=1, tokens=300, failures=(failed,))) == ["2"]
    assert rents(plan(waiting=1, tokens=300, failures=(replace(failed, at=NOW - 7 * 3600),))) == ["1"]


def test_row_of_failures_pauses_the_pool() -> None:
    row = tuple(Failure("chat", f"x{n}", NOW - 60 * n, "loading", "no such file") for n in range(4))
    found = plan(waiting=1, tokens=300, failures=row)
    assert found.actions == ()
    assert found.waiting[0].reason is WaitReason.HOSTS_FAIL
    assert "no such file; the next try is in 10 minutes" in found.waiting[0].message


def test_a_failure_that_is_no_fault_of_the_machine_counts_for_the_pool_alone() -> None:
    once = (Failure("chat", "", NOW - 3000, "loading", "no room"),)
    # Nor is any machine avoided that has no name.
    nameless = Market((replace(CHEAP, machine=""),))
    assert rents(plan(waiting=1, tokens=300, market=nameless, failures=once)) == ["1"]
    leaving = host("gone", State.DESTROYING, machine="")
    assert rents(plan(leaving, waiting=1, tokens=300, market=nameless)) == ["1"]
    found = plan(waiting=1, tokens=300, failures=(*once, *[replace(once[0], at=NOW - 60)] * 2))
    assert rents(found) == []
    assert found.waiting[0].reason is WaitReason.HOSTS_FAIL
    assert "no room" in found.waiting[0].message


def test_second_host_starts_elsewhere_before_the_first_is_given_up() -> None:
    quiet = host(state=State.BOOTING, machine="m1", progress=NOW - SUSPECT)
    found = plan(quiet, waiting=1, tokens=300)
    assert rents(found) == ["2"]
    assert not any(isinstance(action, Destroy) for action in found.actions)
    lost = plan(replace(quiet, progress=NOW - STALLED), host("second", State.BOOTING, 60), waiting=1, tokens=300)
    assert [(action.host, action.failed) for action in lost.actions if isinstance(action, Destroy)] == [("h", True)]
    assert rents(lost) == []


def test_host_that_serves_is_not_given_up_for_saying_nothing() -> None:
    """Nothing is written down of a host while it is ready and well."""
    assert plan(host(progress=NOW - 2 * STALLED), waiting=1, tokens=300).actions == ()
    assert plan(host(progress=NOW - 2 * STALLED)).actions == ()


def test_ready_host_that_takes_none_of_the_tickets_that_wait_is_given_up() -> None:
    busy = host(busy=NOW - IDLE_BESIDE_WORK)
    assert plan(busy, waiting=1, tokens=300).actions == ()
    assert plan(replace(busy, passed_over=IDLE_BESIDE_WORK - 1), waiting=1, tokens=300).actions == ()
    idle = replace(busy, passed_over=IDLE_BESIDE_WORK, locked=True)
    ended, another = plan(idle, waiting=1, tokens=300).actions
    assert isinstance(ended, Destroy)
    assert (ended.failed, ended.reason) == (True, "it took none of the tickets that waited for 10 minutes")
    assert isinstance(another, Rent)


def test_late_host_is_given_up_at_its_deadline() -> None:
    found = plan(host(state=State.LOADING, age=POOL.boot_deadline), waiting=1, tokens=300)
    assert [action.host for action in found.actions if isinstance(action, Destroy)] == ["h"]


def test_idle_host_is_drained_then_destroyed() -> None:
    assert plan(host(busy=NOW - 599)).actions == ()
    assert plan(host(busy=NOW - 600)).actions == (Drain("h", "idle for 10 minutes"),)
    assert plan(host(busy=NOW - 900, running=1)).actions == ()
    assert plan(host(state=State.DRAINING, running=1)).actions == ()
    assert [type(action) for action in plan(host(state=State.DRAINING)).actions] == [Destroy]


def test_idle_host_stays_where_it_is_locked_or_one_of_min() -> None:
    idle = host(busy=NOW - 900)
    assert plan(replace(idle, locked=True)).actions == ()
    assert plan(idle, pool=replace(POOL, min_hosts=1)).actions == ()


def test_idle_host_goes_as_soon_as_was_best_of_late_unless_the_pool_says_when() -> None:
    idle = host(busy=NOW - 100)
    long, short = Measured(quiet={"chat": (3600.0,) * 9}), Measured(quiet={"chat": (90.0,) * 9 + (3600.0,)})
    assert plan(replace(idle, busy=NOW - 1), measured=long).actions != ()
    assert plan(idle, measured=short).actions == (Drain("h", "idle for 2 minutes"),)
    assert plan(replace(idle, busy=NOW - 80), measured=short).actions == ()
    assert plan(idle, measured=long, pool=replace(POOL, idle_minutes=5)).actions == ()
    # Too few to go by.
    assert plan(idle, measured=Measured(quiet={"chat": (3600.0,) * 4})).actions == ()


def test_what_comes_while_a_host_starts_makes_it_go_sooner() -> None:
    """Three spells of 150 s are over before the next host is ready, so that one start does for all of them."""
    pool, idle = replace(POOL, startup=600), host(busy=NOW - 1)
    follow_ups = Measured(quiet={"chat": (3600.0, 150.0, 150.0, 150.0) * 5})
    alone = Measured(quiet={"chat": (3600.0,) * 5 + (150.0,) * 15})
    assert plan(idle, measured=follow_ups, pool=pool).actions != ()
    assert plan(idle, measured=alone, pool=pool).actions == ()


def test_only_host_gives_way_to_a_cheaper_one() -> None:
    dear = host(price=0.9, gpu="B", running=2, age=3600)
    measured = Measured({("chat", "A"): 500.0, ("chat", "B"): 2000.0})
    assert rents(plan(dear, arriving=400.0, measured=measured)) == ["1"]
    assert rents(plan(dear, arriving=500.0, measured=measured)) == ["2"]
    assert rents(plan(replace(dear, price=0.41), arriving=400.0, measured=measured)) == []
    assert rents(plan(replace(dear, locked=True), arriving=400.0, measured=measured)) == []
    assert rents(plan(dear, arriving=400.0, measured=Measured())) == []
    starting = host("next", State.LOADING, 60)
    assert plan(dear, starting, arriving=400.0, measured=measured).actions == ()
    both = plan(dear, host("next", age=400, running=1), arriving=400.0, measured=measured).actions
    assert [action.host for action in both if isinstance(action, Drain)] == ["h"]


def test_surplus_goes_sooner_than_the_last_one() -> None:
    found = plan(host("a", busy=NOW - 130), host("b", busy=NOW - 130, price=0.6))
    assert [action.host for action in found.actions if isinstance(action, Drain)] == ["b"]


def test_load_that_fits_fewer_hosts_frees_one() -> None:
    two = (host("a", age=3600, running=2), host("b", age=3600, running=1))
    assert [action.host for action in plan(*two, arriving=300.0).actions if isinstance(action, Drain)] == ["b"]
    assert plan(*two, arriving=901.0).actions == ()


def test_while_less_and_less_comes_no_cheap_host_goes_before_a_dear_one() -> None:
    three = (host("a", age=3600), host("b", age=3600), host("c", age=3600, price=0.9, gpu="B"))
    measured = Measured({("chat", "A"): 1000.0, ("chat", "B"): 1600.0})
    busy = tuple(replace(each, running=4) for each in three)
    assert plan(*busy, arriving=2300.0, lately=1700.0, measured=measured).actions == ()
    drained = plan(*busy, arriving=1800.0, lately=1700.0, measured=measured).actions
    assert [action.host for action in drained if isinstance(action, Drain)] == ["c"]


def test_host_that_starts_is_kept_near_full_load() -> None:
    late = host("late", State.BOOTING, 30)
    assert plan(host(running=15), late, waiting=1, tokens=300, arriving=950.0, lately=850.0).actions == ()


def test_draining_host_is_taken_back_before_another_is_rented() -> None:
    leaving = host(state=State.DRAINING, running=3)
    assert [type(action) for action in plan(leaving, waiting=1, tokens=300).actions] == [Undrain]
    asked = plan(replace(leaving, leaving=True), waiting=1, tokens=300)
    assert rents(asked) == ["1"]


def test_min_hosts_are_kept_without_demand() -> None:
    assert rents(plan(pool=replace(POOL, min_hosts=2))) == ["1", "2"]


def test_budget_keeps_a_host_from_being_rented() -> None:
    poor = replace(POOL, budget=Budget(day=1.0))
    found = plan(waiting=1, tokens=300, pool=poor, spent=Amounts(day=0.9))
    assert found.actions == ()
    assert found.waiting[0].reason is WaitReason.BUDGET
    assert "$1.00 this day, of which $0.90 is spent" in found.waiting[0].message
    assert rents(plan(waiting=1, tokens=300, pool=poor, spent=Amounts(day=0.5))) == ["1"]
    assert rents(plan(waiting=1, tokens=300, pool=replace(POOL, budget=Budget(hour=0.3)))) == []


def test_budget_drains_then_destroys_whatever_is_locked_or_kept() -> None:
    poor = replace(POOL, budget=Budget(total=1.0), min_hosts=2)
    hosts = (host("a", running=3, locked=True), host("b", State.LOADING, 60))
    drained = plan(*hosts, waiting=1, tokens=300, pool=poor, spent=Amounts(total=0.8))
    assert [(type(action), getattr(action, "host", "")) for action in drained.actions] == [
        (Drain, "a"),
        (Destroy, "b"),
    ]
    assert drained.waiting[0].reason is WaitReason.BUDGET
    ended = plan(*hosts, pool=poor, spent=Amounts(total=0.9))
    assert [type(action) for action in ended.actions] == [Destroy, Destroy]


def test_budget_over_all_counts_every_pool() -> None:
    pools = [POOL, replace(POOL, name="other", models=("n",))]
    demand = {name: Demand(name, 1, 300) for name in "mn"}
    markets = {"chat": OFFERS, "other": OFFERS}
    both = decide(NOW, pools, demand, [], markets, Spent(), budget=Budget(day=0.5))
    assert [action.pool for action in both.actions if isinstance(action, Rent)] == ["chat", "other"]
    one = decide(NOW, pools, demand, [], markets, Spent(all=Amounts(day=0.2)), budget=Budget(day=0.5))
    assert [action.pool for action in one.actions if isinstance(action, Rent)] == ["chat"]
    assert [waiting.reason for waiting in one.waiting] == [WaitReason.HOST_STARTING, WaitReason.BUDGET]


def test_market_without_offers_names_the_condition() -> None:
    none = Market(removed=(Removed("query.gpu_ram", "24 GB of GPU memory", 12), Removed("max_price", "$0.80", 40)))
    said = plan(waiting=1, tokens=300, market=none).waiting[0]
    assert said.reason is WaitReason.NO_OFFER
    assert "max_price removes 40 ($0.80), query.gpu_ram removes 12" in said.message
    dear = plan(waiting=1, tokens=300, pool=replace(POOL, max_price=0.1)).waiting[0]
    assert "max_price ($0.10 an hour) removes 4" in dear.message
    away = plan(waiting=1, tokens=300, market=Market(error="it does not answer")).waiting[0]
    assert "could not be asked for offers: it does not answer" in away.message


def test_refusal_is_told_as_one_and_asked_again_later_and_later() -> None:
    found = plan(waiting=1, tokens=300, market=Market(refusal="Vast.ai refuses: Your account lacks credit."))
    message = "No host of vast can be made: Vast.ai refuses: Your account lacks credit."
    assert (found.waiting[0].reason, found.waiting[0].message) == (WaitReason.NO_OFFER, message)
    asked = plan(waiting=1, tokens=300, market=Market(refusal="did you mean chat?")).waiting[0].message
    assert asked == "No host of vast can be made: did you mean chat?"
    assert [refused_for(times) for times in (1, 2, 3, 5, 6, 5000)] == [30, 60, 120, 480, 600, 600]


def test_interrupted_host_ends_and_is_replaced() -> None:
    found = plan(host(interrupted=True, running=2), waiting=2, tokens=600)
    assert [type(action) for action in found.actions] == [Destroy, Rent]


def test_host_that_starts_too_late_for_its_work_ends() -> None:
    late = host("late", State.BOOTING, 30)
    found = plan(host(running=8), late, waiting=1, tokens=10_000)
    assert [action.host for action in found.actions if isinstance(action, Destroy)] == ["late"]
    assert plan(host(running=8), late, waiting=99, tokens=300_000).actions == ()
