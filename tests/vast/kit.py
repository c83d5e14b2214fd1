"""What the tests of this directory say often."""

import contextlib
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import httpx
from vastai import VastAI

from tests.vast.fake import FakeVast

IMAGE = "nvcr.io/nvidia/tritonserver:25.10-vllm-python-py3"
# Starts Triton on a machine and waits for it.
TRITON = """
mkdir -p /opt/models /opt/triton
setsid nohup /opt/tritonserver/bin/tritonserver --model-repository=/opt/models --model-control-mode=explicit \\
    --http-address=127.0.0.1 --grpc-address=127.0.0.1 --metrics-address=127.0.0.1 \\
    >/opt/triton/tritonserver.log 2>&1 </dev/null &
echo $! >/opt/triton/tritonserver.pid
for _ in $(seq 200); do
    curl -sf http://127.0.0.1:8000/v2/health/live && exit 0
    sleep 0.05
done
cat /opt/triton/tritonserver.log
exit 1
"""

T = TypeVar("T")


def public(key: Path) -> str:
    return key.with_suffix(".pub").read_text()


def create(sdk: VastAI, offer: int = 9101002, **options: Any) -> int:
    answer = sdk.create_instance(id=offer, **{"image": IMAGE, "disk": 80, "ssh": True, "direct": True, **options})
    assert answer["success"] is True, answer
    return int(answer["new_contract"])


def until(condition: Callable[[], T], what: str, seconds: float = 60) -> T:
    """The first true value of `condition`."""
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, what
        time.sleep(0.02)
    return found


@contextlib.contextmanager
def ssh(
    vast: FakeVast, ident: int, key: Path, *arguments: str, port: int | None = None
) -> Iterator[subprocess.Popen[str]]:
    """A running ssh; it is ended with the block."""
    host = vast.host(ident)
    command = [
        *("ssh", "-F", "/dev/null", "-i", str(key), "-p", str(port or host.port)),
        *("-o", "BatchMode=yes", "-o", "IdentitiesOnly=yes", "-o", "ExitOnForwardFailure=yes"),
        *("-o", f"HostKeyAlias=vast-{ident}", "-o", "StrictHostKeyChecking=accept-new"),
        *("-o", f"UserKnownHostsFile={key.parent / 'known_hosts'}", "-o", "GlobalKnownHostsFile=/dev/null"),
    ]
    process = subprocess.Popen(
        [*command, *arguments], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def answers(url: str) -> bool:
    try:
        return httpx.get(url, timeout=10, trust_env=False).status_code == 200
    except httpx.HTTPError:
        return False
