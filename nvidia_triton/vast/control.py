"""Triton's own HTTP interface: liveness, and the model repository extension of the KServe protocol."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import httpx

from nvidia_triton.vast.errors import TargetError
from nvidia_triton.vast.work import Work

LOOPBACK = "127.0.0.1"
ANSWER_SECONDS = 10.0
UNLOAD_SECONDS = 300.0
POLL_SECONDS = 0.3
BUSY = ("LOADING", "UNLOADING")
ORDER = ("READY", *BUSY, "UNAVAILABLE", "")


@dataclass(frozen=True)
class ModelState:
    """A row of the repository index. `state` is empty for a model that was never loaded."""

    name: str
    state: str
    reason: str

    @property
    def ready(self) -> bool:
        return self.state == "READY"

    @property
    def busy(self) -> bool:
        return self.state in BUSY

    @property
    def failed(self) -> bool:
        return self.state == "UNAVAILABLE" and self.reason not in ("", "unloaded")


class LoadFailed(TargetError):
    """The engine could not load a model; the message is its reason."""


class Control:
    """One Triton behind a local port. Where the way to it breaks, methods raise httpx.TransportError."""

    def __init__(self, http_port: int, work: Work | None = None) -> None:
        self._work = work or Work()
        self._client = httpx.Client(base_url=f"http://{LOOPBACK}:{http_port}", timeout=ANSWER_SECONDS, trust_env=False)

    def __enter__(self) -> Control:
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()

    def is_live(self) -> bool:
        return self._answers("/v2/health/live")

    def is_ready(self) -> bool:
        return self._answers("/v2/health/ready")

    def index(self) -> list[ModelState]:
        """Every model of the repository, a failed one with the engine's reason."""
        rows = self._post("/v2/repository/index").json()
        return [ModelState(row["name"], row.get("state", ""), row.get("reason", "")) for row in rows]

    def state(self, name: str) -> ModelState:
        """The model's state; of several versions the one that says most."""
        rows = [row for row in self.index() if row.name == name]
        return min(rows, key=lambda row: (ORDER.index(row.state), not row.failed), default=ModelState(name, "", ""))

    def load(self, name: str, seconds: float) -> None:
        """Blocks until the model is loaded.

        Raises:
            LoadFailed: with the engine's reason.
        """
        timeout = httpx.Timeout(seconds, connect=ANSWER_SECONDS)
        answer = self._client.post(f"/v2/repository/models/{name}/load", json={}, timeout=timeout)
        if answer.status_code != 200:
            raise LoadFailed(_reason(answer))

    def settled(self, name: str, seconds: float) -> ModelState:
        """Blocks while the model is being loaded or unloaded.

        Raises:
            TargetError: it still is after `seconds`.
        """
        return self._state_after(name, seconds, lambda state: state.busy)

    def unload(self, name: str, seconds: float = UNLOAD_SECONDS) -> None:
        """Blocks until nothing of the model is loaded; requests in flight finish."""
        if self.settled(name, seconds).ready:
            self._post(f"/v2/repository/models/{name}/unload")
            self._state_after(name, seconds, lambda state: state.busy or state.ready)

    def _state_after(self, name: str, seconds: float, goes_on: Callable[[ModelState], bool]) -> ModelState:
        deadline = time.monotonic() + seconds
        while goes_on(found := self.state(name)):
            if time.monotonic() > deadline:
                raise TargetError(
                    f"{name} is still {found.state.lower()} after {seconds:.0f} s; requests in flight may hold it. Try "
                    "again later, or restart Triton with `make run-tritonserver RESTART=1`."
                )
            self._work.pause(POLL_SECONDS)
        return found

    def statistics(self) -> list[dict[str, Any]]:
        """Triton's counters of every loaded model."""
        answer = self._client.get("/v2/models/stats")
        answer.raise_for_status()
        found: list[dict[str, Any]] = answer.json()["model_stats"]
        return found

    def _post(self, path: str) -> httpx.Response:
        answer = self._client.post(path, json={})
        answer.raise_for_status()
        return answer

    def _answers(self, path: str) -> bool:
        try:
            return self._client.get(path).status_code == 200
        except httpx.TransportError:
            return False


def _reason(answer: httpx.Response) -> str:
    try:
        return str(answer.json()["error"])
    except (ValueError, KeyError, TypeError):
        return f"HTTP status {answer.status_code}"
