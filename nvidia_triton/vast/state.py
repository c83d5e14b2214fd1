"""What the targets remember between two calls: one directory, readable by its owner alone."""

import fcntl
import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from nvidia_triton.vast.errors import TargetError


class StateFailed(TargetError):
    """Nothing can be written here: the disk is full, or it is not ours."""


@contextmanager
def writing(directory: Path) -> Iterator[None]:
    """
    Raises:
        StateFailed: for what goes wrong within in the file system.
    """
    try:
        yield
    except OSError as error:
        raise StateFailed(
            f"The state of the targets cannot be kept in {os.path.relpath(directory)}: {error.strerror}. Mend that, or "
            "name another folder with LOCAL_DIR, and try again."
        ) from None


class State:
    """Files under `<LOCAL_DIR>/vast/`: known_hosts, a JSON record for each contract and each intent, pids, logs."""

    def __init__(self, local_dir: Path) -> None:
        self.directory = local_dir / "vast"

    def prepare(self) -> "State":
        """Makes the directory, mode 0700."""
        with writing(self.directory):
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
        with writing(self.directory):
            write_whole(self.file(f"{name}.json"), json.dumps(record, indent=1))

    def update(self, name: str, **fields: Any) -> dict[str, Any]:
        with self.locked(f"{name}.record"):
            record = self.read(name) | fields
            self.write(name, record)
        return record

    def remove(self, name: str) -> None:
        with writing(self.directory):
            self.file(f"{name}.json").unlink(missing_ok=True)

    def names(self, prefix: str) -> list[str]:
        """Names of the records that start with `prefix`."""
        return sorted(path.stem for path in self.directory.glob(f"{prefix}*.json"))

    @contextmanager
    def locked(self, name: str, busy: str | None = None, *, needed: bool = True) -> Iterator[None]:
        """Holds a lock that ends with the process; with `busy`, raises it as a TargetError instead of waiting.

        Where it is not `needed`, a disk that is full does not keep anybody from going on without it.
        """
        with ExitStack() as stack:
            try:
                self.prepare()
                with writing(self.directory):
                    file = stack.enter_context(self.file(f"{name}.lock").open("a"))
            except StateFailed:
                if needed:
                    raise
            else:
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
