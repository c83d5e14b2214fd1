"""The servers file: which tunnels the dispatcher and the API send their requests through."""

import fcntl
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from nvidia_triton.vast.state import write_whole, writing


class ServersFile:
    """`<LOCAL_DIR>/servers.json`, read by app/fleet/servers.py."""

    def __init__(self, local_dir: Path, path: Path | None = None) -> None:
        self.path = path or local_dir / "servers.json"

    def entries(self) -> list[dict[str, Any]]:
        try:
            found = json.loads(self.path.read_text())["servers"]
        except (OSError, ValueError, KeyError, TypeError):
            return []
        return [entry for entry in found if isinstance(entry, dict)] if isinstance(found, list) else []

    def put(self, url: str, name: str, hourly_price: float | None) -> None:
        """Adds the server `name`, or changes its address."""
        self.put_entry({"url": url, "name": name, "hourly_price": hourly_price})

    def put_entry(self, entry: dict[str, Any]) -> None:
        """Adds a server, in the place of one of the same name."""
        self._change(lambda entries: [*(each for each in entries if each.get("name") != entry["name"]), entry])

    def remove(self, name: str, url: str | None = None) -> None:
        """Takes the server `name` out; with `url`, unless it has another address by now."""
        if self.path.exists():
            self._change(
                lambda entries: [
                    each for each in entries if each.get("name") != name or url not in (None, each.get("url"))
                ]
            )

    def _change(self, change: Callable[[list[dict[str, Any]]], list[dict[str, Any]]]) -> None:
        with writing(self.path.parent):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.with_suffix(".lock").open("a") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                write_whole(self.path, json.dumps({"servers": change(self.entries())}, indent=1))
