"""What the simulation is told to do: settings from config.pbtxt, and markers in a prompt that make it fail.

Settings are `parameters` entries that the real backend ignores: `sim_time_to_first_token_ms`,
`sim_time_per_token_ms`, `sim_max_tokens_per_message`, `sim_load_time_ms`, `sim_load_error`, `sim_faults`,
`sim_engine_process` (`true`: a process beside the stub, as vLLM has; when it is killed the engine is dead).

Markers work only where `sim_faults` is `true`; elsewhere they are plain text.

    [[sim:tokens=N]]     generate N tokens, the end token included, then stop
    [[sim:slow=MS]]      milliseconds per token
    [[sim:first=MS]]     milliseconds until the first token
    [[sim:chunk=N]]      at most N tokens in a message
    [[sim:emit=TEXT]]    generate this text; TEXT may use the escapes of JSON strings, such as \\u0000
    [[sim:emit64=B64]]   the same in base64
    [[sim:error=TEXT]]   fail with "Error generating stream: TEXT"
    [[sim:error-of-seed=N]]  fail where the request's seed is N
    [[sim:hang]]         take a slot and never answer, until cancelled
    [[sim:engine-dead]]  the engine dies: this request, all others and all later ones fail
    [[sim:engine-sick=TEXT]]  this request and all later ones fail with "Error generating stream: TEXT"
    [[sim:die-stub]]     the backend process exits
    [[sim:hang-stub]]    the backend process takes no further requests and cannot be unloaded
    [[sim:kill-server]]  tritonserver is killed
"""

import base64
import json
import os
import re
import signal
import threading
from dataclasses import dataclass

_MARKER = re.compile(r"\[\[sim:([a-z0-9-]+)(?:=(.*?))?\]\]", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Settings:
    first: float  # seconds until the first token
    each: float  # seconds per further token
    chunk: int
    load_time: float
    load_error: str
    faults: bool
    process: bool

    @classmethod
    def from_parameters(cls, parameters: dict) -> "Settings":
        def value(name: str, default: str) -> str:
            return parameters.get(f"sim_{name}", {}).get("string_value", default)

        return cls(
            first=float(value("time_to_first_token_ms", "5")) / 1000,
            each=float(value("time_per_token_ms", "2")) / 1000,
            chunk=max(1, int(value("max_tokens_per_message", "5"))),
            load_time=float(value("load_time_ms", "0")) / 1000,
            load_error=value("load_error", ""),
            faults=value("faults", "false").lower() == "true",
            process=value("engine_process", "false").lower() == "true",
        )


class Plan:
    """How one request runs."""

    __slots__ = ("_seed", "action", "chunk", "each", "emit", "error", "first", "tokens")

    def __init__(self, settings: Settings, prompt: str, seed: int | None) -> None:
        self.first, self.each, self.chunk = settings.first, settings.each, settings.chunk
        self.tokens = self.emit = self.error = None
        self.action = ""
        self._seed = seed
        if settings.faults and "[[sim:" in prompt:
            for name, value in _MARKER.findall(prompt):
                self._read(name, value)

    def _read(self, name: str, value: str) -> None:
        match name:
            case "tokens":
                self.tokens = max(1, int(value))
            case "slow":
                self.each = float(value) / 1000
            case "first":
                self.first = float(value) / 1000
            case "chunk":
                self.chunk = max(1, int(value))
            case "emit":
                self.emit = json.loads(f'"{value}"', strict=False)
            case "emit64":
                self.emit = base64.b64decode(value).decode()
            case "error":
                self.error = value
            case "error-of-seed":
                if self._seed == int(value):
                    self.error = f"seed {value} fails"
            case "engine-sick":
                self.action, self.error = name, value
            case "hang-stub":
                hang_process()
            case "hang" | "engine-dead" | "die-stub" | "kill-server":
                self.action = name
            case _:
                raise ValueError(f"unknown marker [[sim:{name}]]")


def end_process() -> None:
    os._exit(1)


def hang_process() -> None:
    threading.Event().wait()


def kill_server() -> None:
    os.kill(os.getppid(), signal.SIGKILL)
