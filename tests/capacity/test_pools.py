"""Pools in files: what is read, and what is said of what cannot be used."""

import re
from pathlib import Path

import pytest

from app.capacity.kinds import Kinds, open_kinds
from app.capacity.plan import Budget
from app.capacity.pools import load_pools
from nvidia_triton.checked_yaml import UnusableFile
from nvidia_triton.providers.base import Refused
from nvidia_triton.vast.definition import load_definition
from tests.vast.conftest import ssh_key

__all__ = ["ssh_key"]

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


COMMANDS = "{offers: x, create: x, list: x, destroy: x}"


def define(path: Path, *pools: str) -> Path:
    return write(path, DEFINITION.read_text().replace("pools: []", f"pools: [{', '.join(pools)}]"))


def opened(path: Path, environ: dict[str, str]) -> Kinds:
    return open_kinds(load_pools([path]), environ, bind="127.0.0.1", advertised="127.0.0.1")


def test_without_a_key_the_controller_does_not_start_and_says_how_to_make_one(tmp_path: Path, ssh_key: Path) -> None:
    path = define(tmp_path / "pools.yaml", "{name: a, models: [x]}")
    own = define(tmp_path / "own.yaml", f"{{name: a, models: [x], provider: command, settings: {COMMANDS}}}")
    home = {"XDG_CONFIG_HOME": str(tmp_path)}
    for each in (path, own):
        with pytest.raises(Refused, match=r"There is no SSH key pair: .*absent does not exist. Make one with"):
            opened(each, home | {"SSH_KEY": str(tmp_path / "absent"), "VAST_API_KEY": "k"})
    with pytest.raises(Refused, match=r"The pool a: There is no Vast.ai API key. Make one on https://"):
        opened(path, home | {"SSH_KEY": str(ssh_key)})
    assert opened(own, home | {"SSH_KEY": str(ssh_key)}).names == {"a"}


async def test_hosts_of_a_pool_that_has_another_provider_now_are_not_looked_for_there(
    tmp_path: Path, ssh_key: Path
) -> None:
    environ = {"XDG_CONFIG_HOME": str(tmp_path), "SSH_KEY": str(ssh_key), "VAST_API_KEY": "k"}
    own = f"{{name: a, models: [x], provider: command, settings: {COMMANDS}}}"
    row = {"pool": "a", "provider": "vast"}
    kinds = opened(define(tmp_path / "own.yaml", own), environ)
    assert kinds.of_row(row) is None
    kinds = opened(define(tmp_path / "both.yaml", own, "{name: b, models: [y]}"), environ)
    assert kinds.of_row(row) is kinds.named("b")
    assert kinds.of_row({"pool": "a", "provider": "command"}) is kinds.named("a")


async def test_where_the_weights_of_a_pool_are_from_is_known(tmp_path: Path, ssh_key: Path) -> None:
    environ = {"XDG_CONFIG_HOME": str(tmp_path), "SSH_KEY": str(ssh_key), "VAST_API_KEY": "k"}
    path = define(tmp_path / "pools.yaml", "{name: a, models: [minilm, absent, qwen2.5-7b-instruct, ner-rules]}")
    named, other = opened(path, environ).named("a").weights().split(", ")
    assert re.fullmatch(r"sentence-transformers/all-MiniLM-L6-v2@[0-9a-f]{40}", named)
    assert other == "Qwen/Qwen2.5-7B-Instruct"


async def test_models_that_no_host_could_load_are_named_before_one_is_paid_for(tmp_path: Path, ssh_key: Path) -> None:
    environ = {"XDG_CONFIG_HOME": str(tmp_path), "SSH_KEY": str(ssh_key), "VAST_API_KEY": "k"}
    path = define(tmp_path / "pools.yaml", "{name: a, models: [qwen2.5-7b-instrukt]}")
    with pytest.raises(Refused, match=r"qwen2.5-7b-instrukt: there is no such folder"):
        await opened(path, environ).named("a").check_models()


def test_one_budget_is_over_all(tmp_path: Path) -> None:
    paths = [write(tmp_path / f"{name}.yaml", "budget: {day: 1}") for name in "ab"]
    with pytest.raises(UnusableFile, match=r"b\.yaml: `budget` is over all pools"):
        load_pools(paths)
