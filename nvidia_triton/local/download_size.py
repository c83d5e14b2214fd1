"""Writes into a lock file how much it makes an empty cache download: `download_size requirements-dev.txt 3.13`."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

from nvidia_triton.local.interpreters import UV_PROGRAM

PLATFORM = "x86_64-manylinux_2_35"


def megabytes(lock: Path, python: str) -> int:
    """What the wheels of a lock weigh for one Python on Linux x86-64, by the index's own word."""
    command = [
        *(UV_PROGRAM, "pip", "compile", "-q", "--no-deps", "--no-header", "--format", "pylock.toml"),
        *("--python-version", python, "--python-platform", PLATFORM, str(lock)),
    ]
    locked = tomllib.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    # One too large rather than too small, where several wheels would do.
    sizes: list[int] = [max(wheel["size"] for wheel in each["wheels"]) for each in locked["packages"]]
    return round(sum(sizes) / 1e6)


def main(lock: Path, python: str) -> None:
    text = re.sub("^# To download: .*\n", "", lock.read_text(), flags=re.MULTILINE)
    lock.write_text(f"# To download: {megabytes(lock, python)} MB\n{text}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
