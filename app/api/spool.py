"""Uploads wait in files until they are whole; here is how much of the disk they may take together."""

from __future__ import annotations

import errno
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

from app.config import Settings
from app.errors import SpoolFull
from app.telemetry import logger

log = logger("spool")

RETRY_SECONDS = 5
NO_SPACE = (errno.ENOSPC, errno.EDQUOT)


class Spool:
    """The files lie in Python's temporary directory, which `TMPDIR` names, and have no names there."""

    def __init__(self, settings: Settings) -> None:
        self._largest = settings.max_file_bytes
        self._room = settings.spool_bytes
        directory = tempfile.gettempdir()
        free = shutil.disk_usage(directory).free
        if free < self._room:
            log.warning(
                "uploads have less room than SPOOL_BYTES: let TMPDIR name a larger folder",
                directory=directory,
                free_bytes=free,
                spool_bytes=self._room,
            )

    @contextmanager
    def reserved(self, declared: int | None) -> Iterator[None]:
        """Room for an upload of `declared` bytes, None for unknown, for as long as it is received and stored.

        Raises:
            SpoolFull: the uploads under way, or other files on the same disk, leave no room.
        """
        size = self._largest if declared is None else min(declared, self._largest)
        if size > self._room:
            raise _full()
        self._room -= size
        try:
            yield
        except OSError as error:
            if error.errno not in NO_SPACE:
                raise
            log.error("no space left for an upload", directory=tempfile.gettempdir(), spool_bytes=size)
            raise _full() from None
        finally:
            self._room += size


def _full() -> SpoolFull:
    return SpoolFull(
        "The uploads under way leave no room for this one, of which nothing was kept: send it again after Retry-After. "
        "If that does not help, whoever runs the service has to give uploads more room: SPOOL_BYTES and the disk below "
        "TMPDIR.",
        headers={"Retry-After": str(RETRY_SECONDS)},
    )
