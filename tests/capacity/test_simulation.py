"""The simulation itself: its ledger, its bound, its traces; and that the policy keeps near the bound."""

from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest

from app.capacity.plan import Action, Drain, Rent
from app.capacity.simulation.charts import frontier, picture
from app.capacity.simulation.controllers import RIVALS, policy
from app.capacity.simulation.figures import Figures, beside, verdict
from app.capacity.simulation.frontier import Setting, matches
from app.capacity.simulation.frontier import verdict as met
from app.capacity.simulation.hindsight import cheapest
from app.capacity.simulation.ledger import Ledger
from app.capacity.simulation.market import Machines
from app.capacity.simulation.traces import HOUR, POOL, Arrival, Trace, UnusableTrace, make, recorded
from app.capacity.simulation.world import View, World

SEED = 1


def few(*arrivals: Arrival, seconds: float = HOUR, **pool: object) -> Trace:
    return Trace("few", "few", arrivals, seconds, replace(POOL, **pool))  # type: ignore[arg-type]


def test_a_ledger_begins_hours_and_days_anew() -> None:
    ledger = Ledger(23.5 * HOUR)
    ledger.begin("a", 1.0)
    ledger.advance(25 * HOUR)
    ledger.end("a")
    ledger.advance(25.5 * HOUR)
    spent = ledger.amounts()
    assert (spent.hour, spent.day, spent.month, spent.total) == (0.0, 1.0, 1.5, 1.5)
    assert ledger.most == {"hour": 1.0, "day": 1.0, "month": 1.5}


def test_hindsight_keeps_a_host_over_a_short_pause_and_not_over_a_long_one() -> None:
    def cost(second: float) -> float:
        trace = few(Arrival(0.0, 400), Arrival(second, 400), max_hosts=1)
        return cheapest(trace, Machines(POOL, SEED)) / price * HOUR

    machines = Machines(POOL, SEED).machines.values()
    price = min(each.offer.price for each in machines)
    start, step = POOL.startup, 60.0
    assert cost(300.0) == pytest.approx(start + 300.0 + step, abs=2 * step)
    assert cost(3000.0) == pytest.approx(2 * (start + step), abs=2 * step)


def test_the_same_seed_is_the_same_day() -> None:
    trace = make("trickle", SEED)
    assert trace == make("trickle", SEED)
    runs = [World(trace, SEED).run(policy(trace.pool)) for _ in range(2)]
    assert runs[0] == runs[1]
    assert make("trickle", 2) != trace


@pytest.mark.parametrize("name", ["trickle", "dead"])
def test_the_policy_is_near_the_cheapest_schedule_and_answers_all(name: str) -> None:
    trace = make(name, SEED)
    run = World(trace, SEED).run(policy(trace.pool))
    assert run.dollars <= 1.25 * cheapest(trace, Machines(trace.pool, SEED, trace.closed))
    assert (run.left, len(run.waits)) == (0, len(trace.arrivals))
    assert run.idle_while_waiting == 0
    if name == "trickle":
        rival = World(trace, SEED).run(RIVALS["one always on"](trace.pool))
        assert run.dollars < rival.dollars / 2


@pytest.mark.long
@pytest.mark.parametrize("seed", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("name", ["day", "trickle", "dead", "batch"])
def test_the_policy_is_near_the_cheapest_schedule_whatever_the_seed(name: str, seed: int) -> None:
    trace = make(name, seed)
    run = World(trace, seed).run(policy(trace.pool))
    # In the third night the cheapest machines fail, or are not offered: docs/capacity.md.
    bound = 1.45 if (name, seed) == ("batch", 3) else 1.25
    assert run.dollars <= bound * cheapest(trace, Machines(trace.pool, seed, trace.closed))
    assert (run.left, len(run.waits)) == (0, len(trace.arrivals))
    other = World(trace, seed).run(RIVALS["queue length"](trace.pool))
    assert run.dollars <= 1.15 * other.dollars


def test_a_batch_that_was_sent_at_once_rents_for_its_work_and_no_more() -> None:
    rented: list[Rent] = []

    def watch(view: View, actions: object) -> None:
        assert isinstance(actions, tuple)
        rented.extend(each for each in actions if isinstance(each, Rent))

    # Half an hour of one host.
    arrivals = [Arrival(60.0 + number / 1000, 400) for number in range(1800)]
    World(few(*arrivals), SEED, watch=watch).run(policy(POOL))
    assert 2 <= len(rented) <= 8


def test_hosts_are_rented_for_tickets_that_would_expire_behind_older_work() -> None:
    # Three quarters of an hour of one host, and then what has forty minutes.
    older = [Arrival(number / 100, 300) for number in range(3600)]
    urgent = [Arrival(1200.0 + number, 300, expires_in=2400) for number in range(20)]
    trace = few(*older, *urgent, target_wait=8 * HOUR)
    run = World(trace, SEED, machines=Machines(trace.pool, SEED, fails=0)).run(policy(trace.pool))
    assert (run.rented > 1, run.expired, run.left) == (True, 0, 0)


def test_a_ticket_that_expires_overtakes_no_more_than_the_claim_lets_it() -> None:
    # It is due a minute after 1.2 s, and so stands behind the first two.
    arrivals = [Arrival(0.0, 300), Arrival(1.0, 300), Arrival(1.5, 300), Arrival(2.0, 300, expires_in=59.2)]
    first = World(few(*arrivals), SEED).look(10.0)
    (due,) = first.demand[POOL.models[0]].deadlines
    assert (due.seconds, due.tokens) == (50.0, 3 * 300)


def test_a_locked_host_stays() -> None:
    trace = few(Arrival(0.0, 400), seconds=4 * HOUR)
    world = World(trace, SEED)
    decided = policy(trace.pool)
    drained: list[Action] = []

    def controller(view: View) -> tuple[Action, ...]:
        for host in world.hosts.values():
            host.locked = view.now < 1_794_873_600.0 + 3 * HOUR
        actions = tuple(decided(view))
        drained.extend(each for each in actions if isinstance(each, Drain))
        assert world.now > 3 * HOUR or not drained
        return actions

    assert world.run(controller).left == 0
    assert drained


def test_traces_are_read_from_files(tmp_path: Path) -> None:
    table = tmp_path / "day.csv"
    table.write_text("at,model,tokens,expires_in\n2026-03-01T10:00:00+00:00,b,20,\n2026-03-01T09:00:00+00:00,a,10,60\n")
    trace = recorded(table)
    assert trace.pool.models == ("a", "b")
    assert trace.arrivals == [Arrival(9 * HOUR, 10, "a", 60), Arrival(10 * HOUR, 20, "b")]
    lines = tmp_path / "day.jsonl"
    lines.write_text('{"at": 0, "tokens": 5}\n')
    assert recorded(lines).arrivals == [Arrival(0.0, 5)]
    run = World(trace, SEED).run(policy(trace.pool))
    assert (len(run.waits), run.expired, run.left) == (1, 1, 0)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("at,tokens\nsoon,5\n", "line 2"),
        ("at,tokens\n5\n", "line 2"),
        ("at\n5\n", "line 2: tokens is missing"),
        ("at,tokens\n5,-1\n", "out of range"),
        ("at,tokens\n5,nan\n", "out of range"),
        ("at,tokens\n", "no tickets"),
    ],
)
def test_a_trace_that_cannot_be_used_is_refused_with_its_line(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "bad.csv").write_text(text)
    with pytest.raises(UnusableTrace, match=said):
        recorded(tmp_path / "bad.csv")


def test_pictures_are_well_formed() -> None:
    trace = few(Arrival(0.0, 400), Arrival(600.0, 400))
    run = World(trace, SEED).run(policy(trace.pool))
    root = ElementTree.fromstring(picture("A & B", {"the policy": run.samples, "none": run.samples[:1]}))
    assert len(root.findall("{http://www.w3.org/2000/svg}path")) == 6


def test_a_rival_is_met_by_the_cheapest_setting_that_is_as_quick() -> None:
    figures = Figures(1.0, 0, 100, 0, 0, 0, 0, 0, 0)
    quick, usual, slow = Setting(10.0), Setting(60.0), Setting(900.0, 1)
    settings = {
        quick: replace(figures, dollars=3.0, p95=10),
        usual: figures,
        slow: replace(figures, dollars=0.5, p95=300, unanswered=1),
    }
    rivals = {"as quick": replace(figures, dollars=1.1, p95=97), "quicker": replace(figures, dollars=2.0, p95=50)}
    as_quick, quicker = matches(settings, rivals)
    assert (as_quick.setting, as_quick.good, quicker.setting, quicker.cost) == (usual, True, quick, 1.5)
    assert met({"day": [as_quick]}) == "equal or better at every rival's wait"
    assert met({"day": [as_quick, quicker]}).endswith("day, quicker (1.50 of its cost at a p95 wait of 50 s)")
    (none,) = matches({usual: figures}, {"at once": replace(figures, p95=0)})
    assert (none.setting, none.good, str(slow)) == (None, False, "target_wait 900 s, min 1")
    drawn = ElementTree.fromstring(frontier("A & B", {"the policy": [(0.0, 2.0), (90.0, 1.0)]}, {"R": (5.0, 3.0)}))
    assert len(drawn.findall("{http://www.w3.org/2000/svg}circle")) == 3


def test_what_is_equal_and_what_is_better() -> None:
    ours = Figures(1.0, 0, 100, 0, 0, 0, 0, 0, 0)

    def said(**rival: float) -> str:
        return beside(ours, replace(ours, **rival), 60.0, 0.9)  # type: ignore[arg-type]

    assert said(dollars=2.0, p95=102) == "cost better ($1.00, not $2.00), p95 wait equal (100 s, not 102 s)"
    assert said(dollars=0.5).endswith("it is the better one")
    assert said(p95=50).endswith("it is the better one")
    assert "p95 wait worse" in said(dollars=2.0, p95=50)
    assert said(dollars=2.0, p95=200).endswith("it misses target_wait")
    assert said(dollars=0.5, p95=200).endswith("so cheap only by that: hindsight, which meets it, costs $0.90")
    assert verdict([1.0, 1.25, 1.26]) == "1.00 to 1.26 of hindsight, 2 of 3 within 1.25"
