"""The tunnel to an instance: one process in the background for each contract, started, found and stopped from here."""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

from nvidia_triton.vast import ssh
from nvidia_triton.vast.context import Context, Instance
from nvidia_triton.vast.control import Control
from nvidia_triton.vast.errors import TargetError
from nvidia_triton.vast.forward import free_port, is_free
from nvidia_triton.vast.settings import ROOT
from nvidia_triton.vast.state import State, writing

PREFIX = "tunnel-"
USUAL_PORTS = (8000, 8001, 8002)
# How often other ports are taken, where somebody else takes the chosen ones at the same moment.
PORT_TRIES = 4
UP_SECONDS = 30.0
LIVE_SECONDS = 5.0
STOP_SECONDS = 10.0
# From the start of a supervisor to its pid in the record.
PID_SECONDS = 1.0
POLL_SECONDS = 0.1


@dataclass(frozen=True)
class Tunnel:
    """Local ports of a tunnel, and the process that keeps it up."""

    http_port: int
    grpc_port: int
    metrics_port: int
    pid: int


def start(context: Context, instance: Instance) -> Tunnel:
    """Starts the tunnel, unless it is up; returns when Triton answers through it, or says that it does not.

    Raises:
        TargetError: SSH does not work, or a local port is taken.
    """
    ident = instance.id
    with context.state.locked("tunnels"):
        pid = supervisor(context.state, ident)
        if pid is None:
            # Shows what is wrong with SSH here and not in a log.
            ssh.connect(context, instance)
            for left in reversed(range(PORT_TRIES)):
                process = _started(context, instance)
                try:
                    _wait(context, ident, partial(_runs, process))
                    break
                except TargetError:
                    # Somebody else was faster with these ports.
                    if not (left and context.state.read(f"{PREFIX}{ident}").get("ports_taken")):
                        raise
            pid = process.pid
        else:
            _wait(context, ident, lambda: supervisor(context.state, ident) is not None)
            # Whatever became of the file since: the tunnel is in it.
            _, grpc_port, _ = local_ports(context.state, ident)
            context.servers.put(f"127.0.0.1:{grpc_port}", instance.name, instance.dph_total)
    tunnel = Tunnel(*local_ports(context.state, ident), pid)
    if not _becomes_live(context, tunnel):
        context.work.say(
            f"The tunnel to {instance.name} is up, and Triton does not answer through it: start it with "
            f"`make run-tritonserver CONTRACT_ID={ident}`. The tunnel stays.",
        )
    return tunnel


def stop(context: Context, contract_id: int | None) -> list[int]:
    """Stops one tunnel, or all; returns the contracts that had one. Their servers leave the servers file."""
    with context.state.locked("tunnels"):
        state = context.state
        known = sorted({*contracts(state), *(each for each in _locks(state) if supervisor(state, each) is not None)})
        chosen = known if contract_id is None else [each for each in known if each == contract_id]
        for ident in chosen:
            _end(context, ident)
            context.state.remove(f"{PREFIX}{ident}")
            context.servers.remove(f"vast-{ident}")
    return chosen


def contracts(state: State) -> list[int]:
    """Contracts with a tunnel, up or not."""
    names = (name.removeprefix(PREFIX) for name in state.names(PREFIX))
    return sorted(int(name) for name in names if name.isdigit())


def local_ports(state: State, contract_id: int) -> tuple[int, int, int]:
    """HTTP, gRPC and metrics.

    Raises:
        TargetError: the record of the tunnel cannot be read.
    """
    ports = _recorded_ports(state, contract_id)
    if ports is None:
        raise TargetError(
            f"The record of the tunnel to vast-{contract_id} cannot be read: end the tunnel with `make stop-tunnels "
            f"CONTRACT_ID={contract_id}` and start it again."
        )
    return ports[0], ports[1], ports[2]


def _recorded_ports(state: State, contract_id: int) -> list[int] | None:
    ports = state.read(f"{PREFIX}{contract_id}").get("ports")
    right = isinstance(ports, list) and len(ports) == len(USUAL_PORTS) and all(isinstance(each, int) for each in ports)
    return ports if right else None


def supervisor(state: State, contract_id: int) -> int | None:
    """The process that keeps the tunnel up. Its lock ends with it, so no other process is ever taken for it."""
    deadline = time.monotonic() + PID_SECONDS
    while True:
        try:
            with lock_file(state, contract_id).open("r") as file:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
                return None
        except FileNotFoundError:
            return None
        except BlockingIOError:
            pid = lock_file(state, contract_id).read_text()
        if pid.isdecimal() or time.monotonic() > deadline:
            return int(pid) if pid.isdecimal() else None
        time.sleep(POLL_SECONDS)


@contextlib.contextmanager
def held(state: State, contract_id: int) -> Iterator[bool]:
    """Marks this process as the supervisor; False when there is one."""
    with lock_file(state, contract_id).open("a") as file:
        deadline = time.monotonic() + PID_SECONDS
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                # Somebody who looks whether we run holds it for a moment.
                if time.monotonic() > deadline:
                    yield False
                    return
                time.sleep(POLL_SECONDS)
            else:
                break
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield True


def is_ours(state: State, contract_id: int) -> bool:
    """Whether the state on the disk still names this process as the supervisor; it may have been deleted meanwhile."""
    try:
        return lock_file(state, contract_id).read_text() == str(os.getpid())
    except FileNotFoundError:
        return False


def _locks(state: State) -> list[int]:
    names = (path.stem.removeprefix(PREFIX) for path in state.directory.glob(f"{PREFIX}*.alive"))
    return [int(name) for name in names if name.isdecimal()]


def lock_file(state: State, contract_id: int) -> Path:
    return state.file(f"{PREFIX}{contract_id}.alive")


def log_file(state: State, contract_id: int) -> Path:
    return state.file(f"{PREFIX}{contract_id}.log")


def _started(context: Context, instance: Instance) -> subprocess.Popen[bytes]:
    """A supervisor with a record that says what it is to do."""
    state, far = context.state, context.definition.triton.ports
    state.write(
        f"{PREFIX}{instance.id}",
        {
            "contract": instance.id,
            "ports": _ports(state, instance.id),
            "remote_ports": [far.http, far.grpc, far.metrics],
            "instance": asdict(instance),
            "up": False,
            "problem": "",
        },
    )
    # The pid of an earlier one may be another process by now.
    with writing(state.directory):
        lock_file(state, instance.id).write_text("")
    return _spawn(context, instance.id)


def _runs(process: subprocess.Popen[bytes]) -> bool:
    return process.poll() is None


def _spawn(context: Context, contract_id: int) -> subprocess.Popen[bytes]:
    environment: Mapping[str, str] = {
        **os.environ,
        **context.settings.environ,
        "LOCAL_DIR": str(context.settings.local_dir),
    }
    return subprocess.Popen(
        [sys.executable, "-m", "nvidia_triton.vast.supervisor", str(contract_id)],
        cwd=ROOT,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def _ports(state: State, contract_id: int) -> list[int]:
    """Those the tunnel had, else Triton's usual ones, else any; never those of another tunnel."""
    others = {port for each in contracts(state) if each != contract_id for port in _recorded_ports(state, each) or ()}
    before = _recorded_ports(state, contract_id)
    for ports in (before, list(USUAL_PORTS)):
        if ports is not None and not others & set(ports) and all(is_free(port) for port in ports):
            return ports
    found: set[int] = set()
    while len(found) < len(USUAL_PORTS):
        found |= {free_port()} - others
    return sorted(found)


def _wait(context: Context, contract_id: int, alive: Callable[[], bool]) -> None:
    """Until the supervisor says that the tunnel is up."""
    state = context.state
    deadline = time.monotonic() + UP_SECONDS
    while True:
        record = state.read(f"{PREFIX}{contract_id}")
        if record.get("up"):
            return
        late = time.monotonic() > deadline
        if late or not alive():
            problem = record.get("problem") or f"see {ssh.shown(log_file(state, contract_id))}."
            raise TargetError(
                f"The tunnel to vast-{contract_id} is {'not up yet' if late else 'down'}: {problem}"
                + (
                    f" It keeps trying in the background; `make stop-tunnels CONTRACT_ID={contract_id}` ends it."
                    if late
                    else ""
                )
            )
        context.work.pause(POLL_SECONDS)


def _becomes_live(context: Context, tunnel: Tunnel) -> bool:
    deadline = time.monotonic() + LIVE_SECONDS
    with Control(tunnel.http_port, context.work) as control:
        while not (live := control.is_live()) and time.monotonic() < deadline:
            context.work.pause(POLL_SECONDS)
    return live


def _end(context: Context, contract_id: int) -> None:
    for number, seconds in ((signal.SIGTERM, STOP_SECONDS), (signal.SIGKILL, STOP_SECONDS)):
        deadline = time.monotonic() + seconds
        while (pid := supervisor(context.state, contract_id)) is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
            if time.monotonic() > deadline:
                break
            context.work.pause(POLL_SECONDS)
        else:
            return
