"""The API and the dispatcher on this machine: used where they run, else started without a Triton of their own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from urllib.parse import urlsplit

import httpx

from nvidia_triton.vast.context import Context
from nvidia_triton.vast.errors import TargetError

RECORD = "service"
LOG = "service.log"
LOG_LINES = 12
START_SECONDS = 120.0
STOP_SECONDS = 60.0
PAUSE_SECONDS = 0.2
LOOPBACK = ("127.0.0.1", "localhost", "::1")
# What the service has no use for, or would misread.
NOT_FOR_IT = ("VAST_API_KEY", "HF_TOKEN", "MODELS", "MAKEFLAGS", "MAKELEVEL", "MFLAGS", "MAKEOVERRIDES")


def ensure(context: Context) -> str:
    """Returns when the API is ready; the answer is a word on where it comes from.

    Raises:
        TargetError: it does not answer and cannot be started.
    """
    settings = context.settings
    state = readiness(settings.api_url)
    if state is True:
        ours = _started_by_us(context) is not None
        return f"{settings.api_url} answers" + (", started by an earlier gpu-up" if ours else "")
    process = None
    if state is None and _runner(context) is None:
        process = _start(context)
    with context.work.waiting() as line:
        while readiness(settings.api_url) is not True:
            if process is not None and process.poll() is not None and _runner(context) is None:
                context.state.remove(RECORD)
                raise TargetError(f"The service could not be started. It said:\n{_last_lines(context)}")
            if line.seconds > START_SECONDS:
                raise TargetError(
                    f"The API at {settings.api_url} is not ready after {START_SECONDS:.0f} s: "
                    f"`curl {settings.api_url}/health/ready` says why."
                )
            line.says(f"waiting for the API at {settings.api_url}")
            context.work.pause(PAUSE_SECONDS)
    return f"{settings.api_url} started" if process is not None else f"{settings.api_url} answers"


def stop(context: Context) -> bool:
    """Ends the service that gpu-up started; False when it started none or it has ended."""
    pid = _started_by_us(context)
    context.state.remove(RECORD)
    if pid is None:
        return False
    os.kill(pid, signal.SIGTERM)
    deadline = time.monotonic() + STOP_SECONDS
    while _runner(context) == pid:
        if time.monotonic() > deadline:
            raise TargetError(f"The service (process {pid}) does not end: look at it, or `kill -9 {pid}`.")
        context.work.pause(PAUSE_SECONDS)
    return True


def readiness(url: str) -> bool | None:
    """Whether the API is ready; None when nobody answers.

    Raises:
        TargetError: something else answers.
    """
    try:
        answer = httpx.get(f"{url}/health/ready", timeout=5, trust_env=False)
    except (httpx.UnsupportedProtocol, httpx.InvalidURL):
        raise TargetError(f"API_URL={url} is not an address: give it as http://127.0.0.1:8887.") from None
    except httpx.ConnectError:
        return None
    except httpx.HTTPError:
        return False
    if answer.status_code not in (200, 503) or "json" not in answer.headers.get("content-type", ""):
        raise TargetError(
            f"What answers at {url} is not this project's API (HTTP {answer.status_code}): stop it, or name another "
            "address with API_URL=http://127.0.0.1:8987."
        )
    return answer.status_code == 200


def _start(context: Context) -> subprocess.Popen[bytes]:
    settings = context.settings
    url = urlsplit(settings.api_url)
    if url.scheme != "http" or url.hostname not in LOOPBACK:
        raise TargetError(
            f"Nothing answers at API_URL={settings.api_url}, and only one on this machine can be started: start it "
            "there, or leave API_URL out."
        )
    inherited = {name: value for name, value in os.environ.items() if name not in NOT_FOR_IT}
    environment = {
        **inherited,
        "API_HOST": "127.0.0.1",
        "API_PORT": str(url.port or 80),
        "TRITON_URLS": "none",
        "LOCAL_DIR": str(settings.local_dir),
    }
    # On record before the start, so that whatever interrupts this, gpu-down knows whose it is.
    context.state.write(RECORD, {"pid": None})
    with context.state.file(LOG).open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "nvidia_triton.local.run"],
            cwd=settings.root,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    context.state.write(RECORD, {"pid": process.pid})
    return process


def _started_by_us(context: Context) -> int | None:
    if not context.state.file(f"{RECORD}.json").exists():
        return None
    runner, recorded = _runner(context), context.state.read(RECORD).get("pid")
    return runner if recorded in (None, runner) else None


def _runner(context: Context) -> int | None:
    """The process that runs the service of this checkout, which writes its pid into the runner's lock file."""
    try:
        pid = int((context.settings.local_dir / "run.lock").read_text())
        command = Path(f"/proc/{pid}/cmdline").read_bytes()
    except (OSError, ValueError):
        return None
    return pid if b"nvidia_triton.local." in command else None


def _last_lines(context: Context) -> str:
    lines = context.state.file(LOG).read_text(errors="replace").splitlines()
    return context.settings.redact("\n".join(f"  {line}" for line in lines[-LOG_LINES:]))
