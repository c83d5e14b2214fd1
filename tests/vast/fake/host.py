"""A rented machine: namespaces of its own, and sshd on two addresses of this machine's loopback."""

import asyncio
import contextlib
import os
import shutil
import signal
import socket
from pathlib import Path

import psutil

from nvidia_triton.local.process import shielded
from tests.vast.fake.faults import Machine
from tests.vast.fake.prerequisites import SYSTEM_PATH, tool
from tests.vast.fake.provision import HOME, INSIDE, SESSION_PATH, Engine, hidden, make_host_key, provision

LOOPBACK = "127.0.0.1"
START_SECONDS = 20.0


class Door:
    """An address of the machine; its port is kept while nobody listens there."""

    def __init__(self, address: str) -> None:
        self.address = address
        self._socket = self._bound(0)
        self.port: int = self._socket.getsockname()[1]
        self.listening = False

    async def accept(self) -> socket.socket:
        connection, _ = await asyncio.get_running_loop().sock_accept(self._socket)
        connection.setblocking(True)
        return connection

    def listen(self) -> None:
        if not self.listening:
            self._socket.listen(64)
            self.listening = True

    def refuse(self) -> None:
        if self.listening:
            self._socket.close()
            self._socket = self._bound(self.port)
            self.listening = False

    def close(self) -> None:
        self._socket.close()
        self.listening = False

    def _bound(self, port: int) -> socket.socket:
        made = socket.socket()
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind((self.address, port))
        made.setblocking(False)
        return made


class Host:
    """Lives in the event loop that starts it; all its processes die with that loop's thread."""

    def __init__(self, root: Path, machine: Machine, engine: Engine) -> None:
        self.root = root
        self.machine = machine
        self.opt = root / "opt"
        self.onstart_log = self.opt / ".machine" / "onstart.log"
        self.log = root / "machine.log"
        self.direct = Door(LOOPBACK)
        self.proxy = Door(LOOPBACK)
        self.pid = 0
        self._thawed = asyncio.Event()
        self._thawed.set()
        self._init: asyncio.subprocess.Process | None = None
        self._connections: set[asyncio.subprocess.Process] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._doormen: dict[Door, asyncio.Task[None]] = {}
        self.opt.mkdir(parents=True)
        provision(self.opt, machine, engine)

    @property
    def address(self) -> str:
        return self.direct.address

    @property
    def port(self) -> int:
        return self.direct.port

    @property
    def proxy_port(self) -> int:
        return self.proxy.port

    @property
    def running(self) -> bool:
        return self._init is not None and self._init.returncode is None

    async def boot(self, onstart: str | None, environment: dict[str, str]) -> None:
        """Starts the machine and runs `onstart` to its end; nobody listens yet."""
        with self.log.open("ab") as log:
            self._init = await asyncio.create_subprocess_exec(
                *shielded(
                    [
                        *(tool("unshare"), "--mount", "--net", "--pid", "--fork", "--kill-child", "--mount-proc"),
                        *("--propagation", "private", tool("bash"), str(self.opt / ".machine" / "boot")),
                        *(str(self.opt), str(self.machine.shm_mib), *hidden(self.machine)),
                    ]
                ),
                env={"PATH": SYSTEM_PATH},
                cwd="/",
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=log,
                start_new_session=True,
            )
        assert self._init.stdout is not None
        line = await asyncio.wait_for(self._init.stdout.readline(), START_SECONDS)
        assert line == b"up\n", f"the machine did not start: {self.log.read_text()}"
        self.pid = psutil.Process(self._init.pid).children()[0].pid
        if onstart:
            script = self.opt / "root" / "onstart.sh"
            script.write_text(onstart)
            with self.onstart_log.open("ab") as log:
                process = await asyncio.create_subprocess_exec(
                    *self._inside("bash", f"{HOME}/onstart.sh"),
                    env={"PATH": SESSION_PATH, "HOME": HOME, "USER": "root", **environment},
                    stdin=asyncio.subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                )
            await process.wait()

    def open(self, *, direct: bool = True, proxy: bool = True) -> None:
        """Lets people in."""
        for door, wanted in ((self.direct, direct and self.machine.direct), (self.proxy, proxy)):
            if wanted and not door.listening:
                door.listen()
                self._doormen[door] = asyncio.create_task(self._serve(door))

    def refuse(self, *, direct: bool = True, proxy: bool = True) -> None:
        for door, wanted in ((self.direct, direct), (self.proxy, proxy)):
            if wanted:
                self._dismiss(door)
                door.refuse()

    async def move(self, address: str) -> None:
        """Another address and port; connections die."""
        self._dismiss(self.direct)
        self.direct.close()
        self.direct = Door(address)
        if self.running:
            self.open(proxy=False)
        await self.cut()

    async def cut(self) -> None:
        connections = list(self._connections)
        for pid in self.ssh_pids():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        await asyncio.gather(*(process.wait() for process in connections))

    def freeze(self) -> None:
        self._thawed.clear()
        self._signal_ssh(signal.SIGSTOP)

    def thaw(self) -> None:
        self._thawed.set()
        self._signal_ssh(signal.SIGCONT)

    def change_host_key(self) -> None:
        make_host_key(self.opt)

    async def hide(self, program: str) -> None:
        process = await asyncio.create_subprocess_exec(*self._inside("bash", f"{INSIDE}/hide", tool(program)))
        assert await process.wait() == 0

    def ssh_pids(self) -> list[int]:
        """The sshd processes of all connections, as this machine numbers them."""
        found = []
        for connection in list(self._connections):
            with contextlib.suppress(psutil.NoSuchProcess):
                children = psutil.Process(connection.pid).children(recursive=True)
                # Right after the start it is still the program that entered the namespaces.
                found += [child.pid for child in children if child.name().startswith(("sshd", "nsenter"))]
        return found

    def processes(self) -> dict[int, str]:
        """Command lines of all that runs on the machine except its init, by the pid here."""
        found: dict[int, str] = {}
        if not self.running:
            return found
        namespace = os.readlink(f"/proc/{self.pid}/ns/pid")
        for process in psutil.process_iter():
            with contextlib.suppress(OSError, psutil.Error):
                if process.pid != self.pid and os.readlink(f"/proc/{process.pid}/ns/pid") == namespace:
                    found[process.pid] = " ".join(process.cmdline())
        return found

    async def stop(self) -> None:
        """Ends everything that runs on the machine; its files and its ports stay."""
        self.refuse()
        self.thaw()
        if self._init is not None:
            if self.running:
                with contextlib.suppress(ProcessLookupError):
                    # The init may not be known yet, and dies with the process that waits for it.
                    os.kill(self.pid or self._init.pid, signal.SIGKILL)
            await self._init.wait()
            await asyncio.gather(*self._tasks, return_exceptions=True)
        self._init, self.pid = None, 0

    async def remove(self) -> None:
        await self.stop()
        self.direct.close()
        self.proxy.close()
        shutil.rmtree(self.root, ignore_errors=True)

    def _inside(self, *command: str) -> list[str]:
        return [tool("nsenter"), "--target", str(self.pid), "--mount", "--net", "--pid", "--", *command]

    def _signal_ssh(self, number: signal.Signals) -> None:
        for pid in self.ssh_pids():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
        if number == signal.SIGCONT:
            # It stops itself when what it waits for is stopped.
            for connection in list(self._connections):
                with contextlib.suppress(ProcessLookupError):
                    connection.send_signal(number)

    def _dismiss(self, door: Door) -> None:
        doorman = self._doormen.pop(door, None)
        if doorman is not None:
            doorman.cancel()

    async def _serve(self, door: Door) -> None:
        while True:
            connection = await door.accept()
            await self._thawed.wait()
            task = asyncio.create_task(self._connect(connection))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _connect(self, connection: socket.socket) -> None:
        with connection:
            process = await asyncio.create_subprocess_exec(
                *self._inside(
                    *(tool("sshd"), "-i", "-f", f"{INSIDE}/sshd_config", "-E", f"{INSIDE}/sshd.log"),
                ),
                env={"PATH": SYSTEM_PATH},
                stdin=connection.fileno(),
                stdout=connection.fileno(),
                stderr=asyncio.subprocess.DEVNULL,
            )
        self._connections.add(process)
        try:
            await process.wait()
        finally:
            self._connections.discard(process)
