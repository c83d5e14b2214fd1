"""Models on their way to an instance: sent, exchanged, loaded, and put back when the engine refuses them."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from nvidia_triton.vast import forward, monitor, remote, ssh, tunnel
from nvidia_triton.vast.control import Control
from nvidia_triton.vast.deploy import deploy, digest_of
from nvidia_triton.vast.errors import TargetError
from nvidia_triton.vast.forward import Forward
from nvidia_triton.vast.remote_scripts import LOCKED, SWAP
from nvidia_triton.vast.state import State
from tests.vast.fake import FakeVast
from tests.vast.kit import until
from tests.vast.rented import Rented, rent

# The checks know which keys the vLLM in an image of NVIDIA's takes; of this one they do not.
OTHER_IMAGE = "registry.example/tritonserver:own"
# vLLM dropped it before the release that the stand-in stands in for.
DROPPED_KEY = "num_scheduler_steps"
PROGRAM = """
import sys, pathlib
from nvidia_triton.vast.deploy import deploy
from nvidia_triton.vast.errors import TargetError
from nvidia_triton.vast.vast import VastClient
from nvidia_triton.vast.progress import PrintedWork
from nvidia_triton.vast.wiring import open_context
from rich.console import Console
import dataclasses
context = open_context(work=PrintedWork(Console()))
settings = dataclasses.replace(context.settings, root=pathlib.Path(sys.argv[1]))
context = dataclasses.replace(context, settings=settings)
try:
    deploy(context, VastClient(settings).instance(int(sys.argv[2])), sys.argv[3:])
except TargetError as error:
    sys.exit(str(error))
"""


@pytest.fixture
def rented(vast: FakeVast, vast_env: dict[str, str], tmp_path: Path) -> Rented:
    """With a Triton that serves nothing yet."""
    made = rent(vast, vast_env, tmp_path / "checkout", image=OTHER_IMAGE)
    remote.run_tritonserver(made.context, made.instance)
    made.said()
    return made


def ready(rented: Rented) -> set[str]:
    connection = ssh.check(rented.context, rented.instance)
    with Forward(connection, 8000) as forward, Control(forward.port) as control:
        return {each.name for each in control.index() if each.ready}


def change(model: Path, **fields: object) -> None:
    path = model / "1" / "model.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def process(rented: Rented, *names: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(rented.context.settings.root), str(rented.instance.id), *names],
        env=dict(rented.context.settings.environ),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def test_deployed_again_only_what_changed_is_sent(rented: Rented) -> None:
    one, _ = rented.add_model("one"), rented.add_model("two")
    deploy(rented.context, rented.instance, ["one", "two"])
    assert ready(rented) == {"one", "two"}
    rented.said()
    change(one, max_num_seqs=8)
    deploy(rented.context, rented.instance, ["one", "two"])
    said = rented.said()
    assert "one: sent" in said
    assert "two: unchanged and ready" in said
    assert "two: sent" not in said
    assert json.loads((rented.opt / "models/one/1/model.json").read_text())["max_num_seqs"] == 8
    assert ready(rented) == {"one", "two"}


def test_a_file_that_is_gone_here_goes_there(rented: Rented) -> None:
    one = rented.add_model("one")
    (one / "notes.txt").write_text("old")
    deploy(rented.context, rented.instance, ["one"])
    assert (rented.opt / "models/one/notes.txt").is_file()
    (one / "notes.txt").unlink()
    deploy(rented.context, rented.instance, ["one"])
    assert not (rented.opt / "models/one/notes.txt").exists()


def test_unchanged_and_not_loaded_it_is_loaded_again(rented: Rented) -> None:
    rented.add_model("one")
    deploy(rented.context, rented.instance, ["one"])
    connection = ssh.check(rented.context, rented.instance)
    with Forward(connection, 8000) as forward, Control(forward.port) as control:
        control.unload("one")
    assert ready(rented) == set()
    deploy(rented.context, rented.instance, ["one"])
    assert ready(rented) == {"one"}


def test_a_key_that_the_engine_refuses_leaves_the_others_serving(rented: Rented) -> None:
    rented.add_model("good")
    change(rented.add_model("bad"), **{DROPPED_KEY: 8})
    rented.add_model("late")
    with pytest.raises(TargetError, match=r"Not loaded on .*: bad; the reason stands above"):
        deploy(rented.context, rented.instance, ["good", "bad", "late"])
    said = rented.said()
    assert f"unexpected keyword argument '{DROPPED_KEY}'" in said
    assert "Traceback" not in said
    assert "model.py" not in said
    assert ready(rented) == {"good", "late"}
    tunnel.start(rented.context, rented.instance)
    healthy, reason = monitor.health(rented.context, None)
    assert not healthy
    assert "bad failed to load" in reason
    assert DROPPED_KEY in reason
    tunnel.stop(rented.context, None)


def test_the_previous_version_comes_back(rented: Rented) -> None:
    one = rented.add_model("one")
    deploy(rented.context, rented.instance, ["one"])
    before = digest_of(one)
    change(one, **{DROPPED_KEY: 8})
    with pytest.raises(TargetError, match="Not loaded"):
        deploy(rented.context, rented.instance, ["one"])
    assert "one: the previous version is ready again" in rented.said()
    assert ready(rented) == {"one"}
    assert digest_of(rented.opt / "models/one") == before
    # Repeated, it fails alike, and the good version is still there to come back.
    with pytest.raises(TargetError, match="Not loaded"):
        deploy(rented.context, rented.instance, ["one"])
    assert digest_of(rented.opt / "models/one") == before
    change(one, **{DROPPED_KEY: 8, "max_num_seqs": 4})
    text = json.loads((one / "1/model.json").read_text())
    del text[DROPPED_KEY]
    (one / "1/model.json").write_text(json.dumps(text))
    deploy(rented.context, rented.instance, ["one"])
    assert digest_of(rented.opt / "models/one") == digest_of(one)
    assert ready(rented) == {"one"}


def test_what_the_checks_refuse_changes_nothing(rented: Rented) -> None:
    change(rented.add_model("one"), no_such_argument=1)
    with pytest.raises(TargetError, match="no_such_argument"):
        deploy(rented.context, rented.instance, ["one"])
    assert not (rented.opt / "triton/staging/one").exists()


def test_killed_half_way_and_repeated_it_goes_on(rented: Rented) -> None:
    """While sending: what arrived stays, and the second run sends the rest."""
    model = rented.add_model("big")
    (model / "weights.bin").write_bytes(os.urandom(300_000_000))
    staging = rented.opt / "triton/staging/big"
    first = process(rented, "big")
    until(lambda: any(each.stat().st_size > 10_000_000 for each in staging.glob(".*weights.bin*")), "bytes arrive", 30)
    os.killpg(first.pid, signal.SIGKILL)
    first.communicate(timeout=20)
    until(lambda: list(staging.glob(".rsync-partial/*")), "what arrived is kept")
    assert not (rented.opt / "models/big").exists()
    deploy(rented.context, rented.instance, ["big"])
    assert ready(rented) == {"big"}
    assert digest_of(rented.opt / "models/big") == digest_of(model)


def test_killed_while_loading_and_repeated(rented: Rented) -> None:
    rented.add_model("one", like="slow-load")
    first = process(rented, "one")
    until(lambda: (rented.opt / "models/one/config.pbtxt").exists(), "it is in its place", 30)
    first.kill()
    first.communicate(timeout=20)
    deploy(rented.context, rented.instance, ["one"])
    assert ready(rented) == {"one"}


def test_two_at_once_are_refused(rented: Rented) -> None:
    rented.add_model("one", like="slow-load")
    first = process(rented, "one")
    until(lambda: (rented.opt / "models/one/config.pbtxt").exists(), "the first is at work", 30)
    with pytest.raises(TargetError, match=r"Another deployment to .* is at work"):
        deploy(rented.context, rented.instance, ["one"])
    output, _ = first.communicate(timeout=30)
    assert first.returncode == 0, output
    assert ready(rented) == {"one"}


def elsewhere(rented: Rented, tmp_path: Path) -> Rented:
    """The same instance from another checkout, which knows nothing of the locks of the first."""
    local = tmp_path / "elsewhere"
    settings = dataclasses.replace(rented.context.settings, local_dir=local)
    context = dataclasses.replace(rented.context, settings=settings, state=State(local).prepare())
    return dataclasses.replace(rented, context=context)


def test_two_checkouts_at_once_are_refused(rented: Rented, tmp_path: Path) -> None:
    rented.add_model("one", like="slow-load")
    first = process(rented, "one")
    until(lambda: (rented.opt / "models/one/config.pbtxt").exists(), "the first is at work", 30)
    other = elsewhere(rented, tmp_path)
    with pytest.raises(TargetError, match=r"Another deployment to .* is at work"):
        deploy(other.context, other.instance, ["one"])
    output, _ = first.communicate(timeout=30)
    assert first.returncode == 0, output
    deploy(other.context, other.instance, ["one"])
    assert "one: unchanged and ready" in other.said()


def test_the_lock_of_a_machine_that_is_gone_without_a_word(
    rented: Rented, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its laptop sleeps: the connection stands, and nothing comes through it."""
    monkeypatch.setattr(forward, "QUIET_SECONDS", 4)
    monkeypatch.setattr(forward, "BEAT_SECONDS", 0.2)
    monkeypatch.setattr(forward, "BUSY_AT_FIRST_SECONDS", 60.0)
    rented.add_model("one")
    with Forward(ssh.check(rented.context, rented.instance), 8000, guard=LOCKED) as held:
        ours = psutil.Process().children()
        (asleep,) = (each for each in ours if f"127.0.0.1:{held.port}:" in " ".join(each.cmdline()))
        asleep.suspend()
        try:
            other = elsewhere(rented, tmp_path)
            deploy(other.context, other.instance, ["one"])
        finally:
            asleep.resume()
    assert ready(rented) == {"one"}


def test_a_connection_that_breaks_during_the_load_is_made_anew(rented: Rented) -> None:
    rented.add_model("one", like="slow-load")
    running = process(rented, "one")
    until(lambda: (rented.opt / "models/one/config.pbtxt").exists(), "it is in its place", 30)
    until(lambda: "loading: one" in (rented.opt / "triton/tritonserver.log").read_text(), "it loads", 30)
    rented.vast.cut(rented.instance.id)
    output, _ = running.communicate(timeout=60)
    assert running.returncode == 0, output
    assert "one: ready after" in output


def test_without_triton_it_says_how_to_start_it(rented: Rented) -> None:
    rented.add_model("one")
    remote.stop(rented.context, rented.instance)
    with pytest.raises(TargetError, match="make run-tritonserver CONTRACT_ID"):
        deploy(rented.context, rented.instance, ["one"])


def test_without_rsync_there(rented: Rented) -> None:
    rented.add_model("one")
    rented.vast.hide_rsync(rented.instance.id)
    with pytest.raises(TargetError, match=r"rsync is missing on vast-\d+: .*make ssh-instance"):
        deploy(rented.context, rented.instance, ["one"])


def test_without_rsync_here(rented: Rented, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    rented.add_model("one")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(TargetError, match="`rsync` is not installed on this machine"):
        deploy(rented.context, rented.instance, ["one"])


@pytest.mark.parametrize("line", [6, 7, 9])
def test_an_exchange_interrupted_at_any_line_and_repeated(rented: Rented, line: int) -> None:
    """The script that exchanges the folders, cut after each of its lines in turn; a version that works remains."""
    commands = SWAP.strip().splitlines()
    one = rented.add_model("one")
    deploy(rented.context, rented.instance, ["one"])
    good = digest_of(one)
    change(one, max_num_seqs=8)
    cut = [*commands[: line + 1], *(["exit 0", "fi"] if line < 8 else ["exit 0"])]
    ssh.check(rented.context, rented.instance).run("\n".join(cut), {"name": "one"})
    change(one, **{DROPPED_KEY: 8})
    with pytest.raises(TargetError, match="Not loaded"):
        deploy(rented.context, rented.instance, ["one"])
    assert digest_of(rented.opt / "models/one") == good
    assert ready(rented) == {"one"}
