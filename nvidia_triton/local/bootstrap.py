"""Makes or removes `.venv`, with nothing but the Python that is there; any Python 3 can read this file.

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
from typing import IO, NoReturn, Optional, Tuple  # noqa: UP035

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
VENV = os.path.join(ROOT, ".venv")
VENV_PYTHON = os.path.join(VENV, "bin", "python")
STAMP = os.path.join(VENV, "installed")
LOCAL = os.path.join(ROOT, ".local")
LOCK = os.path.join(ROOT, "requirements-dev.txt")
# In the order of preference: the wheel of the local tritonserver lags behind Python.
SUPPORTED = ((3, 12), (3, 11))
# Installs the lock about seven times faster than pip does.
UV = "uv==0.13.8 --hash=sha256:e18a57b8b352eb7c8feb317b9f6f533c8f0ad9673fd6cf34bbe3cf1a9f6a8984"
IMPORTED = "import alembic.command, nvidia_triton.local.demo, app.main, app.worker"
CACHES = (".venv", ".pytest_cache", ".mypy_cache", ".ruff_cache", ".import_linter_cache", ".hypothesis")


def fail(sentence: str) -> "NoReturn":
    sys.exit("\n" + sentence)


def check_platform() -> None:
    if sys.platform != "linux" or platform.machine() not in ("x86_64", "AMD64"):
        fail(
            "The local stack needs Linux on x86-64 and this is "
            + " on ".join((platform.system(), platform.machine()))
            + ": run `docker compose up` instead, it brings everything along."
        )


def version_of(python: str) -> Optional[Tuple[int, int]]:  # noqa: UP006, UP045
    """Major and minor version of an interpreter, None when it does not run."""
    try:
        text = subprocess.check_output(
            [python, "-c", "import sys; print('%d %d' % sys.version_info[:2])"], stderr=subprocess.DEVNULL
        )
        major, minor = text.split()
        return int(major), int(minor)
    except (OSError, ValueError, subprocess.CalledProcessError):
        return None


def supported_python() -> str:
    """This interpreter where it fits, or else the best of the others."""
    if sys.version_info[:2] in SUPPORTED[:2]:
        return sys.executable
    for major, minor in SUPPORTED:
        found = shutil.which("python" + str(major) + "." + str(minor))
        if found and version_of(found) == (major, minor):
            return found
    return fail(
        "Python 3.11 or 3.12 is needed and "
        + " is ".join((sys.executable, platform.python_version()))
        + ": install one of them, then `make run PYTHON=/path/to/python3.12`."
    )


def wanted_stamp() -> str:
    with open(LOCK, "rb") as file:
        return hashlib.sha256(file.read()).hexdigest()


def installed_stamp() -> str:
    try:
        with open(STAMP) as file:
            return file.read().strip()
    except OSError:
        return ""


def pip(*arguments: str) -> bool:
    command = [VENV_PYTHON, "-m", "pip", "install", "--no-input", "--no-compile", "--no-deps", "--require-hashes"]
    environment = dict(os.environ, PIP_DISABLE_PIP_VERSION_CHECK="1")
    return subprocess.call(command + list(arguments), env=environment) == 0


def install_with_uv() -> bool:
    requirement = os.path.join(VENV, "uv.txt")
    with open(requirement, "w") as file:
        file.write(UV + "\n")
    if not pip("--quiet", "-r", requirement):
        return False
    uv = os.path.join(VENV, "bin", "uv")
    command = [uv, "pip", "install", "--python", VENV_PYTHON, "--no-deps", "--require-hashes", "-r", LOCK]
    environment = dict(os.environ)
    for theirs, ours in (("UV_DEFAULT_INDEX", "PIP_INDEX_URL"), ("SSL_CERT_FILE", "PIP_CERT")):
        if ours in os.environ:
            environment.setdefault(theirs, os.environ[ours])
    return subprocess.call(command, env=environment) == 0


def install_with_pip() -> bool:
    print("uv cannot do it here; pip takes about a minute.", flush=True)
    return pip("-r", LOCK)


def warm_up() -> None:
    """Compiles what every start imports, once instead of in each process, even where Python is told not to."""
    environment = dict(os.environ)
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    with open(os.devnull, "w") as nowhere:
        subprocess.call([VENV_PYTHON, "-c", IMPORTED], cwd=ROOT, env=environment, stdout=nowhere, stderr=nowhere)


def make_venv() -> None:
    python = supported_python()
    version = ".".join(map(str, version_of(python) or ()))
    print("Making .venv with Python " + version + " ...", flush=True)
    if subprocess.call([python, "-m", "venv", "--clear", VENV], stdout=subprocess.DEVNULL) != 0:
        shutil.rmtree(VENV, ignore_errors=True)
        fail(
            "Python's venv module does not work here: install it, on Debian and Ubuntu with "
            "`apt-get install python" + version + "-venv`."
        )


def install() -> None:
    if installed_stamp() == wanted_stamp() and os.path.exists(VENV_PYTHON):
        return
    check_platform()
    if version_of(VENV_PYTHON) not in SUPPORTED:
        make_venv()
    print("Installing the pinned dependencies, some 170 MB to download the first time ...", flush=True)
    if not (install_with_uv() or install_with_pip()):
        fail("The dependencies could not be installed: the lines above say why; `make install` tries again.")
    warm_up()
    with open(STAMP, "w") as file:
        file.write(wanted_stamp() + "\n")


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
