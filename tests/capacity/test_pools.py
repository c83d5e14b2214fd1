"""Pools in files: what is read, and what is said of what cannot be used."""

import re
from pathlib import Path

import pytest

from app.capacity.plan import Budget
from app.capacity.pools import load_pools
from nvidia_triton.checked_yaml import UnusableFile
from nvidia_triton.vast.definition import load_definition

DEFINITION = Path(__file__).parents[2] / "nvidia_triton/vastai_instance_definition.yaml"


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_pools_stand_in_the_instance_definition(tmp_path: Path) -> None:
    text = DEFINITION.read_text()
    assert load_pools([DEFINITION]).pools == ()
    text = text.replace("budget: null", "budget: {day: 10, total: 100}")
    pool = "{name: chat, models: [a, b], max: 2, boot_deadline_minutes: 30, query: {gpu_ram: 48}}"
    text = text.replace("pools: []", f"pools: [{pool}]")
    path = write(tmp_path / "definition.yaml", text)
    assert load_definition(path).models == load_definition(DEFINITION).models
    pools = load_pools([path])
    assert pools.budget == Budget(day=10, total=100)
    (entry,) = pools.entries
    assert (entry.pool.name, entry.pool.models, entry.pool.max_hosts) == ("chat", ("a", "b"), 2)
    assert (entry.pool.boot_deadline, entry.pool.budget, entry.query) == (1800, Budget(), {"gpu_ram": 48})


def test_files_add_up_and_may_have_no_pools(tmp_path: Path) -> None:
    one = write(tmp_path / "one.yaml", "pools: [{name: a, models: [x], min: 1, budget: {hour: 1}}]")
    two = write(tmp_path / "two.yaml", "pools: [{name: b, models: [y], provider: command}]")
    assert [pool.name for pool in load_pools([one, DEFINITION, two]).pools] == ["a", "b"]
    assert load_pools([write(tmp_path / "empty.yaml", "")]).pools == ()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("pools: [{name: a, models: [x], maxx: 1}]", "pools.0.maxx: there is no such key"),
        ("pools: [{name: a, models: []}]", "pools.0.models: must hold at least one"),
        ("pools: [{name: a, models: [x], min: 3, max: 2}]", "min (3) is more than max (2)"),
        ("pools: [{name: a, models: [x], startup_minutes: 50}]", "given up before it is ready"),
        ("pools: [{name: a, models: [x], min: 1, budget: {day: 5}}]", "budget.day ($5.00) is less than"),
        ("pools: [{name: a, models: [x], budget: {}}]", "at least one of hour, day, month and total"),
        ("pools: [{name: a, models: [x]}, {name: a, models: [y]}]", "two pools named a"),
        ("pools: [{name: a, models: [x]}, {name: b, models: [x]}]", "x is in the pools a and b"),
        ("pools: [{name: a, models: [x, x]}]", "a model is there twice"),
        ("pools: [\n", "is not YAML: line 2"),
        ("budget: {day: 1}\nbudget: {day: 2}", "budget is there twice"),
    ],
)
def test_what_cannot_be_used_is_named(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(UnusableFile, match=re.escape(said)):
        load_pools([write(tmp_path / "pools.yaml", text)])


def test_one_budget_is_over_all(tmp_path: Path) -> None:
    paths = [write(tmp_path / f"{name}.yaml", "budget: {day: 1}") for name in "ab"]
    with pytest.raises(UnusableFile, match=r"b\.yaml: `budget` is over all pools"):
        load_pools(paths)
