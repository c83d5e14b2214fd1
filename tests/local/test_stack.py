"""`make run` for real: what starts, what stops, and what is left when something dies."""

import os
import signal
import socket
import subprocess
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from nvidia_triton.local.settings import free_ports
from nvidia_triton.local.triton import SHARED_MEMORY
from tests.local.conftest import Checkout


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_stops_everything(checkout: Checkout, number: signal.Signals) -> None:
    runner = checkout.run().ready()
    assert len(runner.processes()) >= 4
    runner.process.send_signal(number)
    assert runner.exit_code() == 0
    assert not runner.processes()
    assert "database system is shut down" in runner.output


@pytest.mark.parametrize("whole_group", [True, False])
def test_a_signal_to_make_stops_everything(checkout: Checkout, whole_group: bool) -> None:
    runner = checkout.make("run").ready()
    if whole_group:
        os.killpg(runner.process.pid, signal.SIGINT)
    else:
        runner.process.send_signal(signal.SIGINT)
    runner.exit_code()
    runner.assert_gone()
    assert "database system is shut down" in runner.output


def test_killed_make_leaves_nothing(checkout: Checkout) -> None:
    runner = checkout.make("run").ready()
    runner.process.kill()
    runner.assert_gone()
    assert "database system is shut down" in runner.output


def test_killed_runner_leaves_nothing(checkout: Checkout) -> None:
    runner = checkout.run().ready()
    runner.process.kill()
    runner.exit_code()
    runner.assert_gone()


def test_data_survives_a_kill_and_a_foreign_pid(checkout: Checkout) -> None:
    runner = checkout.run().ready()
    assert "this is start 1" in runner.output
    os.kill(runner.pid_of("postgres -D"), signal.SIGKILL)
    assert runner.exit_code() == 1
    assert "postgres stopped on its own (killed by SIGKILL)" in runner.output
    pid_file = checkout.path / ".local/postgres/postmaster.pid"
    lines = pid_file.read_text().split("\n")
    pid_file.write_text("\n".join([str(os.getpid()), *lines[1:]]))

    again = checkout.run().ready()
    assert "this is start 2" in again.output


def test_a_dead_child_is_named(checkout: Checkout) -> None:
    (checkout.path / "app/worker.py").write_text("print('out of luck')\nraise SystemExit(7)\n")
    runner = checkout.run()
    assert runner.exit_code() == 1
    assert "dispatcher | out of luck" in runner.output
    assert "dispatcher stopped on its own (exit code 7)" in runner.output.splitlines()[-1]
    assert not runner.processes()


def test_a_failed_migration_is_named(checkout: Checkout) -> None:
    (checkout.path / "alembic/__main__.py").write_text("raise SystemExit('no such revision')\n")
    runner = checkout.run()
    assert runner.exit_code() == 1
    assert "no such revision" in runner.output
    assert "The migrations failed (exit code 1)" in runner.output.splitlines()[-1]
    assert not runner.processes()


@pytest.mark.parametrize("variable", ["API_PORT", "POSTGRES_PORT"])
def test_a_busy_port_is_named(checkout: Checkout, variable: str) -> None:
    port = int(checkout.env[variable])
    with socket.create_server(("127.0.0.1", port)):
        runner = checkout.run()
        assert runner.exit_code() == 1
    last = runner.output.splitlines()[-1]
    assert f"Port {port}" in last
    assert f"{variable}=" in last
    assert not runner.processes()


def test_a_second_run_is_refused(checkout: Checkout) -> None:
    runner = checkout.run().ready()
    second = checkout.run()
    assert second.exit_code() == 1
    assert f"already runs (pid {runner.process.pid})" in second.output
    assert "already runs" not in runner.output
    clean = checkout.make("clean")
    assert clean.exit_code() != 0
    assert f"The stack runs (pid {runner.process.pid})" in clean.output
    assert (checkout.path / ".venv").exists()


def test_a_leftover_postgres_is_named(checkout: Checkout) -> None:
    runner = checkout.run().ready()
    postgres = runner.pid_of("postgres -D")
    (checkout.path / ".local/run.lock").rename(checkout.path / ".local/old.lock")
    second = checkout.run(API_PORT=str(free_ports(1)[0]))
    assert second.exit_code() == 1
    assert f"A Postgres (pid {postgres}) already serves" in second.output.splitlines()[-1]


def test_a_second_ctrl_c_hurries(checkout: Checkout) -> None:
    (checkout.path / "app/worker.py").write_text(
        "import signal, time\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\ntime.sleep(600)\n"
    )
    runner = checkout.run().ready()
    begin = time.monotonic()
    runner.process.send_signal(signal.SIGINT)
    time.sleep(0.7)
    runner.process.send_signal(signal.SIGINT)
    assert runner.exit_code() == 0
    assert time.monotonic() - begin < 5
    assert not runner.processes()


def test_migrate_starts_postgres_for_itself(checkout: Checkout) -> None:
    runner = checkout.make("migrate")
    assert runner.exit_code() == 0, runner.output
    assert "this is start 1" in runner.output
    runner.assert_gone()
    psql = checkout.make("psql")
    assert psql.exit_code() != 0
    assert "start it with `make run`" in psql.output


@pytest.fixture
def leftover() -> Iterator[Path]:
    """Shared memory of a server that was killed an hour ago together with its parent."""
    region = SHARED_MEMORY / f"triton_test_shm_region_{uuid.uuid4()}"
    region.write_bytes(bytes(4096))
    an_hour_ago = time.time() - 3600
    os.utime(region, (an_hour_ago, an_hour_ago))
    yield region
    region.unlink(missing_ok=True)


def test_the_whole_stack_does_its_job(full_checkout: Checkout, leftover: Path) -> None:
    runner = full_checkout.make("run").ready()
    lines = runner.output[runner.output.index("CONTEXT=") :].splitlines()[:3]
    done = subprocess.run(["bash", "-euc", "\n".join(lines)], capture_output=True, text=True, timeout=60)
    assert '"status":"completed"' in done.stdout.replace(" ", ""), done
    assert any("triton_python_backend_stub" in command for command in runner.processes().values())

    demo = full_checkout.make("demo")
    assert demo.exit_code() == 0, demo.output
    assert "demo: completed" in demo.output

    maps = Path(f"/proc/{runner.pid_of('bin/tritonserver')}/maps").read_text().splitlines()
    regions = {Path(line.split()[-1]) for line in maps if "/dev/shm/triton_" in line}
    assert regions
    assert not leftover.exists()
    os.kill(runner.pid_of("nvidia_triton.local.run"), signal.SIGKILL)
    runner.assert_gone()
    assert not [region for region in regions if region.exists()]
