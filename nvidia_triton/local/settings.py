"""What the local stack is to start, from .env.api.dev, .env.db.dev and the real environment, which wins."""

import errno
import random
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from dotenv import dotenv_values

from nvidia_triton.checked_yaml import UnusableFile, read
from nvidia_triton.local.interpreters import has_tritonserver_wheel
from nvidia_triton.local.llama_server import LlamaServer
from nvidia_triton.local.postgres import DEFAULT_PORT, HOST, PostgresServer
from nvidia_triton.local.process import LocalError
from nvidia_triton.local.triton import TritonServer

ROOT = Path(__file__).resolve().parents[2]
WILDCARDS = {"0.0.0.0": "127.0.0.1", "::": "[::1]", "": "127.0.0.1"}  # noqa: S104
# Shorter than the runner's own patience, so that a dispatcher hands its work back instead of being killed.
DRAIN_SECONDS = "8"
# What the local engine runs at once; more would wait inside it, where tickets of other models cannot overtake them.
MODEL_CONCURRENCY = "16"
# What ENGINE may ask for: no model runs, for all of models/; or llama.cpp's own HTTP server instead of Triton.
SIMULATION = "simulation"
LLAMA_SERVER = "llama-server"
# What TRITON_URLS says where there is none.
NO_SERVERS = "none"
# As app/config.py has it.
DEFINITION = "nvidia_triton/vastai_instance_definition.yaml"
UNASSIGNED_PORTS = (15000, 32000)
# The three made of rules together would add two seconds to the start.
# The others of models/ are for GPUs; here each would cost a process.
DEFAULT_MODELS = ("demo", "minilm")
# llama.cpp's server has one.
DEFAULT_LLAMA_MODEL = "demo"


@dataclass(frozen=True)
class LocalSettings:
    """`postgres` and `triton` are None where the real environment names another server to use.

    `llama_server` is there where ENGINE asks for it or the machine can have no Triton, beside a Triton elsewhere or
    instead of one.
    """

    root: Path
    local_dir: Path
    api_host: str
    api_port: int
    postgres: PostgresServer | None
    triton: TritonServer | None
    llama_server: LlamaServer | None
    environment: dict[str, str]

    @property
    def api_url(self) -> str:
        return f"http://{WILDCARDS.get(self.api_host, self.api_host)}:{self.api_port}"

    @property
    def servers_file(self) -> Path:
        return Path(self.environment["TRITON_SERVERS_FILE"])

    @property
    def no_fixed_server(self) -> bool:
        return self.environment["TRITON_URLS"].strip().lower() == NO_SERVERS

    def has_pools(self) -> bool:
        """Whether hosts are to follow the queue.

        Raises:
            LocalError: a definition cannot be read.
        """
        try:
            return any(
                bool((read(self.root / name.strip()) or {}).get("pools"))
                for name in (self.environment.get("CAPACITY_DEFINITIONS") or DEFINITION).split(",")
            )
        except (UnusableFile, AttributeError) as error:
            raise LocalError(f"CAPACITY_DEFINITIONS: {error}") from None

    @property
    def lock_file(self) -> Path:
        return self.local_dir / "run.lock"


def local_settings(environ: Mapping[str, str], root: Path = ROOT) -> LocalSettings:
    """Reads the settings of a checkout.

    Raises:
        LocalError: a port is no number, or ENGINE names none.
    """
    api_file, database_file = _read(root / ".env.api.dev"), _read(root / ".env.db.dev")
    merged = {**api_file, **database_file, **environ}
    local_dir = Path(merged.get("LOCAL_DIR") or root / ".local").absolute()

    engine = merged.get("ENGINE") or ""
    if engine not in ("", SIMULATION, LLAMA_SERVER):
        raise LocalError(f"ENGINE={engine!r} is no engine: give {LLAMA_SERVER} or {SIMULATION}, or leave it out.")

    def port(name: str, default: int) -> int:
        text = merged.get(name) or str(default)
        if not text.isdigit() or not 0 < int(text) < 65536:
            raise LocalError(f"{name}={text!r} is not a port: give a number from 1 to 65535.")
        return int(text)

    postgres = PostgresServer(
        local_dir / "postgres",
        port("POSTGRES_PORT", urlsplit(api_file.get("DATABASE_URL", "")).port or DEFAULT_PORT),
        merged.get("POSTGRES_USER") or "tickets",
        merged.get("POSTGRES_PASSWORD") or "tickets-dev-only",
        merged.get("POSTGRES_DB") or "tickets",
    )
    foreign_database = environ.get("DATABASE_URL") not in (None, "", postgres.url)
    triton = TritonServer(
        model_repository=root / "models",
        work_dir=local_dir / "triton",
        http_port=port("TRITON_HTTP_PORT", 8000),
        grpc_port=port("TRITON_GRPC_PORT", 8001),
        metrics_port=port("TRITON_METRICS_PORT", 8002),
        models=tuple((merged.get("MODELS") or "").split()) or DEFAULT_MODELS,
    )
    triton_urls = f"{HOST}:{triton.grpc_port}"
    foreign_triton = environ.get("TRITON_URLS") not in (None, "", triton_urls)

    wheel = has_tritonserver_wheel()
    llama_server = None
    if engine == LLAMA_SERVER or not (wheel or foreign_triton):
        if engine == SIMULATION:
            raise LocalError(
                f"ENGINE={SIMULATION} needs a tritonserver, and there is none for this machine: leave ENGINE out."
            )
        models = (merged.get("MODELS") or DEFAULT_LLAMA_MODEL).split()
        if len(models) > 1:
            raise LocalError(f"llama.cpp's server serves one model and MODELS names {len(models)}: choose one of them.")
        llama_server = LlamaServer(root / "models" / models[0], port("LLAMA_SERVER_PORT", 8080))
    here = not foreign_triton and llama_server is None

    environment = {
        "DRAIN_SECONDS": DRAIN_SECONDS,
        "MODEL_CONCURRENCY": MODEL_CONCURRENCY,
        "PYTHONUNBUFFERED": "1",
        **merged,
    }
    if not foreign_database:
        environment["DATABASE_URL"] = postgres.url
    if not foreign_triton:
        environment["TRITON_URLS"] = triton_urls if here else NO_SERVERS
    environment["TRITON_SERVERS_FILE"] = merged.get("TRITON_SERVERS_FILE") or str(local_dir / "servers.json")
    return LocalSettings(
        root=root,
        local_dir=local_dir,
        api_host=merged.get("API_HOST") or HOST,
        api_port=port("API_PORT", 8887),
        postgres=None if foreign_database else postgres,
        triton=triton if here else None,
        llama_server=llama_server,
        environment=environment,
    )


def check_port(host: str, port: int, what: str, variable: str) -> None:
    """Raises LocalError when nothing can listen there."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        # As servers do: what is left of connections to the server before does not count. Of others' it does.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                problem = "is already in use: stop the program that uses it"
            else:
                problem = f"of {host} cannot be used ({error.strerror})"
            raise LocalError(
                f"Port {port} for {what} {problem}, or choose another one, e.g. `export {variable}={port + 100}`."
            ) from None


def free_ports(count: int) -> list[int]:
    """Ports nobody listens on right now; all are held until the last is found, so they differ.

    They lie below those that Linux gives to outgoing connections, of which one could take a port before it is used.
    """
    sockets: list[socket.socket] = []
    try:
        while len(sockets) < count:
            each = socket.socket()
            sockets.append(each)
            try:
                each.bind((HOST, random.randint(*UNASSIGNED_PORTS)))  # noqa: S311
            except OSError:
                sockets.pop().close()
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()


def _read(path: Path) -> dict[str, str]:
    return {name: value for name, value in dotenv_values(path, interpolate=False).items() if value is not None}
