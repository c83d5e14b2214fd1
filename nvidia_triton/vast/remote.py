"""Triton on the instance: what it needs, start, stop, logs."""

from __future__ import annotations

import math
import shlex
from dataclasses import dataclass

from nvidia_triton.vast import ssh
from nvidia_triton.vast.context import Context, Host
from nvidia_triton.vast.control import Control, LoadFailed
from nvidia_triton.vast.errors import TargetError
from nvidia_triton.vast.forward import Forward
from nvidia_triton.vast.images import version
from nvidia_triton.vast.loading import engine_reason, load
from nvidia_triton.vast.remote_scripts import (
    BINARY,
    DIRECTORY,
    FACTS,
    FOLLOW,
    LAST_WORDS,
    SERVED,
    START,
    STATUS,
    STOP,
    TAIL,
)

EXIT_SECONDS = 30
LOG_LINES = 15
# The log is cut when it has become longer than this.
LOG_BYTES = 50_000_000
# How often the log is looked at, and the processes for orphans.
WATCH_SECONDS = 2.0


@dataclass(frozen=True)
class Status:
    """Of the process in the pid file, if it is still the one that was started, and of the HTTP port."""

    pid: int | None
    live: bool


@dataclass(frozen=True)
class Facts:
    """What the instance has; None where it cannot be read."""

    driver: str | None
    gpus: tuple[str, ...]
    shm_mib: float | None
    free_disk_gb: float | None
    binary: bool
    environment: bool


def run_tritonserver(context: Context, instance: Host, restart: bool = False) -> None:
    """Starts Triton, unless it serves already; `restart` stops it first. Returns when it is live.

    Raises:
        TargetError: the instance is short of something, or Triton ended or was not live in time.
    """
    name = instance.name
    with context.state.locked(
        f"triton-{instance.id}", busy=f"Another run-tritonserver works on {name}: wait for its end."
    ):
        context.work.begins("ssh")
        connection = ssh.connect(context, instance)
        context.work.begins("preflight")
        before = status(connection)
        if before.live and before.pid is None and restart:
            raise TargetError(
                f"A server answers on {name} that this target did not start, so it cannot restart it. Look for it with "
                f"`make ssh-instance CONTRACT_ID={instance.id}`, end it there, and try again."
            )
        if before.live and not restart:
            started = f"process {before.pid}" if before.pid else "not started by this target"
            context.work.say(f"Triton serves already on {name} ({started}).")
            return
        _check(context, instance, facts(connection))
        if before.pid is not None and restart:
            context.work.say(f"stopping Triton on {name} (process {before.pid})")
            _stop(connection)
        context.work.begins("start triton")
        with context.work.progress(f"starting Triton on {name}"):
            pid = _start(connection)
        context.work.say(f"Triton is live on {name} (process {pid}).")
        _load_served(connection)


def stop(context: Context, instance: Host) -> bool:
    """Stops Triton; False when none of ours runs."""
    connection = ssh.connect(context, instance)
    if status(connection).pid is None:
        return False
    _stop(connection)
    return True


def logs(context: Context, instance: Host, follow: bool, lines: int) -> None:
    """Prints the last lines of Triton's log; with `follow` also those to come, until Ctrl-C."""
    connection = ssh.connect(context, instance)

    def show(line: str) -> None:
        context.work.say(context.settings.redact(line))

    try:
        connection.run(FOLLOW if follow else TAIL, {"lines": str(lines)}, on_line=show)
    except ssh.RemoteFailed:
        raise TargetError(
            f"There is no log of Triton on {instance.name} yet: start it with "
            f"`make run-tritonserver CONTRACT_ID={instance.id}`."
        ) from None
    except KeyboardInterrupt:
        return


def status(connection: ssh.Connection) -> Status:
    found = _fields(connection.run(STATUS, _variables(connection), timeout=60))
    pid = found.get("pid", "")
    return Status(int(pid) if pid.isdigit() else None, found.get("live") == "yes")


def facts(connection: ssh.Connection) -> Facts:
    found = _fields(connection.run(FACTS, _variables(connection), timeout=60))
    gpus = tuple(filter(None, found.get("gpus", "").split(";")))
    return Facts(
        driver=gpus[0].split(",")[0].strip() if gpus else None,
        gpus=gpus,
        shm_mib=_scaled(found.get("shm_kib", ""), 1024),
        free_disk_gb=_scaled(found.get("disk_kib", ""), 1e9 / 1024),
        binary=found.get("binary") == "yes",
        environment=found.get("environment") == "yes",
    )


def _check(context: Context, instance: Host, found: Facts) -> None:
    need = context.definition.needs
    driver = context.definition.image.named(instance.image).driver
    short = []
    if not found.binary:
        short.append(
            f"{BINARY} is missing: the image {instance.image} is no tritonserver image; see `image` in the definition"
        )
    if found.driver is None:
        short.append("nvidia-smi shows no GPU: the machine is broken, rent another one")
    elif version(found.driver) < version(driver):
        short.append(f"the driver is {found.driver} and the image needs {driver}: rent a newer machine")
    if found.shm_mib is not None and found.shm_mib < need.shm_mib:
        short.append(f"shared memory, /dev/shm, has {found.shm_mib:.0f} MiB and {need.shm_mib} are needed")
    if found.free_disk_gb is not None and found.free_disk_gb < need.free_disk_gb:
        short.append(f"{found.free_disk_gb:.1f} GB of the disk are free and {need.free_disk_gb:g} are needed")
    if short:
        raise TargetError(
            f"{instance.name} cannot run Triton: {'; '.join(short)}. Change nvidia_triton/vastai_instance_definition"
            f".yaml, or rent another: `make destroy-instance CONTRACT_ID={instance.id}`, then `make search-instance`."
        )
    if not found.environment:
        context.work.say(
            f"note: {DIRECTORY}/triton.env is missing, so Triton starts without the environment of the definition "
            "(HF_TOKEN, say)",
        )


def _start(connection: ssh.Connection) -> int:
    definition = connection.context.definition
    seconds = definition.deadline_minutes.triton * 60
    arguments = shlex.join(definition.triton.arguments())
    variables = _variables(connection) | {
        "arguments": arguments,
        "seconds": str(math.ceil(seconds)),
        "log_bytes": str(LOG_BYTES),
        "watch_seconds": str(WATCH_SECONDS),
    }
    found = _fields(connection.run(START, variables, timeout=seconds + 60))
    if found.get("result") == "live":
        return int(found["pid"])
    name, ident = connection.instance.name, connection.instance.id
    said = connection.context.settings.redact(
        connection.run(LAST_WORDS, {"lines": str(LOG_LINES)}, timeout=60) if found.get("log") == "yes" else "(nothing)"
    )
    what = "ended at its start" if found.get("result") == "ended" else f"is not live after {seconds:g} s"
    raise TargetError(
        f"Triton {what} on {name}. Its log ends with:\n{said}\nMore with `make check-logs-tritonserver "
        f"CONTRACT_ID={ident}`; then `make run-tritonserver CONTRACT_ID={ident} RESTART=1`."
    )


def _load_served(connection: ssh.Connection) -> None:
    """Loads what was deployed before; after a restart Triton serves nothing by itself."""
    names = connection.run(SERVED, timeout=60).split()
    if not names:
        return
    work = connection.context.work
    with (
        Forward(connection, connection.context.definition.triton.ports.http) as forward,
        Control(forward.port, work) as control,
    ):
        for name in names:
            work.begins("load model")
            try:
                seconds = load(connection, forward, control, name)
            except LoadFailed as reason:
                work.say(f"{name}: failed to load. {connection.context.settings.redact(engine_reason(str(reason)))}")
            else:
                work.say(f"{name}: ready after {seconds:.0f} s")


def _stop(connection: ssh.Connection) -> None:
    connection.run(STOP, _variables(connection) | {"seconds": str(EXIT_SECONDS)}, timeout=EXIT_SECONDS + 60)


def _variables(connection: ssh.Connection) -> dict[str, str]:
    return {"http_port": str(connection.context.definition.triton.ports.http)}


def _fields(output: str) -> dict[str, str]:
    return dict(line.split("=", 1) for line in output.splitlines() if "=" in line)


def _scaled(kibibytes: str, divisor: float) -> float | None:
    return int(kibibytes) / divisor if kibibytes.isdigit() else None
