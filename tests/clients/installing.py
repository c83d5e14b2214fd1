"""Clients in folders of their own, below `.clients/`: a virtual environment or an npm folder each."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

from nvidia_triton.local.settings import ROOT
from tests.clients.table import Client

CACHE = ROOT / ".clients"
UV = ROOT / ".venv" / "bin" / "uv"


class NotInstalledError(Exception):
    """A client cannot be installed here; the text says why and with which command."""


def folder_of(client: Client) -> Path:
    return CACHE / client.name


def install(client: Client, seconds: float = 1200) -> Path:
    """Its folder; what is installed already is kept while the pins are the same.

    Raises:
        NotInstalledError: there is no registry or no node, or it took longer than `seconds`.
    """
    folder = folder_of(client)
    installed, pins = folder / "installed", "\n".join([sys.version, *client.packages])
    if installed.is_file() and installed.read_text() == pins:
        return folder
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for command in _npm(client, folder) if client.uses_npm else _venv(client, folder):
        _call(client, command, seconds)
    installed.write_text(pins)
    return folder


def _venv(client: Client, folder: Path) -> list[list[str]]:
    venv = str(folder / "venv")
    return [
        [str(UV), "venv", "-q", "--python", sys.executable, venv],
        [str(UV), "pip", "install", "-q", "--python", f"{venv}/bin/python", *client.packages],
    ]


def _npm(client: Client, folder: Path) -> list[list[str]]:
    npm = shutil.which("npm")
    if npm is None:
        raise NotInstalledError("node and npm are not installed: apt-get install nodejs npm")
    (folder / "package.json").write_text('{"private": true, "type": "module"}')
    return [[npm, "install", "--prefix", str(folder), "--no-audit", "--no-fund", "--loglevel=error", *client.packages]]


def _call(client: Client, command: list[str], seconds: float) -> None:
    again = f'make test-clients CLIENTS="{client.name}"'
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=seconds, check=False)
    except subprocess.TimeoutExpired:
        raise NotInstalledError(f"not installed within {seconds:.0f} s: {again}") from None
    if done.returncode:
        lines = (done.stderr or done.stdout).strip().splitlines() or ["no reason was given"]
        raise NotInstalledError(f"{' '.join(lines[0].split())[:200]}: {again}, or by hand: {' '.join(command)}")
