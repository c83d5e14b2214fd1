"""Which Python makes `.venv` and which `.venv-engine`; any Python 3 can read this.

What runs inside the local tritonserver has an environment of its own, because the stub needs NumPy 1, and that an older
Python than the rest may have.
"""

import glob
import os
import platform
import subprocess
import sys
from typing import Dict, List, NoReturn, Optional, Tuple  # noqa: UP035

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
UV_PROGRAM = os.path.join(ROOT, ".venv", "bin", "uv")
# In the order of preference.
SUPPORTED = ((3, 13), (3, 12), (3, 14), (3, 11))
ENGINE_SUPPORTED = ((3, 12), (3, 11))
DOWNLOADED = ENGINE_SUPPORTED[0]
# The stub is linked against the shared library, which Debian, for one, has in a package of its own.
DESCRIBE = """
import os, sys, sysconfig
library = "libpython%d.%d.so.1.0" % sys.version_info[:2]
places = os.path.join(sys.base_prefix, "lib"), sysconfig.get_config_var("LIBDIR") or ""
shared = any(os.path.exists(os.path.join(place, library)) for place in places)
print("%d %d %d" % (sys.version_info[0], sys.version_info[1], shared))
"""

Version = Tuple[int, int]  # noqa: UP006


def has_tritonserver_wheel() -> bool:
    """Whether the wheel with tritonserver exists for this machine; llama.cpp's exists for all that are supported."""
    return sys.platform == "linux" and platform.machine() in ("x86_64", "AMD64")


def is_supported_machine() -> bool:
    return has_tritonserver_wheel() or (sys.platform, platform.machine()) in (("linux", "aarch64"), ("darwin", "arm64"))


def fail(sentence: str) -> "NoReturn":
    sys.exit("\n" + sentence)


def say(sentence: str) -> None:
    print(sentence, flush=True)


def dotted(version: "Optional[Version]") -> str:  # noqa: UP045
    return ".".join(map(str, version or ()))


def describe(python: str) -> "Tuple[Optional[Version], bool]":  # noqa: UP006, UP045
    """Major and minor version of an interpreter, None when it does not run, and whether it has a shared libpython."""
    try:
        text = subprocess.check_output([python, "-I", "-c", DESCRIBE], stderr=subprocess.DEVNULL)
        major, minor, shared = text.split()
        return (int(major), int(minor)), shared == b"1"
    except (OSError, ValueError, subprocess.CalledProcessError):
        return None, False


def installed(version: Version) -> "List[str]":  # noqa: UP006
    """What calls itself this Python, on PATH and among pyenv's, whose shims on PATH may lead nowhere."""
    name = "python" + dotted(version)
    pyenv = os.environ.get("PYENV_ROOT") or os.path.expanduser("~/.pyenv")
    paths = [os.path.join(place, name) for place in os.environ.get("PATH", os.defpath).split(os.pathsep) if place]
    paths += sorted(glob.glob(os.path.join(pyenv, "versions", dotted(version) + ".*", "bin", name)), reverse=True)
    return [path for path in paths if os.access(path, os.X_OK)]


def supported_python() -> str:
    """This interpreter where it fits, or else the best of the others."""
    if sys.version_info[:2] in SUPPORTED:
        return sys.executable
    for version in SUPPORTED:
        for python in installed(version):
            if describe(python)[0] == version:
                return python
    return fail(
        "Python 3.11 to 3.14 is needed and "
        + " is ".join((sys.executable, platform.python_version()))
        + ": install one of them, then `make run PYTHON=/path/to/python3.13`."
    )


def engine_python() -> str:
    """A Python for the engines: the one ENGINE_PYTHON names, else one that is here, else one that uv downloads."""
    if not has_tritonserver_wheel():
        # llama.cpp's wheel fits each Python.
        return supported_python()
    if os.environ.get("ENGINE_PYTHON"):
        return checked_engine_python(os.environ["ENGINE_PYTHON"])
    candidates = [(sys.version_info[:2], sys.executable)]
    candidates += [(version, python) for version in ENGINE_SUPPORTED for python in installed(version)]
    unshared = ""
    for wanted, python in candidates:
        if wanted in ENGINE_SUPPORTED:
            version, shared = describe(python)
            if version == wanted and shared:
                return python
            if version == wanted:
                unshared = python
    return downloaded_python() or download_python() or fail(cannot_download(unshared))


def checked_engine_python(python: str) -> str:
    version, shared = describe(python)
    if version is None:
        problem = " does not run as a Python"
    elif version not in ENGINE_SUPPORTED:
        problem = " is Python " + dotted(version)
    elif not shared:
        problem = " lacks its shared library, libpython" + dotted(version) + ".so.1.0"
    else:
        return python
    return fail(
        "ENGINE_PYTHON=" + python + problem + ": name a Python 3.12 or 3.11 that has one, or leave ENGINE_PYTHON out."
    )


def cannot_download(unshared: str) -> str:
    sentences = [
        "The local engines need a Python 3.12 or 3.11 beside this " + platform.python_version() + ",",
        "and uv could not download one: its lines above say why.",
    ]
    if unshared:
        library = "libpython" + dotted(describe(unshared)[0])
        sentences.append(
            unshared + " cannot be used as it is: it lacks its shared library (on Debian and Ubuntu `apt-get install "
            "" + library + "`)."
        )
    sentences.append(
        "Try again, name a mirror in UV_PYTHON_INSTALL_MIRROR, or name a Python 3.12 that you have installed: "
        "`ENGINE_PYTHON=/path/to/python3.12 make install`. With a Triton of your own none is needed: "
        "`TRITON_URLS=host:8001 make run`."
    )
    return " ".join(sentences)


def uv_environment() -> "Dict[str, str]":  # noqa: UP006
    """Our environment, in which uv finds the index and the certificates that pip has been given."""
    environment = dict(os.environ)
    for theirs, ours in (("UV_DEFAULT_INDEX", "PIP_INDEX_URL"), ("SSL_CERT_FILE", "PIP_CERT")):
        if ours in os.environ:
            environment.setdefault(theirs, os.environ[ours])
    return environment


def uv_python(*arguments: str) -> "List[str]":  # noqa: UP006
    # The project's own bounds and pins are not meant for this one.
    return [UV_PROGRAM, "--no-config", "--directory", os.path.dirname(UV_PROGRAM), "python", *arguments]


def downloaded_python() -> str:
    """The interpreter that uv keeps for everybody of this account, empty if there is none."""
    command = uv_python("find", "--no-project", "--managed-python", "--no-python-downloads", dotted(DOWNLOADED))
    try:
        text = subprocess.check_output(command, stderr=subprocess.DEVNULL, env=uv_environment())
    except (OSError, subprocess.CalledProcessError):
        return ""
    python = text.decode().strip()
    return python if describe(python) == (DOWNLOADED, True) else ""


def download_python() -> str:
    version = dotted(DOWNLOADED)
    say("The local engines need Python " + version + " and there is none: downloading it, some 30 MB ...")
    try:
        subprocess.call(uv_python("install", "--no-bin", version), env=uv_environment())
    except OSError as error:
        say("uv cannot be started: " + str(error.strerror))
    return downloaded_python()
