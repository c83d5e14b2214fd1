"""The environment of the local engines, `.venv-engine`: a Python and a NumPy that the tritonserver's stub can use."""

import ctypes
import json
import platform
import subprocess
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from nvidia_triton.local.process import LocalError

PYTHON = Path(__file__).resolve().parents[2] / ".venv-engine" / "bin" / "python"
STUB = "triton_python_backend_stub"
MISSING = "The environment of the local engines, .venv-engine, is incomplete{}: run `make install`."
# What llama.cpp takes from the system; its wheel does not bring it along, and a minimal Debian or Ubuntu lacks it.
SYSTEM_LIBRARY = "libgomp.so.1"
# Where the wheel is, where libpython is, and the versions that must fit each other.
QUESTION = """
import importlib.metadata, importlib.util, json, os, sys, sysconfig
spec = importlib.util.find_spec("pytriton")
library = "libpython%d.%d.so.1.0" % sys.version_info[:2]
places = [os.path.join(sys.base_prefix, "lib"), sysconfig.get_config_var("LIBDIR") or ""]
print(json.dumps({
    "python": "%d.%d" % sys.version_info[:2],
    "package": spec and os.path.dirname(spec.origin),
    "wheel": spec and importlib.metadata.version("nvidia-pytriton"),
    "numpy": importlib.metadata.version("numpy"),
    "libpython": next((place for place in places if os.path.exists(os.path.join(place, library))), ""),
}))
"""


def check_system_library() -> None:
    """
    Raises:
        LocalError: what llama.cpp needs of the system is not there; on macOS it needs nothing.
    """
    if sys.platform != "linux":
        return
    try:
        ctypes.CDLL(SYSTEM_LIBRARY)
    except OSError:
        raise LocalError(
            f"The local engine, llama.cpp, needs {SYSTEM_LIBRARY} and this system lacks it: install it, on Debian and "
            "Ubuntu with `apt-get install libgomp1`, or do without a real model: `ENGINE=simulation make run`."
        ) from None


@dataclass(frozen=True)
class EngineEnvironment:
    """`python` is the interpreter's path, `version` that of the wheel; the other paths are what it brings."""

    python: Path
    version: str
    server: Path
    backend: Path
    stub: Path
    libraries: tuple[Path, ...]

    @property
    def bin(self) -> Path:
        return self.python.parent


@cache
def engine_environment(python: Path = PYTHON) -> EngineEnvironment:
    """Asks the environment's own interpreter what it holds.

    Raises:
        LocalError: the platform does not fit, or the environment is missing or incomplete.
    """
    if sys.platform != "linux" or platform.machine() not in ("x86_64", "AMD64"):
        raise LocalError(
            f"The local tritonserver runs on Linux x86-64 only, and this is {sys.platform} "
            f"{platform.machine()}: name a server elsewhere in TRITON_URLS."
        )
    try:
        done = subprocess.run([python, "-I", "-c", QUESTION], capture_output=True, text=True, check=True, timeout=60)
    except (OSError, subprocess.SubprocessError):
        raise LocalError(MISSING.format("")) from None
    facts = json.loads(done.stdout)
    if not facts["package"]:
        raise LocalError(MISSING.format(", it lacks the wheel nvidia-pytriton"))
    if not facts["numpy"].startswith("1."):
        raise LocalError(
            "The local tritonserver's Python stub needs numpy 1 and would crash on the first request with "
            f"{facts['numpy']}, which .venv-engine has: run `make clean install`."
        )
    package = Path(facts["package"])
    found = EngineEnvironment(
        python=python,
        version=facts["wheel"],
        server=package / "tritonserver" / "bin" / "tritonserver",
        backend=package / "tritonserver" / "backends" / "python",
        stub=package / "tritonserver" / "python_backend_stubs" / facts["python"] / STUB,
        libraries=tuple(Path(each) for each in (package.parent / "nvidia_pytriton.libs", facts["libpython"]) if each),
    )
    for path in (found.server, found.backend, found.stub, *found.libraries):
        if not path.exists():
            raise LocalError(MISSING.format(f", it has no {path} for Python {facts['python']}"))
    return found
