"""A rented machine of the simulation, as the targets that work on one are given it."""

import io
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from nvidia_triton.vast import vast as api
from nvidia_triton.vast.context import Context, Instance
from nvidia_triton.vast.definition import load_definition
from nvidia_triton.vast.progress import PrintedWork
from nvidia_triton.vast.servers import ServersFile
from nvidia_triton.vast.settings import ROOT, load_settings
from nvidia_triton.vast.state import State
from tests.servers import TEST_MODELS
from tests.vast.fake import FakeVast
from tests.vast.kit import IMAGE


@dataclass
class Rented:
    """`models` is the repository that is deployed from, empty at first."""

    vast: FakeVast
    context: Context
    instance: Instance
    key: Path

    @property
    def models(self) -> Path:
        return self.context.settings.root / "models"

    @property
    def opt(self) -> Path:
        """The instance's /opt, seen from here."""
        return self.vast.host(self.instance.id).root / "opt"

    def add_model(self, name: str, like: str = "tiny") -> Path:
        shutil.copytree(TEST_MODELS / like, self.models / name)
        return self.models / name

    def said(self) -> str:
        """What the targets have printed since the last call."""
        assert isinstance(self.context.work, PrintedWork)
        output = self.context.work.console.file
        assert isinstance(output, io.StringIO)
        text = output.getvalue()
        output.seek(0)
        output.truncate()
        return text

    def again(self) -> Instance:
        """The instance with the address it has now."""
        found = api.VastClient(self.context.settings).instance(self.instance.id)
        assert found is not None
        return found

    def ssh(self, command: str) -> str:
        return self.vast.ssh(self.instance.id, self.key, command).stdout


def rent(vast: FakeVast, environment: dict[str, str], root: Path, **options: Any) -> Rented:
    """A machine that runs, and a checkout of its own in `root`."""
    (root / "models").mkdir(parents=True, exist_ok=True)
    settings = load_settings(environment, root)
    definition = load_definition(ROOT / "nvidia_triton" / "vastai_instance_definition.yaml")
    state = State(settings.local_dir).prepare()
    work = PrintedWork(Console(file=io.StringIO(), width=300))
    context = Context(settings, definition, state, ServersFile(settings.local_dir), work)
    key = settings.require_ssh_key()
    options = {"image": IMAGE, "onstart": definition.onstart, **options}
    row = vast.rent(key.with_name(key.name + ".pub").read_text(), **options)
    return Rented(vast, context, api.parse(row), key)
