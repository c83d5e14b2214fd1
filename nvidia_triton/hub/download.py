"""Downloads the files of models, verifies them, and repairs what is damaged.

Only the standard library, and Python 3.10: this file also runs on a rented host. There it is a program that is given
its work as JSON on standard input and says how it goes in lines of JSON.
"""

from __future__ import annotations

import fcntl
import hashlib
import http.client
import json
import os
import shutil
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any, NamedTuple

try:
    from nvidia_triton.hub.transfer import DownloadError, Hub, Passing
except ImportError:
    # On a host the two files lie in one folder.
    from transfer import DownloadError, Hub, Passing  # type: ignore[no-redef,import-not-found]

CONNECTIONS = 4
CHUNK = 1 << 20
# Left free on the disk, in bytes: logs and engines need some.
RESERVE = 500_000_000
# Tries in a row that bring no byte, and the seconds between them.
TRIES = 6
PAUSES = (0.5, 1.0, 2.0, 5.0, 10.0)
LONGEST_PAUSE = 60.0
SHOW_SECONDS = 0.5
LOCK_SECONDS = 20.0
# What is not complete yet, by its SHA-256: a file of another revision is never gone on with.
PARTIAL = ".partial"


class File(NamedTuple):
    """One line of source.json; `size` in bytes."""

    path: str
    size: int
    sha256: str


class Order(NamedTuple):
    """The files of one model, and the folder that they belong in."""

    name: str
    repository: str
    revision: str
    folder: Path
    files: tuple[File, ...]


class Progress(NamedTuple):
    """`done` and `total` in bytes: first of what is verified, then of what is downloaded."""

    step: str
    done: int
    total: int


Show = Callable[[Progress], None]
Missing = list[tuple[Order, File]]


def fetch(orders: list[Order], hub: Hub, show: Show) -> dict[str, list[str]]:
    """Brings every file of `orders` into its folder; the paths that were downloaded, by model.

    What is there is verified first, and what is right is left alone.

    Raises:
        DownloadError: the disk is too small, and nothing was begun; or a file could not be had, and what has arrived is
            kept.
    """
    locks = [_locked(order) for order in orders]
    try:
        with _Work(show) as work:
            missing = work.verify(orders)
            _check_room(missing)
            work.download(missing, hub)
        for order in orders:
            shutil.rmtree(order.folder / PARTIAL, ignore_errors=True)
    finally:
        for lock in locks:
            os.close(lock)
    fetched: dict[str, list[str]] = {order.name: [] for order in orders}
    for order, file in missing:
        fetched[order.name].append(file.path)
    return fetched


def prune(order: Order) -> None:
    """Removes files that the order does not name."""
    kept = {file.path for file in order.files}
    for path in sorted(order.folder.rglob("*"), reverse=True):
        if path.is_dir() and not path.is_symlink():
            if not any(path.iterdir()):
                path.rmdir()
        elif path.relative_to(order.folder).as_posix() not in kept:
            path.unlink()


def is_right(path: Path, file: File, count: Callable[[int], None]) -> bool:
    """Whether `path` holds `file`, by its size and SHA-256; `count` is given the bytes as they are read."""
    if not path.is_file() or path.stat().st_size != file.size:
        count(file.size)
        return False
    return bool(_digest_of(path, count).hexdigest() == file.sha256)


class _Work:
    """Threads, the sum of what they have done, and an end for all when one of them fails."""

    def __init__(self, show: Show) -> None:
        self._show = show
        self._pool = ThreadPoolExecutor(CONNECTIONS)
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._done = 0

    def __enter__(self) -> _Work:
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._pool.shutdown()

    def verify(self, orders: list[Order]) -> Missing:
        every = [(order, file) for order in orders for file in order.files]
        self._done = 0
        tasks = [self._pool.submit(is_right, order.folder / file.path, file, self._count) for order, file in every]
        self._follow("verifying", sum(file.size for _, file in every), tasks)
        return [each for each, task in zip(every, tasks, strict=True) if not task.result()]

    def download(self, missing: Missing, hub: Hub) -> None:
        self._done = 0
        tasks = [self._pool.submit(self._download, order, file, hub) for order, file in missing]
        self._follow("downloading", sum(file.size for _, file in missing), tasks)

    def _follow(self, step: str, total: int, tasks: list[Future[Any]]) -> None:
        waiting = set(tasks)
        while waiting:
            ended, waiting = wait(waiting, timeout=SHOW_SECONDS)
            for task in ended:
                task.result()
            self._show(Progress(step, self._done, total))

    def _count(self, size: int) -> None:
        with self._lock:
            self._done += size
        if self._stop.is_set():
            raise DownloadError("The download was ended.")

    def _download(self, order: Order, file: File, hub: Hub) -> None:
        partial = _partial(order, file)
        damaged = 0
        while True:
            digest = self._receive(order, file, hub, partial)
            if digest == file.sha256:
                break
            partial.unlink()
            self._count(-file.size)
            damaged += 1
            if damaged == 2:
                raise DownloadError(
                    f"{file.path} of {order.repository} arrives with the SHA-256 {digest}, twice, and source.json says "
                    f"{file.sha256}: correct source.json, or write it anew with REPO and REVISION."
                )
        target = order.folder / file.path
        target.parent.mkdir(parents=True, exist_ok=True)
        os.replace(partial, target)

    def _receive(self, order: Order, file: File, hub: Hub, partial: Path) -> str:
        """Goes on with `partial` until it is complete; its SHA-256."""
        failed = 0
        while True:
            before = partial.stat().st_size if partial.exists() else 0
            if before > file.size:
                partial.unlink()
                continue
            try:
                digest = _digest_of(partial, self._count) if before else hashlib.sha256()
                if before < file.size or not partial.exists():
                    self._append(order, file, hub, partial, digest)
            except Passing as reason:
                there = partial.stat().st_size if partial.exists() else 0
                self._count(-there)
                failed = 1 if there > before else failed + 1
                if failed >= TRIES:
                    raise DownloadError(
                        f"{file.path} of {order.repository} cannot be downloaded: {reason}. What has arrived is kept: "
                        "repeat this to go on."
                    ) from None
                pause = PAUSES[min(failed, len(PAUSES)) - 1] if reason.seconds is None else reason.seconds
                self._stop.wait(min(pause, LONGEST_PAUSE))
            except OSError as error:
                raise DownloadError(
                    f"{file.path} cannot be written: {error.strerror}. Make room and repeat this."
                ) from None
            else:
                return str(digest.hexdigest())

    def _append(self, order: Order, file: File, hub: Hub, partial: Path, digest: Any) -> None:
        start = partial.stat().st_size if partial.exists() else 0
        with hub.read(order.repository, order.revision, file.path, start, file.sha256) as answer:
            if start and (answer.status != 206 or not _begins_at(answer.headers.get("Content-Range"), start)):
                # It sends all of it again.
                partial.unlink()
                self._count(-start)
                raise Passing("the hub does not go on where the file ended", 0.0)
            with partial.open("ab", buffering=0) as written:
                while True:
                    chunk = _chunk(answer)
                    if not chunk:
                        break
                    start += len(chunk)
                    if start > file.size:
                        raise DownloadError(
                            f"{file.path} of {order.repository} is larger than the {file.size} bytes of source.json: "
                            "write source.json anew, with REPO and REVISION."
                        )
                    written.write(chunk)
                    digest.update(chunk)
                    self._count(len(chunk))
        if start < file.size:
            raise Passing("the connection broke")


def _chunk(answer: Any) -> bytes:
    try:
        return bytes(answer.read1(CHUNK))
    except (OSError, http.client.HTTPException) as error:
        raise Passing(f"the connection broke ({type(error).__name__})") from None


def _begins_at(content_range: str | None, start: int) -> bool:
    return (content_range or "").startswith(f"bytes {start}-")


def _digest_of(path: Path, count: Callable[[int], None]) -> Any:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while True:
            chunk = file.read(CHUNK)
            if not chunk:
                return digest
            digest.update(chunk)
            count(len(chunk))


def _partial(order: Order, file: File) -> Path:
    return order.folder / PARTIAL / file.sha256


def _locked(order: Order) -> int:
    """A lock on the folder, which the kernel drops with the process."""
    (order.folder / PARTIAL).mkdir(parents=True, exist_ok=True)
    descriptor = os.open(order.folder, os.O_RDONLY)
    deadline = time.monotonic() + LOCK_SECONDS
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return descriptor
        except BlockingIOError:
            if time.monotonic() > deadline:
                os.close(descriptor)
                raise DownloadError(f"Another download of {order.name} is at work: wait for its end.") from None
            time.sleep(0.2)


def _check_room(missing: Missing) -> None:
    need = 0
    for order, file in missing:
        partial = _partial(order, file)
        need += file.size - (min(partial.stat().st_size, file.size) if partial.exists() else 0)
    if need:
        free = shutil.disk_usage(missing[0][0].folder).free
        if need + RESERVE > free:
            raise DownloadError(
                f"The files take {_size(need)} more, and {_size(free)} of the disk are free, of which "
                f"{_size(RESERVE)} are kept. Nothing was downloaded."
            )


def _size(count: int) -> str:
    return f"{count / 1e9:,.1f} GB" if count >= 1e9 else f"{count / 1e6:,.1f} MB"


def _main() -> None:
    work = json.load(sys.stdin)
    orders = [
        Order(each["name"], each["repository"], each["revision"], Path(each["folder"]), tuple(
            File(file["path"], file["size"], file["sha256"]) for file in each["files"]
        ))
        for each in work
    ]  # fmt: skip

    def say(**line: Any) -> None:
        try:
            print(json.dumps(line), flush=True)
        except BrokenPipeError:
            # Whoever asked has gone.
            os._exit(1)

    hub = Hub(os.environ.get("HF_ENDPOINT", ""), os.environ.get("HF_TOKEN", ""))
    try:
        fetched = fetch(orders, hub, lambda progress: say(progress=progress))
        for order in orders:
            prune(order)
    except DownloadError as error:
        say(error=str(error))
    except OSError as error:
        say(error=f"The disk cannot be written: {error.strerror}.")
    else:
        say(fetched=fetched)


if __name__ == "__main__":
    _main()
