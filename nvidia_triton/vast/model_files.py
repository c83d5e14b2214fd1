"""Has an instance download the files that models' `source.json` list: they do not pass through this machine's line."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from nvidia_triton.hub import download, source, transfer
from nvidia_triton.vast.errors import TargetError
from nvidia_triton.vast.remote_scripts import FETCH, STAGING
from nvidia_triton.vast.repository import ModelFolder
from nvidia_triton.vast.ssh import Connection, Unreachable
from nvidia_triton.vast.work import Line

TRIES = 4


def fetch(connection: Connection, folders: Sequence[ModelFolder]) -> set[str]:
    """Downloads into the staging folders there, verified and repaired; the models of which a file was downloaded.

    Raises:
        TargetError: they do not fit the disk, and nothing was begun; or a file cannot be had, and what arrived is kept.
    """
    work = [_work(folder) for folder in folders if folder.source]
    if not work:
        return set()
    settings = connection.context.settings
    variables = {
        "work": json.dumps(work),
        "transfer": Path(transfer.__file__).read_text(encoding="utf-8"),
        "download": Path(download.__file__).read_text(encoding="utf-8"),
        "hf_endpoint": settings.environ.get("HF_ENDPOINT", ""),
        "hf_token": settings.hf_token.get_secret_value() if settings.hf_token else "",
    }
    names = ", ".join(each["name"] for each in work)
    connection.context.work.begins("rsync")
    with connection.context.work.progress(f"verifying the files of {names}") as line:
        for attempt in range(1, TRIES + 1):
            listener = _Listener(line, names)
            try:
                connection.run(FETCH, variables, on_line=listener.hear)
            except Unreachable:
                if attempt == TRIES:
                    raise
                line.update(f"the connection to {connection.instance.name} broke, going on")
            else:
                break
    if listener.error or listener.fetched is None:
        reason = listener.error or "the download there ended without a word; repeat this target to go on."
        raise TargetError(f"On {connection.instance.name}: {settings.redact(reason)}")
    for name, paths in listener.fetched.items():
        connection.context.work.say(f"{name}: {_count(paths)}; all files verified")
    return {name for name, paths in listener.fetched.items() if paths}


class _Listener:
    """Reads what the program there says."""

    def __init__(self, line: Line, names: str) -> None:
        self._line = line
        self._names = names
        self.error = ""
        self.fetched: dict[str, list[str]] | None = None

    def hear(self, line: str) -> None:
        try:
            said: dict[str, Any] = json.loads(line)
        except ValueError:
            return
        if "progress" in said:
            step, done, total = said["progress"]
            share = f"{done / total:.0%} of {total / 1e9:.2f} GB" if total else ""
            percent = 100 * done / total if total else None
            self._line.update(f"{step} the files of {self._names}: {share}", percent=percent, bytes=done, moved=step)
        self.error = said.get("error", self.error)
        self.fetched = said.get("fetched", self.fetched)


def _work(folder: ModelFolder) -> dict[str, Any]:
    assert folder.source is not None
    target = PurePosixPath(STAGING, folder.name) / source.WEIGHTS
    return {"name": folder.name, "folder": str(target), **folder.source.model_dump()}


def _count(paths: list[str]) -> str:
    return f"{len(paths)} file{'s' * (len(paths) != 1)} downloaded ({', '.join(paths)})" if paths else "none downloaded"
