"""What the targets remember between two calls: one directory, readable by its owner alone."""

import fcntl
import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from nvidia_triton.vast.errors import TargetError


class State:
    """Files under `<LOCAL_DIR>/vast/`: known_hosts, a JSON record for each contract and each intent, pids, logs."""

    def __init__(self, local_dir: Path) -> None:
        self.directory = local_dir / "vast"

    def prepare(self) -> "State":
        """Makes the directory, mode 0700."""
        self.directory.mkdir(parents=True, exist_ok=True)
        self.directory.chmod(0o700)
        return self

    @property
    def known_hosts(self) -> Path:
        return self.directory / "known_hosts"

    def file(self, name: str) -> Path:
        return self.directory / name

    def read(self, name: str) -> dict[str, Any]:
        """The record `name`, empty where there is none or a crash left it unreadable."""
        try:
            found = json.loads(self.file(f"{name}.json").read_text())
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}

    def write(self, name: str, record: dict[str, Any]) -> None:
        """Replaces the record `name`; whoever reads sees the old or the new one."""
        self.prepare()
        write_whole(self.file(f"{name}.json"), json.dumps(record, indent=1))

    def update(self, name: str, **fields: Any) -> dict[str, Any]:
        with self.locked(f"{name}.record"):
            record = self.read(name) | fields
            self.write(name, record)
        return record

    def remove(self, name: str) -> None:
        self.file(f"{name}.json").unlink(missing_ok=True)

    def names(self, prefix: str) -> list[str]:
        """Names of the records that start with `prefix`."""
        return sorted(path.stem for path in self.directory.glob(f"{prefix}*.json"))

    @contextmanager
    def locked(self, name: str, busy: str | None = None) -> Iterator[None]:
        """Holds a lock that ends with the process; with `busy`, raises it as a TargetError instead of waiting."""
        self.prepare()
        with self.file(f"{name}.lock").open("a") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | (fcntl.LOCK_NB if busy else 0))
            except BlockingIOError:
                raise TargetError(busy or "") from None
            yield


def write_whole(path: Path, text: str) -> None:
    """Writes a file readable by its owner alone, all of it or nothing."""
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
