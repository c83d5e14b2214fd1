"""The model repository as the API has it: what Triton does not tell of a model stands in the model's own folder."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import lru_cache
from pathlib import Path

VERSION = "1"
ABSENT = (0, 0)

_stamps: ContextVar[dict[Path, tuple[int, int]] | None] = ContextVar("stamps", default=None)


@contextmanager
def looked_at_once() -> Iterator[None]:
    """Within it, each file is taken for what it was when it was first looked at: for many requests in a row."""
    token = _stamps.set({})
    try:
        yield
    finally:
        _stamps.reset(token)


def folder_of(repository: Path, model: str) -> Path | None:
    """The model's folder, which need not exist; None for a name that no folder can have."""
    if "/" in model or "\\" in model or "\x00" in model or model in ("", ".", ".."):
        return None
    return repository / model


@lru_cache(maxsize=1024)
def files_of(repository: Path, model: str, *names: str) -> tuple[Path, ...] | None:
    """The files of these names in the model's folder; otherwise as `folder_of`.

    They are asked for with every request and every line of a batch, and putting paths together costs more than looking
    whether the files have changed.
    """
    folder = folder_of(repository, model)
    return None if folder is None else tuple(folder / name for name in names)


def stamp_of(file: Path) -> tuple[int, int]:
    """Changes whenever the file does; ABSENT where there is none."""
    stamps = _stamps.get()
    if stamps is None:
        return _stamp_of(file)
    stamp = stamps.get(file)
    if stamp is None:
        stamp = stamps[file] = _stamp_of(file)
    return stamp


def _stamp_of(file: Path) -> tuple[int, int]:
    try:
        state = file.stat()
    except OSError:
        return ABSENT
    return (state.st_mtime_ns, state.st_size)
