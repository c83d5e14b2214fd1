"""Makes or removes `.venv` and `.venv-engine`, with nothing but the Python that is there; any Python 3 can read this.

`bootstrap install` and `bootstrap clean`; the Makefile calls both.
"""

import fcntl
import glob
import hashlib
import os
import platform
import re
import shutil
import subprocess
import sys
from typing import IO, Optional

from nvidia_triton.local.interpreters import (
    ENGINE_SUPPORTED,
    ROOT,
    SUPPORTED,
    UV_PROGRAM,
    describe,
    dotted,
    engine_python,
    fail,
    has_tritonserver_wheel,
    is_supported_machine,
    say,
    supported_python,
    uv_environment,
)

VENV = os.path.join(ROOT, ".venv")
VENV_PYTHON = os.path.join(VENV, "bin", "python")
LOCK = os.path.join(ROOT, "requirements-dev.txt")
ENGINE = os.path.join(ROOT, ".venv-engine")
ENGINE_PYTHON = os.path.join(ENGINE, "bin", "python")
ENGINE_LOCK = os.path.join(ROOT, "requirements-engine.txt")
LOCAL = os.path.join(ROOT, ".local")
# Installs a lock about seven times faster than pip does, and brings an interpreter where there is none.
UV = "uv==0.13.8 --hash=sha256:e18a57b8b352eb7c8feb317b9f6f533c8f0ad9673fd6cf34bbe3cf1a9f6a8984"
IMPORTED = "import alembic.command, nvidia_triton.local.demo, app.main, app.worker"
CACHES = (
    ".venv",
    ".venv-engine",
    ".venv-gradio",
    ".venv-peers",
    ".pytest_cache",
    ".mypy_cache",
    ".ruff_cache",
    ".import_linter_cache",
    ".hypothesis",
)


def check_platform() -> None:
    if not is_supported_machine():
        fail(
            "The local stack needs Linux on x86-64 or ARM64, or macOS on Apple silicon, and this is "
            + " on ".join((platform.system(), platform.machine()))
            + ": run `docker compose up` instead, it brings everything along."
        )


def read(path: str) -> str:
    """A file's text, empty if there is none."""
    try:
        with open(path) as file:
            return file.read().strip()
    except OSError:
        return ""


def write(path: str, text: str) -> None:
    with open(path, "w") as file:
        file.write(text + "\n")


def stamp_of(lock: str) -> str:
    return hashlib.sha256(read(lock).encode()).hexdigest()


def is_current(venv: str, lock: str) -> bool:
    there = os.path.exists(os.path.join(venv, "bin", "python"))
    return there and read(os.path.join(venv, "installed")) == stamp_of(lock)


def another_engine_python_is_named() -> bool:
    """Whether ENGINE_PYTHON names another interpreter than .venv-engine was made with."""
    named = os.environ.get("ENGINE_PYTHON")
    return bool(named) and read(os.path.join(ENGINE, "named")) != named


def uses_servers_elsewhere() -> bool:
    """Whether this `make run` is told of other servers, so that it needs no engine of its own."""
    urls = os.environ.get("TRITON_URLS", "").strip()
    return bool(urls) and "127.0.0.1:" not in urls


def size_of(lock: str) -> str:
    """How much it makes an empty cache download, as `make lock` has written it down."""
    found = re.search("^# To download: (.*)$", read(lock), re.MULTILINE)
    return found.group(1) if found else "an unknown amount"


def make_venv(venv: str, python: str, *options: str) -> None:
    version = dotted(describe(python)[0])
    say("Making " + os.path.basename(venv) + " with Python " + version + " ...")
    if subprocess.call([python, "-m", "venv", "--clear", *options, venv], stdout=subprocess.DEVNULL) != 0:
        shutil.rmtree(venv, ignore_errors=True)
        fail(
            "Python's venv module does not work here: install it, on Debian and Ubuntu with "
            "`apt-get install python" + version + "-venv`."
        )


def pip(python: str, *arguments: str) -> bool:
    command = [VENV_PYTHON, "-m", "pip", "--python", python, "install", "--no-input", "--no-compile", "--no-deps"]
    environment = dict(os.environ, PIP_DISABLE_PIP_VERSION_CHECK="1")
    return subprocess.call([*command, "--require-hashes", *arguments], env=environment) == 0


def install_uv() -> None:
    requirement = os.path.join(VENV, "uv.txt")
    write(requirement, UV)
    say("Installing uv, which installs the rest: 17 MB to download the first time ...")
    if not pip(VENV_PYTHON, "--quiet", "-r", requirement):
        say("uv, which installs the rest, could not be installed; pip takes over, more slowly.")


def install_lock(python: str, lock: str) -> None:
    command = [UV_PROGRAM, "pip", "install", "--python", python, "--no-deps", "--require-hashes", "-r", lock]
    if os.path.exists(UV_PROGRAM):
        if subprocess.call(command, env=uv_environment()) == 0:
            return
        say("uv cannot do it here; pip takes about a minute.")
    if not pip(python, "-r", lock):
        fail("The dependencies could not be installed: the lines above say why; `make install` tries again.")


def warm_up() -> None:
    """Compiles what every start imports, once instead of in each process, even where Python is told not to."""
    environment = dict(os.environ)
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    with open(os.devnull, "w") as nowhere:
        subprocess.call([VENV_PYTHON, "-c", IMPORTED], cwd=ROOT, env=environment, stdout=nowhere, stderr=nowhere)


def install() -> None:
    app = not is_current(VENV, LOCK)
    engine = not is_current(ENGINE, ENGINE_LOCK) or another_engine_python_is_named()
    if engine and uses_servers_elsewhere():
        engine = False
    if not app and not engine:
        return
    check_platform()
    if app:
        if describe(VENV_PYTHON)[0] not in SUPPORTED:
            make_venv(VENV, supported_python())
        install_uv()
    # Before anything large, because a machine may have none and no way to one.
    if engine:
        version, shared = describe(ENGINE_PYTHON)
        fits = version in ENGINE_SUPPORTED and shared if has_tritonserver_wheel() else version in SUPPORTED
        if not fits or another_engine_python_is_named():
            # Without a pip of its own, which not every Python can give it.
            make_venv(ENGINE, engine_python(), "--without-pip")
            write(os.path.join(ENGINE, "named"), os.environ.get("ENGINE_PYTHON", ""))
    parts = [(VENV, VENV_PYTHON, LOCK)] * app + [(ENGINE, ENGINE_PYTHON, ENGINE_LOCK)] * engine
    sizes = " and ".join(size_of(lock) + " for " + os.path.basename(venv) for venv, _, lock in parts)
    say("Installing the pinned dependencies. To download, unless uv's cache has it: " + sizes + " ...")
    for venv, python, lock in parts:
        install_lock(python, lock)
        if venv == VENV:
            warm_up()
        write(os.path.join(venv, "installed"), stamp_of(lock))


def clean() -> None:
    paths = [os.path.join(ROOT, name) for name in CACHES]
    for folder in ("app", "nvidia_triton", "migrations", "models", "tests", "bench"):
        paths += glob.glob(os.path.join(ROOT, folder, "**", "__pycache__"), recursive=True)
    with_data = os.environ.get("CLEAN_DATA") == "1"
    if with_data:
        paths.append(LOCAL)
    for path in paths:
        shutil.rmtree(path, ignore_errors=True)
    if os.path.isdir(LOCAL):
        print("The local data in .local/ is kept; `make clean CLEAN_DATA=1` deletes it too.")


def refuse_while_running() -> "Optional[IO[str]]":  # noqa: UP045
    """Holds the runner's lock for the rest of this process."""
    path = os.path.join(LOCAL, "run.lock")
    if os.path.exists(path):
        file = open(path)  # noqa: SIM115
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            pid = file.read().strip()
            fail("The stack runs (pid " + pid + "): stop it first, with Ctrl-C in its terminal.")
        return file
    return None


def main() -> None:
    if not os.path.isdir(LOCAL):
        os.mkdir(LOCAL)
    if sys.argv[1:] == ["clean"]:
        running = refuse_while_running()
        clean()
        if running:
            running.close()
        return
    with open(os.path.join(LOCAL, "install.lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        install()


if __name__ == "__main__":
    main()
