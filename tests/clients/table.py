"""The clients of clients.toml, and what docs/clients.md says of them."""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent
SCRIPTS = HERE / "scripts"
FENCES = {".py": "python", ".mjs": "js", ".sh": "sh"}


@dataclass(frozen=True)
class Client:
    """One row: `packages` are of PyPI, or of npm where the script is JavaScript or `npm` is set."""

    name: str
    packages: tuple[str, ...]
    script: str
    passes: tuple[str, ...]
    npm: bool = False
    # Small enough to be installed and run by `make test`.
    cheap: bool = False
    note: str = ""

    @property
    def version(self) -> str:
        """Of the first package."""
        return _split(self.packages[0])[1]

    @property
    def uses_npm(self) -> bool:
        return self.npm or self.path.suffix == ".mjs"

    @property
    def path(self) -> Path:
        return SCRIPTS / self.script

    def setup(self) -> str:
        """The lines of the script that a user of this client needs."""
        found = re.search(r"^(?:#|//) setup\n(.*?)^(?:#|//) end of setup\n", self.path.read_text(), re.DOTALL | re.M)
        assert found, f"{self.script} has no lines between `setup` and `end of setup`"
        return found[1]


def _split(package: str) -> tuple[str, str]:
    """Its name, without extras, and version."""
    name, _, version = package.replace("==", "@").rpartition("@")
    return re.sub(r"\[.*\]", "", name), version


def load() -> list[Client]:
    rows = tomllib.loads((HERE / "clients.toml").read_text())["client"]
    return [
        Client(**{key: tuple(value) if isinstance(value, list) else value for key, value in row.items()})
        for row in rows
    ]


def document() -> str:
    """The table and each client's setup, in Markdown."""
    clients = load()
    lines = ["| client | version | passes | |", "| --- | --- | --- | --- |"]
    lines += [f"| {each.name} | {each.version} | {', '.join(each.passes)} | {each.note} |" for each in clients]
    for each in clients:
        install = " ".join(dict.fromkeys(_split(package)[0] for package in each.packages))
        tool = "npm install" if each.uses_npm else "pip install"
        lines += ["", f"### {each.name}", "", f"`{tool} {install}`", ""]
        lines += [f"```{FENCES[each.path.suffix]}", each.setup().rstrip(), "```"]
    return "\n".join(lines) + "\n"
