"""A real tritonserver from a PyPI wheel, its `backend: "vllm"` served by the simulation in `backend/`.

`python -m nvidia_triton.local.triton --model-repository models` runs one in the foreground.
"""

import argparse
import contextlib
import hashlib
import http.client
import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import FrameType

from nvidia_triton.local.engine import STUB, EngineEnvironment, engine_environment
from nvidia_triton.local.orphans import Adoption, end_abandoned, end_session
from nvidia_triton.local.process import LocalError, shielded

HOST = "127.0.0.1"
BACKEND = Path(__file__).with_name("backend")
# Modules of this project that the backend uses too; they import the standard library alone.
SHARED_MODULES = (Path(__file__).parents[1] / "engine_arguments.py",)
SHARED_MEMORY = Path("/dev/shm")  # noqa: S108
REGIONS = "triton_*_shm_region_*"
# A region this old is mapped by its server, if it still has one.
REGION_SETTLED_SECONDS = 1.0
# How much longer than its `exit_timeout` a server may take to end.
KILL_AFTER_SECONDS = 2
POLL_SECONDS = 0.05


@dataclass(frozen=True)
class TritonServer:
    """How to start one server; nothing happens before `prepare`.

    `models` are loaded at start, `("*",)` means all of the repository. `work_dir` may be shared by servers.
    """

    model_repository: Path
    work_dir: Path
    grpc_port: int = 8001
    http_port: int = 8000
    metrics_port: int = 8002
    models: tuple[str, ...] = ("*",)
    exit_timeout: int = 10  # seconds that requests in flight get after SIGTERM

    def prepare(self) -> None:
        """Make the backends directory and check the machine.

        Raises:
            LocalError: the platform, the environment of the engines or the model repository does not fit.
        """
        if not self.model_repository.is_dir():
            raise LocalError(f"There is no model repository at {self.model_repository}.")
        self.work_dir.mkdir(parents=True, exist_ok=True)
        if self.backends.is_dir():
            return
        made = Path(tempfile.mkdtemp(prefix=".backends-", dir=self.work_dir))
        try:
            python = made / "python"
            shutil.copytree(self.engine.backend, python, ignore=shutil.ignore_patterns("__pycache__"))
            shutil.copy(self.engine.stub, python / STUB)
            (python / STUB).chmod(0o755)
            shutil.copytree(BACKEND, made / "vllm", ignore=shutil.ignore_patterns("__pycache__"))
            for module in SHARED_MODULES:
                shutil.copy(module, made / "vllm")
            made.chmod(0o755)
            # Fails when another process was faster; what it made is the same.
            with contextlib.suppress(OSError):
                made.rename(self.backends)
        finally:
            shutil.rmtree(made, ignore_errors=True)

    def command(self) -> list[str]:
        return [
            str(self.engine.server),
            f"--model-repository={self.model_repository.absolute()}",
            f"--backend-directory={self.backends}",
            "--model-control-mode=explicit",
            *(f"--load-model={name}" for name in self.models),
            "--exit-on-error=false",
            "--strict-readiness=false",
            f"--exit-timeout-secs={self.exit_timeout}",
            f"--http-address={HOST}",
            f"--http-port={self.http_port}",
            f"--grpc-address={HOST}",
            f"--grpc-port={self.grpc_port}",
            f"--metrics-address={HOST}",
            f"--metrics-port={self.metrics_port}",
            "--allow-gpu-metrics=false",
            "--grpc-keepalive-time=30000",
            "--grpc-keepalive-timeout=10000",
            "--grpc-keepalive-permit-without-calls=1",
            "--grpc-http2-max-pings-without-data=0",
            # A client that pings more often than every five minutes would be sent away without this.
            "--grpc-http2-min-recv-ping-interval-without-data=5000",
        ]

    def supervised(self) -> list[str]:
        """The command of a parent of its own for the server, which cleans up after it: `run`."""
        return [
            *(sys.executable, "-m", "nvidia_triton.local.triton"),
            f"--model-repository={self.model_repository.absolute()}",
            f"--work-dir={self.work_dir.absolute()}",
            *(f"--load-model={name}" for name in self.models),
            f"--http-port={self.http_port}",
            f"--grpc-port={self.grpc_port}",
            f"--metrics-port={self.metrics_port}",
        ]

    def environment(self) -> dict[str, str]:
        """Our own environment, in which the server finds its libraries and the stub that of the engines."""
        libraries = [*map(str, self.engine.libraries), os.environ.get("LD_LIBRARY_PATH")]
        return {
            **os.environ,
            # The stub's interpreter is isolated: PATH is the one variable through which it finds a venv.
            "PATH": os.pathsep.join([str(self.engine.bin), os.environ.get("PATH", os.defpath)]),
            "LD_LIBRARY_PATH": os.pathsep.join(filter(None, libraries)),
            # Its threads wait for each other spinning, on cores that the rest of the stack needs too.
            "OPENBLAS_NUM_THREADS": os.environ.get("OPENBLAS_NUM_THREADS", "1"),
        }

    def is_ready(self) -> bool:
        """Whether the server answers; models named at start are loaded, or have failed, by then."""
        connection = http.client.HTTPConnection(HOST, self.http_port, timeout=2)
        try:
            connection.request("GET", "/v2/health/ready")
            return connection.getresponse().status == 200
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()

    def wait_ready(self, timeout: float = 180, alive: Callable[[], bool] = lambda: True) -> None:
        """Block until the server answers, `timeout` in seconds.

        Raises:
            LocalError: it did not in time, or `alive` says that it has ended.
        """
        deadline = time.monotonic() + timeout
        while not self.is_ready():
            if not alive():
                raise LocalError("tritonserver ended before it was ready: its log says why.")
            if time.monotonic() > deadline:
                raise LocalError(f"tritonserver was not ready within {timeout:g} s: its log may say why.")
            time.sleep(POLL_SECONDS)

    def check_models(self) -> None:
        """
        Raises:
            LocalError: a model to load is not in the repository.
        """
        repository = f"{self.model_repository.name}/"
        there = sorted(path.parent.name for path in self.model_repository.glob("*/config.pbtxt"))
        if missing := [name for name in self.models if name not in (*there, "*")]:
            choice = f"it holds {', '.join(there)}" if there else "it holds no folder with a config.pbtxt"
            raise LocalError(f"{repository} has no model {missing[0]!r}: {choice}. Name others in MODELS.")

    def check_ports(self) -> None:
        """
        Raises:
            LocalError: a port is taken.
        """
        for port in (self.http_port, self.grpc_port, self.metrics_port):
            with socket.socket() as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                try:
                    probe.bind((HOST, port))
                except OSError as error:
                    raise LocalError(f"Port {port} is not free for tritonserver: {error.strerror}.") from None

    @cached_property
    def backends(self) -> Path:
        """Named after its content, so that a running server keeps the one it was started with."""
        digest = hashlib.sha256(f"{self.engine.version} {self.engine.stub}".encode())
        for path in (*sorted(BACKEND.glob("*.py")), *SHARED_MODULES):
            digest.update(f"\0{path.name}\0".encode() + path.read_bytes())
        return self.work_dir.absolute() / f"backends-{digest.hexdigest()[:16]}"

    @property
    def engine(self) -> EngineEnvironment:
        return engine_environment()


def clean_up_after(pid: int) -> None:
    """Remove what tritonserver `pid`, leader of its session, left: stubs, engines, unmapped shared memory."""
    for stub, region in _stubs_of(pid):
        with contextlib.suppress(ProcessLookupError):
            os.kill(stub, signal.SIGKILL)
        (SHARED_MEMORY / region).unlink(missing_ok=True)
    end_session(pid)
    # A stub that ended before its server took the name of its region with it.
    if any(_age_of(path) < REGION_SETTLED_SECONDS for path in _own_regions()):
        time.sleep(REGION_SETTLED_SECONDS)
    _remove_unmapped(set(_own_regions()))


def remove_leftovers() -> None:
    """Remove the shared memory of servers that ended together with those who would have cleaned up after them."""
    _remove_unmapped({path for path in _own_regions() if _age_of(path) >= REGION_SETTLED_SECONDS})


def _remove_unmapped(regions: set[Path]) -> None:
    for path in regions - _mapped_regions() if regions else ():
        path.unlink(missing_ok=True)


def _stubs_of(server: int) -> Iterator[tuple[int, str]]:
    """Process id and region name of each stub; both stand on its command line."""
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        with contextlib.suppress(OSError):
            arguments = (entry / "cmdline").read_text(errors="replace").split("\0")
            if arguments[0].endswith(STUB) and len(arguments) > 5 and arguments[5] == str(server):
                yield int(entry.name), arguments[2]


def _own_regions() -> Iterator[Path]:
    for path in SHARED_MEMORY.glob(REGIONS):
        with contextlib.suppress(FileNotFoundError):
            if path.stat().st_uid == os.geteuid():
                yield path


def _age_of(path: Path) -> float:
    try:
        return time.time() - path.stat().st_mtime
    except FileNotFoundError:
        return REGION_SETTLED_SECONDS


def _mapped_regions() -> set[Path]:
    mapped = set()
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        with contextlib.suppress(OSError):
            for line in (entry / "maps").read_text(errors="replace").splitlines():
                if "/dev/shm/triton_" in line:  # noqa: S108
                    mapped.add(Path(line[line.index("/") :]))
    return mapped


def run(server: TritonServer) -> int:
    """Run a server in the foreground and clean up after it; returns its exit code, or minus the signal that ended it.

    The first signal is passed on, as is the death of our parent; a later one, or silence after the server's own
    `exit_timeout`, kills. A server that ends after its stub, or too late, leaves shared memory behind, so nobody
    who may be killed himself should be its only parent.
    """
    server.prepare()
    server.check_models()
    server.check_ports()
    end_abandoned(server.work_dir)
    remove_leftovers()
    adoption = Adoption()
    process = subprocess.Popen(
        shielded(server.command(), death_signal=signal.SIGTERM),
        env=server.environment(),
        cwd=server.work_dir,
        stdin=subprocess.DEVNULL,
        # A Ctrl-C in the terminal reaches the server once, through us.
        start_new_session=True,
    )
    ending = False

    def end(number: int, _: FrameType | None) -> None:
        nonlocal ending
        if process.poll() is None:
            process.send_signal(signal.SIGKILL if ending else number)
        if not ending:
            ending = True
            signal.alarm(server.exit_timeout + KILL_AFTER_SECONDS)

    signal.signal(signal.SIGHUP, lambda _, frame: end(signal.SIGTERM, frame))
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGALRM):
        signal.signal(number, end)
    adoption.watch(process.pid)
    code = process.wait()
    signal.alarm(0)
    clean_up_after(process.pid)
    adoption.end()
    return code


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m nvidia_triton.local.triton", description=__doc__)
    parser.add_argument("--model-repository", type=Path, default=Path("models"))
    parser.add_argument("--work-dir", type=Path, default=Path(".local/triton"))
    parser.add_argument("--grpc-port", type=int, default=8001)
    parser.add_argument("--http-port", type=int, default=8000)
    parser.add_argument("--metrics-port", type=int, default=8002)
    parser.add_argument("--load-model", action="append", metavar="NAME", help="default: all; may be repeated")
    options = parser.parse_args(arguments)
    server = TritonServer(
        model_repository=options.model_repository.absolute(),
        work_dir=options.work_dir.absolute(),
        grpc_port=options.grpc_port,
        http_port=options.http_port,
        metrics_port=options.metrics_port,
        models=tuple(options.load_model or ["*"]),
    )
    try:
        code = run(server)
    except LocalError as error:
        print(error, file=sys.stderr)
        return 1
    if code < 0:
        # Whoever waits for us learns what ended the server.
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        if -code != signal.SIGKILL:
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    return code


if __name__ == "__main__":
    sys.exit(main())
