"""A process beside the stub, as vLLM's engine is one: only the unloading of its model, or a kill, ends it."""

import shutil
import subprocess

NAME = "VLLM::EngineCore"
# Like vLLM's it has a child, which ends with it, and outlives the stub that started it.
_PROGRAM = """
import os, signal, sys
reader, writer = os.pipe()
if os.fork():
    os.close(reader)
    signal.pause()
os.close(writer)
os.read(reader, 1)
"""


class EngineProcess:
    def __init__(self, model: str) -> None:
        python = shutil.which("python3") or "python3"
        command = [python, "-I", "-S", "-c", _PROGRAM, f"{NAME} {model}"]
        self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL)

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def stop(self) -> None:
        self._process.kill()
        self._process.wait()
