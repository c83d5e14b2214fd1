"""Which Python the engines get, and that the service runs on every Python it is said to run on."""

import asyncio
import hashlib
import http.server
import json
import os
import re
import subprocess
import sys
import tarfile
import threading
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import httpx
import pytest

from app.config import Settings
from nvidia_triton.local import engine, interpreters
from nvidia_triton.local.process import LocalError
from nvidia_triton.local.settings import free_ports
from tests.conftest import alembic
from tests.service import Process, Service, eventually

ROOT = Path(__file__).resolve().parents[2]
ENGINE_PYTHON = "from nvidia_triton.local import interpreters; print(interpreters.engine_python())"
# Any that cannot be the engines' itself; the oldest that can read the module will do.
OTHERS = ((3, 13), (3, 14), (3, 10), (3, 9), (3, 8))
WITHOUT = re.compile("(^|/)(test|tests|site-packages|__pycache__|idlelib|share|include)(/|$)")


def skip_loudly(reason: str) -> None:
    warnings.warn(reason, stacklevel=2)
    pytest.skip(reason)


def installed(version: tuple[int, int]) -> str | None:
    """An interpreter of this machine, the one that runs the tests included."""
    if sys.version_info[:2] == version:
        return sys.executable
    return next((each for each in interpreters.installed(version) if interpreters.describe(each)[0] == version), None)


def needed(*versions: tuple[int, int]) -> str:
    python = next(filter(None, map(installed, versions)), None)
    if python is None:
        skip_loudly("not tested, for want of a Python " + " or ".join(map(interpreters.dotted, versions)))
    assert python is not None
    return python


class Machine:
    """A machine with one Python, which is none for engines, and nothing that uv has downloaded."""

    def __init__(self, path: Path) -> None:
        self.python = needed(*OTHERS)
        self.bin = path / "bin"
        self.bin.mkdir()
        self.environment = {
            **{name: os.environ[name] for name in ("HOME", "LANG") if name in os.environ},
            "PATH": str(self.bin),
            "PYENV_ROOT": str(path / "none"),
            "UV_PYTHON_INSTALL_DIR": str(path / "pythons"),
            "UV_CACHE_DIR": str(path / "cache"),
            "UV_HTTP_RETRIES": "0",
        }

    def choose(self, **environment: str) -> subprocess.CompletedProcess[str]:
        command = [self.python, "-c", ENGINE_PYTHON]
        given = {**self.environment, **environment}
        return subprocess.run(command, cwd=ROOT, env=given, capture_output=True, text=True, timeout=120, check=False)

    def put(self, name: str, script: str) -> Path:
        path = self.bin / name
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)
        return path


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


@pytest.fixture(scope="module")
def mirror(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], str]]:
    """Serves an installed Python 3.12 packed as uv wants it; gives the URL of a list that names it by this checksum."""
    base = subprocess.check_output([needed((3, 12)), "-c", "import sys; print(sys.base_prefix)"], text=True).strip()
    folder = tmp_path_factory.mktemp("mirror")
    with tarfile.open(folder / "python.tar.gz", "w:gz", compresslevel=1) as archive:
        for part in ("bin", "lib"):
            archive.add(
                f"{base}/{part}", f"python/{part}", filter=lambda entry: None if WITHOUT.search(entry.name) else entry
            )
    checksum = hashlib.sha256((folder / "python.tar.gz").read_bytes()).hexdigest()
    handler = partial(http.server.SimpleHTTPRequestHandler, directory=str(folder))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}"

    def listed(wanted: str = checksum) -> str:
        entry = {
            "name": "cpython",
            "arch": {"family": "x86_64", "variant": None},
            "os": "linux",
            "libc": "gnu",
            "major": 3,
            "minor": 12,
            "patch": 1,
            "prerelease": "",
            "variant": None,
            "build": "20240107",
            "url": f"{url}/python.tar.gz",
            "sha256": wanted,
        }
        (folder / f"{wanted}.json").write_text(json.dumps({"cpython-3.12.1-linux-x86_64-gnu": entry}))
        return f"{url}/{wanted}.json"

    yield listed
    server.shutdown()
    server.server_close()


def test_an_installed_python_is_taken(machine: Machine) -> None:
    (machine.bin / "python3.12").symlink_to(needed((3, 12)))
    done = machine.choose()
    assert done.stdout.strip() == str(machine.bin / "python3.12"), done.stderr


def test_a_python_of_pyenv_is_taken_although_its_shim_fails(machine: Machine) -> None:
    machine.put("python3.12", "echo 'pyenv: python3.12: command not found'; exit 127")
    python = Path(machine.environment["PYENV_ROOT"]) / "versions/3.12.1/bin/python3.12"
    python.parent.mkdir(parents=True)
    python.symlink_to(needed((3, 12)))
    assert machine.choose().stdout.strip() == str(python)


def test_one_that_lacks_its_library_is_passed_over(machine: Machine) -> None:
    machine.put("python3.12", "echo 3 12 0")
    (machine.bin / "python3.11").symlink_to(needed((3, 11)))
    assert machine.choose().stdout.strip() == str(machine.bin / "python3.11")


def test_where_there_is_none_it_is_downloaded_once(machine: Machine, mirror: Callable[..., str]) -> None:
    done = machine.choose(UV_PYTHON_DOWNLOADS_JSON_URL=mirror())
    announcement, python = done.stdout.splitlines()
    assert "need Python 3.12 and there is none: downloading it, some 30 MB" in announcement
    assert python.startswith(machine.environment["UV_PYTHON_INSTALL_DIR"]), done.stderr
    assert "Downloading cpython-3.12.1" in done.stderr
    again = machine.choose(UV_PYTHON_DOWNLOADS_JSON_URL="http://127.0.0.1:1/gone.json")
    assert again.stdout.splitlines() == [python]


def test_a_download_with_another_checksum_is_refused(machine: Machine, mirror: Callable[..., str]) -> None:
    done = machine.choose(UV_PYTHON_DOWNLOADS_JSON_URL=mirror("0" * 64))
    assert done.returncode == 1
    assert "Hash mismatch" in done.stderr
    assert "uv could not download one: its lines above say why" in done.stderr.splitlines()[-1]


def test_where_it_cannot_be_downloaded_the_last_line_says_what_to_do(machine: Machine) -> None:
    fake = machine.put("python3.12", "echo 3 12 0")
    done = machine.choose(UV_PYTHON_INSTALL_MIRROR="http://127.0.0.1:1")
    assert done.returncode == 1
    assert "127.0.0.1:1" in done.stderr
    last = done.stderr.splitlines()[-1]
    assert "UV_PYTHON_INSTALL_MIRROR" in last
    assert "ENGINE_PYTHON=/path/to/python3.12 make install" in last
    assert f"{fake} cannot be used as it is: it lacks its shared library" in last
    assert "apt-get install libpython3.12" in last
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("script", "problem"),
    [
        ("exit 1", "does not run as a Python"),
        ("echo 3 13 1", "is Python 3.13"),
        ("echo 3 12 0", "lacks its shared library, libpython3.12.so.1.0"),
    ],
)
def test_a_named_one_that_does_not_fit_is_refused(machine: Machine, script: str, problem: str) -> None:
    named = machine.put("mine", script)
    done = machine.choose(ENGINE_PYTHON=str(named))
    assert done.returncode == 1
    assert f"ENGINE_PYTHON={named} {problem}: name a Python 3.12 or 3.11" in done.stderr.splitlines()[-1]


def test_the_image_has_numpy_2_and_a_python_that_is_tested() -> None:
    image = set(re.findall(r"^FROM python:3\.(\d+)-slim ", (ROOT / "Dockerfile").read_text(), re.MULTILINE))
    assert len(image) == 1
    assert (3, int(image.pop())) in interpreters.SUPPORTED
    locked = (ROOT / "requirements.txt").read_text()
    assert re.findall(r"^numpy==(\d+)", locked, re.MULTILINE) == ["2"]
    assert "pytriton" not in locked


def production_environment(python: str, venv: Path) -> str:
    """An environment with what the image installs, and nothing that would have to be built; its interpreter."""
    inside = str(venv / "bin" / "python")
    subprocess.run([python, "-m", "venv", "--without-pip", venv], check=True)
    done = subprocess.run(
        [
            *(interpreters.UV_PROGRAM, "pip", "install", "--python", inside, "--no-deps", "--require-hashes"),
            *("--only-binary", ":all:", "-r", ROOT / "requirements.txt"),
        ],
        env=interpreters.uv_environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    if "error sending request" in done.stderr:
        skip_loudly(f"not tested with {python}: its wheels cannot be downloaded here")
    assert done.returncode == 0, done.stderr
    # Compiled once instead of in each process, even where Python is told not to.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    subprocess.run(
        [inside, "-c", "import alembic.command, app.main, app.worker"], cwd=ROOT, env=environment, check=True
    )
    return inside


@pytest.mark.parametrize(
    "version",
    [
        # Those beside it are tried each time.
        pytest.param(each, marks=pytest.mark.long if each == (3, 12) else ())
        for each in sorted(interpreters.SUPPORTED)
    ],
    ids=interpreters.dotted,
)
async def test_a_ticket_completes_on_every_python(
    version: tuple[int, int], make_settings: Callable[..., Settings], tmp_path: Path
) -> None:
    python = await asyncio.to_thread(production_environment, needed(version), tmp_path / "venv")
    settings = make_settings(api_port=free_ports(1)[0])
    migrated = await asyncio.to_thread(alembic, settings.database_url, "upgrade", "head", python=python)
    assert migrated.returncode == 0, migrated.stderr
    async with (
        Process("app.worker", settings, tmp_path / "worker.log", python=python),
        Process("app.main", settings, tmp_path / "api.log", python=python) as api,
        httpx.AsyncClient(base_url=f"http://127.0.0.1:{settings.api_port}", timeout=70, trust_env=False) as client,
    ):

        async def ready() -> bool:
            assert api.process.poll() is None, api.log.read_text()
            try:
                return (await client.get("/health/ready")).is_success
            except httpx.TransportError:
                return False

        await eventually(ready, "the API is ready", seconds=300)
        result = await Service(client, settings).run(max_tokens=5, ignore_eos=True)
    assert (result["status"], result["usage"]["completion_tokens"]) == ("completed", 5)


def test_a_system_without_the_engines_library_is_told_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    engine.check_system_library()
    monkeypatch.setattr(engine, "SYSTEM_LIBRARY", "libgomp-of-nowhere.so.1")
    with pytest.raises(LocalError, match=r"libgomp-of-nowhere.so.1 and this system lacks it: .*ENGINE=simulation"):
        engine.check_system_library()


def test_the_locks_say_how_large_they_are() -> None:
    for name in ("requirements-dev.txt", "requirements-engine.txt"):
        assert re.match(r"# To download: \d+ MB\n", (ROOT / name).read_text())
