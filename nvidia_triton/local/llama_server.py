"""llama.cpp's own HTTP server for one model of the repository: where there is no tritonserver, or beside it."""

import json
import sys
from dataclasses import dataclass
from pathlib import Path

from nvidia_triton.local.engine import MISSING, PYTHON
from nvidia_triton.local.process import LocalError

HOST = "127.0.0.1"
PROGRAM = Path(__file__).with_name("backend") / "llama_server.py"
# In the servers file.
NAME = "llama-server"


@dataclass(frozen=True)
class LlamaServer:
    """How to start one; `model` is a folder of the model repository, whose name is the model's."""

    model: Path
    port: int = 8080
    options: tuple[str, ...] = ()

    @property
    def url(self) -> str:
        return f"http://{HOST}:{self.port}"

    def check(self) -> None:
        """
        Raises:
            LocalError: the model or the environment of the engines is not there.
        """
        if not (self.model / "1" / "model.json").exists():
            raise LocalError(
                f"{self.model.parent.name}/ has no model {self.model.name!r} with a 1/model.json, which is what "
                "llama.cpp's server can serve: name another in MODELS."
            )
        if not PYTHON.exists():
            raise LocalError(MISSING.format(""))

    def command(self) -> list[str]:
        return [str(PYTHON), str(PROGRAM), str(self.model), "--port", str(self.port), *self.options]

    def entry(self) -> dict[str, str]:
        """What the servers file says of it."""
        return {"url": self.url, "name": NAME, "kind": "openai"}

    def answering(self) -> dict[str, str]:
        """The model, and a few words on what answers for it."""
        name = json.loads((self.model / "1" / "model.json").read_text("utf-8"))["model"]
        return {self.model.name: f"{name}, a real model, on llama.cpp's own server, {self.url}/v1"}


def reason_for_it(machine: str) -> str:
    return f"There is no tritonserver for {sys.platform} on {machine}: llama.cpp's own HTTP server runs instead of it."
