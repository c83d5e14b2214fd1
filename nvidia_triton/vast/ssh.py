"""SSH to an instance: the one place that builds its command lines.

`check` tries once, `connect` retries while the key may still be on its way; both give a `Connection`.
"""

from __future__ import annotations

import shlex
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Thread

from nvidia_triton.vast.context import Address, Context, Host
from nvidia_triton.vast.errors import TargetError

CONNECT_SECONDS = 15
# An instance that has just come up refuses connections or the key for a while.
PATIENCE_SECONDS = 30.0
PAUSE_SECONDS = 1.0
SSH_FAILED = 255


class Unreachable(TargetError):
    """No address of the instance answers; it may later."""


class KeyRefused(TargetError):
    """The instance answers and refuses the key; right after its start the key may still be on its way."""


class HostKeyChanged(TargetError):
    """Another host key than the first time: nothing goes on before a person has decided."""


class RemoteFailed(TargetError):
    """A script ended with an error on the instance."""

    def __init__(self, message: str, code: int, output: str) -> None:
        super().__init__(message)
        self.code = code
        self.output = output


def require_program(name: str, package: str) -> None:
    """
    Raises:
        TargetError: the program is not installed on this machine.
    """
    if shutil.which(name) is None:
        raise TargetError(
            f"`{name}` is not installed on this machine. Install it (Debian and Ubuntu: `apt-get install {package}`, "
            f"macOS: `brew install {package.removesuffix('-client')}`) and try again."
        )


def check(context: Context, instance: Host) -> Connection:
    """Tries every address once, the direct one first.

    Raises:
        Unreachable, KeyRefused, HostKeyChanged: see there. A refused key outranks an address that does not answer.
    """
    require_program("ssh", "openssh-client")
    context.settings.require_ssh_key()
    context.state.prepare()
    if not instance.addresses:
        raise Unreachable(
            f"Instance {instance.id} has no SSH address yet (its status is {instance.status or 'not known'!r}): "
            f"wait until it runs, or start it with `make start-instance CONTRACT_ID={instance.id}`."
        )
    problems: list[TargetError] = []
    for address in instance.addresses:
        connection = Connection(context, instance, address)
        try:
            connection.run("true", timeout=CONNECT_SECONDS * 2)
        except (Unreachable, KeyRefused) as problem:
            problems.append(problem)
        else:
            return connection
    raise next((each for each in problems if isinstance(each, KeyRefused)), problems[0])


def connect(context: Context, instance: Host, patience: float = PATIENCE_SECONDS) -> Connection:
    """As `check`, for up to `patience` seconds."""
    deadline = time.monotonic() + patience
    said = False
    while True:
        try:
            return check(context, instance)
        except (Unreachable, KeyRefused) as problem:
            if not instance.addresses or time.monotonic() + PAUSE_SECONDS > deadline:
                raise
            if not said:
                reason = "refuses the key" if isinstance(problem, KeyRefused) else "does not answer"
                context.work.say(f"{instance.name} {reason}; trying again for {patience:.0f} s")
                said = True
            context.work.pause(PAUSE_SECONDS)


def interactive(context: Context, instance: Host) -> int:
    """Opens a shell on the instance; returns its exit code."""
    connection = connect(context, instance)
    return subprocess.call(connection.command(terminal=True))


@dataclass(frozen=True)
class Connection:
    """An address of an instance that answered; every call is an SSH connection of its own."""

    context: Context
    instance: Host
    address: Address

    @property
    def destination(self) -> str:
        return f"{self.instance.user}@{self.instance.name}"

    def options(self, *, alive_seconds: int = 15) -> list[str]:
        """`ssh` and its options; a far end that is silent for three times `alive_seconds` ends it."""
        hosts = str(self.context.state.known_hosts).replace("%", "%%")
        settings = {
            "HostName": self.address.host,
            "HostKeyAlias": self.instance.name,
            "StrictHostKeyChecking": "accept-new",
            "UserKnownHostsFile": f'"{hosts}"',
            "GlobalKnownHostsFile": "/dev/null",
            "UpdateHostKeys": "no",
            "CheckHostIP": "no",
            "IdentitiesOnly": "yes",
            "BatchMode": "yes",
            "ConnectTimeout": str(CONNECT_SECONDS),
            "ServerAliveInterval": str(alive_seconds),
            "ServerAliveCountMax": "3",
            "LogLevel": "ERROR",
        }
        key = self.context.settings.require_ssh_key()
        given = [part for name, value in settings.items() for part in ("-o", f"{name}={value}")]
        # The user's own configuration could add a jump host, a shared connection or another key.
        return ["ssh", "-F", "/dev/null", "-p", str(self.address.port), "-i", str(key), *given]

    def command(self, *remote: str, terminal: bool = False) -> list[str]:
        return [*self.options(), "-t" if terminal else "-T", self.destination, *remote]

    def forward_command(
        self, ports: Mapping[int, int], remote: str, alive_seconds: int, bind: str = "127.0.0.1"
    ) -> list[str]:
        """Forwards ports of the local address `bind` to the instance's loopback while `remote` runs there."""
        forwards = [part for local, far in ports.items() for part in ("-L", f"{bind}:{local}:127.0.0.1:{far}")]
        exits = ("-o", "ExitOnForwardFailure=yes")
        options = self.options(alive_seconds=alive_seconds)
        return [*options, *exits, *forwards, "-T", self.destination, remote]

    def run(
        self,
        script: str,
        variables: Mapping[str, str] | None = None,
        *,
        timeout: float | None = None,
        on_line: Callable[[str], None] | None = None,
    ) -> str:
        """Runs a bash script on the instance and returns its output; `on_line` is given every line as it comes.

        Raises:
            RemoteFailed: it ended with an error.
            Unreachable, KeyRefused, HostKeyChanged: SSH itself failed.
        """
        lines: list[str] = []
        for line in self._stream(script, variables or {}, timeout):
            lines.append(line)
            if on_line is not None:
                on_line(line)
        return "\n".join(lines)

    def _stream(self, script: str, variables: Mapping[str, str], timeout: float | None) -> Iterator[str]:
        errors: list[str] = []
        with (
            subprocess.Popen(
                self.command("bash", "-s"),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                errors="replace",
            ) as process,
            self.context.work.child(process),
        ):
            assert process.stdin is not None
            assert process.stdout is not None
            assert process.stderr is not None
            reader = Thread(target=errors.extend, args=(process.stderr,), daemon=True)
            reader.start()
            watch = _Deadline(process, timeout)
            watch.start()
            try:
                try:
                    process.stdin.write(wrapped(script, variables))
                    process.stdin.close()
                except BrokenPipeError:
                    pass
                for line in process.stdout:
                    yield line.rstrip("\n")
                code = process.wait()
            finally:
                watch.cancelled = True
                if process.poll() is None:
                    process.terminate()
            reader.join()
        if watch.expired:
            raise Unreachable(f"{self.instance.name} did not answer within {timeout:.0f} s.")
        if code:
            raise self.failure(code, "".join(errors))

    def failure(self, code: int, errors: str) -> TargetError:
        """What a failed ssh, or a script that failed behind it, means."""
        name, where = self.instance.name, f"{self.address.host}:{self.address.port}"
        errors = self.context.settings.redact(errors.strip())
        last = errors.splitlines()[-1] if errors else f"exit code {code}"
        if "HOST IDENTIFICATION HAS CHANGED" in errors or "Host key verification failed" in errors:
            hosts = shown(self.context.state.known_hosts)
            return HostKeyChanged(
                f"The host key of {name} at {where} is not the one of the first connection. The instance may have been "
                "set up anew by Vast, or another machine answers at its address. Nothing was sent to it. If you expect "
                f"a new key, forget the old one with `ssh-keygen -R {name} -f {shlex.quote(hosts)}` and try again; "
                f"otherwise `make destroy-instance CONTRACT_ID={self.instance.id}`."
            )
        if code == SSH_FAILED and "Permission denied" in errors:
            key = shown(self.context.settings.require_ssh_key())
            return KeyRefused(
                f"{name} refuses the SSH key {key}. Right after the start it can take a minute until Vast has put the "
                "key in place; a key with a passphrase has to be loaded first with `ssh-add`; SSH_KEY names another."
            )
        if code == SSH_FAILED:
            return Unreachable(
                f"{name} does not answer on {where}: {last}. It may still be starting, or be stopped: "
                "`make list-instances` shows its state."
            )
        return RemoteFailed(f"A step failed on {name}: {last}.", code, errors)


def wrapped(script: str, variables: Mapping[str, str]) -> str:
    """A function around the script: it runs once all of it has arrived, and nothing in it reads the rest of it."""
    given = "".join(f"{name}={shlex.quote(value)}\n" for name, value in variables.items())
    return f"{given}main() {{\n{script}\n}}\nmain </dev/null\n"


def shown(path: Path) -> str:
    """A path as the user would type it."""
    for base, prefix in ((Path.cwd(), ""), (Path.home(), "~/")):
        if path.is_relative_to(base):
            return prefix + str(path.relative_to(base))
    return str(path)


def words(command: Sequence[str]) -> str:
    """A command line as one string, for programs that start ssh themselves."""
    return shlex.join(command)


class _Deadline(Thread):
    """Ends a process that takes longer than `timeout` seconds."""

    def __init__(self, process: subprocess.Popen[str], timeout: float | None) -> None:
        super().__init__(daemon=True)
        self._process = process
        self._timeout = timeout
        self.cancelled = False
        self.expired = False

    def run(self) -> None:
        if self._timeout is None:
            return
        try:
            self._process.wait(self._timeout)
        except subprocess.TimeoutExpired:
            if not self.cancelled:
                self.expired = True
                self._process.kill()
