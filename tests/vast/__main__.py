"""Runs the simulated Vast.ai in the foreground: `python -m tests.vast`."""

import argparse
import signal
import sys
import tempfile
import threading
from pathlib import Path
from types import FrameType

from nvidia_triton.local.process import LocalError
from tests.vast.fake import FakeVast
from tests.vast.fake.prerequisites import obstacle

BANNER = """\
A simulation of Vast.ai: nothing is rented and nothing is paid. Its machines are namespaces of this one, without a GPU,
and their tritonserver answers with made-up text. In another terminal:

export VAST_URL={url} VAST_API_KEY={key} VAST_POLL_SECONDS=1 VASTAI_NO_UPDATE_CHECK=1

Then try `make search-instance` or `make gpu-up`. Ctrl-C here ends the simulation and all its machines."""


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.vast", description=__doc__)
    parser.add_argument("--port", type=int, default=8890)
    parser.add_argument("--boot-seconds", type=float, default=5.0, help="how long an instance takes to run")
    options = parser.parse_args()
    missing = obstacle()
    if missing:
        print(missing, file=sys.stderr)
        return 1
    ended = threading.Event()

    def end(_: int, __: FrameType | None) -> None:
        ended.set()

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, end)
    try:
        with (
            tempfile.TemporaryDirectory(prefix="simulated-vast-") as directory,
            FakeVast(Path(directory), boot_seconds=options.boot_seconds, port=options.port) as vast,
        ):
            print(BANNER.format(url=vast.url, key=vast.api_key), flush=True)
            ended.wait()
            print(f"\nEnded; ${vast.spent():.4f} would have been spent.")
    except LocalError as error:
        print(error, file=sys.stderr)
        return 1
    except OSError as error:
        print(f"Port {options.port} cannot be used ({error.strerror}): give another with --port.", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
