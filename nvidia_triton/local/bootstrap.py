"""Makes or removes `.venv` and `.venv-engine`, with nothing but the Python that is there; any Python 3 can read this.

`bootstrap.py install` and `bootstrap.py clean`; the Makefile calls both.
"""

import fcntl
import glob
import hashlib
import os
import platform
import shutil
import subprocess
import sys
from typing import IO, List, NoReturn, Optional, Tuple  # noqa: UP035

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
VENV = os.path.join(ROOT, ".venv")
VENV_PYTHON = os.path.join(VENV, "bin", "python")
LOCK = os.path.join(ROOT, "requirements-dev.txt")
# The tritonserver and what runs in it, apart: the stub of its wheel needs NumPy 1, and that an older Python.
ENGINE = os.path.join(ROOT, ".venv-engine")
ENGINE_PYTHON = os.path.join(ENGINE, "bin", "python")
ENGINE_LOCK = os.path.join(ROOT, "requirements-engine.txt")
LOCAL = os.path.join(ROOT, ".local")
# In the order of preference.
SUPPORTED = ((3, 13), (3, 12), (3, 14), (3, 11))
ENGINE_SUPPORTED = ((3, 12), (3, 11))
# Installs a lock about seven times faster than pip does, and brings an interpreter where there is none.
UV = "uv==0.13.8 --hash=sha256:e18a57b8b352eb7c8feb317b9f6f533c8f0ad9673fd6cf34bbe3cf1a9f6a8984"
UV_PROGRAM = os.path.join(VENV, "bin", "uv")
IMPORTED = "import alembic.command, nvidia_triton.local.demo, app.main, app.worker"
CACHES = (".venv", ".venv-engine", ".pytest_cache", ".mypy_cache", ".ruff_cache", ".import_linter_cache", ".hypothesis")
DESCRIBE = """
import os, sys, sysconfig
library = "libpython%d.%d.so.1.0" % sys.version_info[:2]
places = os.path.join(sys.base_prefix, "lib"), sysconfig.get_config_var("LIBDIR") or ""
shared = any(os.path.exists(os.path.join(place, library)) for place in places)
print("%d %d %d" % (sys.version_info[0], sys.version_info[1], shared))
"""


def fail(sentence: str) -> "NoReturn":
    sys.exit("\n" + sentence)


def say(sentence: str) -> None:
    print(sentence, flush=True)


def check_platform() -> None:
    if sys.platform != "linux" or platform.machine() not in ("x86_64", "AMD64"):
        fail(
            "The local stack needs Linux on x86-64 and this is "
            + " on ".join((platform.system(), platform.machine()))
            + ": run `docker compose up` instead, it brings everything along."
        )


def describe(python: str) -> Tuple[Optional[Tuple[int, int]], bool]:  # noqa: UP006, UP045
    """Major and minor version of an interpreter, None when it does not run, and whether it has a shared libpython."""
    try:
        text = subprocess.check_output([python, "-I", "-c", DESCRIBE], stderr=subprocess.DEVNULL)
        major, minor, shared = text.split()
        return (int(major), int(minor)), shared == b"1"
    except (OSError, ValueError, subprocess.CalledProcessError):
        return None, False


def named(version: Tuple[int, int]) -> "List[str]":  # noqa: UP006
    """Everything on PATH that calls itself this Python; the first need not run, a version manager's shim for one."""
    name = "python" + str(version[0]) + "." + str(version[1])
    places = [os.path.join(place, name) for place in os.environ.get("PATH", os.defpath).split(os.pathsep) if place]
    return [place for place in places if os.access(place, os.X_OK)]


def supported_python() -> str:
    """This interpreter where it fits, or else the best of the others."""
    if sys.version_info[:2] in SUPPORTED:
        return sys.executable
    for version in SUPPORTED:
        for found in named(version):
            if describe(found)[0] == version:
                return found
    return fail(
        "Python 3.11 to 3.14 is needed and "
        + " is ".join((sys.executable, platform.python_version()))
        + ": install one of them, then `make run PYTHON=/path/to/python3.13`."
    )


def engine_python() -> str:
    """A Python for the engines: the one ENGINE_PYTHON names, else one that is here, else one that uv downloads."""
    named_one = os.environ.get("ENGINE_PYTHON")
    if named_one:
        version, shared = describe(named_one)
        if version not in ENGINE_SUPPORTED or not shared:
            fail(
                "ENGINE_PYTHON="
                + named_one
                + (" does not run" if version is None else " is Python " + ".".join(map(str, version)))
                + ("" if shared or version not in ENGINE_SUPPORTED else " without its shared library, libpython")
                + ": name a Python 3.12 or 3.11 that has libpython, or leave ENGINE_PYTHON out."
            )
        return named_one
    without = ""
    here = [(sys.version_info[:2], [sys.executable])] if sys.version_info[:2] in ENGINE_SUPPORTED else []
    for wanted, places in here + [(version, named(version)) for version in ENGINE_SUPPORTED]:
        for found in places:
            version, shared = describe(found)
            if version == wanted and shared:
                return found
            if version == wanted and not without:
                without = found + " lacks libpython" + ".".join(map(str, wanted)) + ".so.1.0, so it cannot be used; "
    found = downloaded_python() or download_python()
    if found:
        return found
    return fail(
        "The local engines need Python 3.12 or 3.11 beside this "
        + platform.python_version()
        + ". "
        + without
        + "uv tried to download one, and its lines above say what went wrong. Try again, name a mirror in "
        "UV_PYTHON_INSTALL_MIRROR, or install Python 3.12 yourself and name it: "
        "`make install ENGINE_PYTHON=/path/to/python3.12`."
    )


def uv_environment() -> "dict[str, str]":
    environment = dict(os.environ)
    for theirs, ours in (("UV_DEFAULT_INDEX", "PIP_INDEX_URL"), ("SSL_CERT_FILE", "PIP_CERT")):
        if ours in os.environ:
            environment.setdefault(theirs, os.environ[ours])
    return environment


def downloaded_python() -> str:
    """The interpreter that uv keeps, empty if there is none."""
    try:
        command = [UV_PROGRAM, "python", "find", "--no-config", "--no-project", "--managed-python"]
        found = subprocess.check_output(
            [*command, "--no-python-downloads", "3.12"], stderr=subprocess.DEVNULL, cwd=LOCAL, env=uv_environment()
        )
    except (OSError, subprocess.CalledProcessError):
        return ""
    python = found.decode().strip()
    return python if describe(python) == ((3, 12), True) else ""


def download_python() -> str:
    say("The local engines need Python 3.12 and there is none: downloading it, some 30 MB, into uv's own folder ...")
    try:
        subprocess.call(
            [UV_PROGRAM, "python", "install", "--no-config", "--no-bin", "3.12"], cwd=LOCAL, env=uv_environment()
        )
    except OSError as error:
        say("uv cannot be started: " + str(error.strerror))
    return downloaded_python()


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


def stamp_of(venv: str, lock: str) -> Tuple[str, str]:  # noqa: UP006
    """What an environment was installed from and what it should be: the same when nothing is to be done."""
    with open(lock, "rb") as file:
        wanted = hashlib.sha256(file.read()).hexdigest()
    return read(os.path.join(venv, "installed")), wanted


def is_current(venv: str, lock: str) -> bool:
    installed, wanted = stamp_of(venv, lock)
    return installed == wanted and os.path.exists(os.path.join(venv, "bin", "python"))


def write_stamp(venv: str, lock: str) -> None:
    write(os.path.join(venv, "installed"), stamp_of(venv, lock)[1])


def pip(python: str, *arguments: str) -> bool:
    command = [VENV_PYTHON, "-m", "pip", "--python", python, "install", "--no-input", "--no-compile", "--no-deps"]
    environment = dict(os.environ, PIP_DISABLE_PIP_VERSION_CHECK="1")
    return subprocess.call([*command, "--require-hashes", *arguments], env=environment) == 0


def install_uv() -> bool:
    requirement = os.path.join(VENV, "uv.txt")
    write(requirement, UV)
    return pip(VENV_PYTHON, "--quiet", "-r", requirement)


def install_lock(python: str, lock: str) -> None:
    command = [UV_PROGRAM, "pip", "install", "--python", python, "--no-deps", "--require-hashes", "-r", lock]
    try:
        if subprocess.call(command, env=uv_environment()) == 0:
            return
    except OSError as error:
        say("uv cannot be started: " + str(error.strerror))
    say("uv cannot do it here; pip takes about a minute.")
    if not pip(python, "-r", lock):
        fail("The dependencies could not be installed: the lines above say why; `make install` tries again.")


def warm_up() -> None:
    """Compiles what every start imports, once instead of in each process, even where Python is told not to."""
    environment = dict(os.environ)
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    with open(os.devnull, "w") as nowhere:
        subprocess.call([VENV_PYTHON, "-c", IMPORTED], cwd=ROOT, env=environment, stdout=nowhere, stderr=nowhere)


def make_venv(venv: str, python: str, *options: str) -> None:
    version = ".".join(map(str, describe(python)[0] or ()))
    say("Making " + os.path.basename(venv) + " with Python " + version + " ...")
    if subprocess.call([python, "-m", "venv", "--clear", *options, venv], stdout=subprocess.DEVNULL) != 0:
        shutil.rmtree(venv, ignore_errors=True)
        fail(
            "Python's venv module does not work here: install it, on Debian and Ubuntu with "
            "`apt-get install python" + version + "-venv`."
        )


def install() -> None:
    if not is_current(VENV, LOCK):
        check_platform()
        if describe(VENV_PYTHON)[0] not in SUPPORTED:
            make_venv(VENV, supported_python())
        say("Installing the pinned dependencies, some 110 MB to download the first time ...")
        install_uv()
        install_lock(VENV_PYTHON, LOCK)
        warm_up()
        write_stamp(VENV, LOCK)
    if not is_current(ENGINE, ENGINE_LOCK) or named_another_engine_python():
        check_platform()
        version, shared = describe(ENGINE_PYTHON)
        if version not in ENGINE_SUPPORTED or not shared or named_another_engine_python():
            # pip comes from .venv, so it does not matter whether this Python can bring one along.
            make_venv(ENGINE, engine_python(), "--without-pip")
            write(os.path.join(ENGINE, "named"), os.environ.get("ENGINE_PYTHON", ""))
        say("Installing the local engines, some 280 MB to download the first time ...")
        install_lock(ENGINE_PYTHON, ENGINE_LOCK)
        write_stamp(ENGINE, ENGINE_LOCK)


def named_another_engine_python() -> bool:
    """Whether ENGINE_PYTHON names another interpreter than .venv-engine was made with."""
    wanted = os.environ.get("ENGINE_PYTHON")
    return bool(wanted) and read(os.path.join(ENGINE, "named")) != wanted


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
