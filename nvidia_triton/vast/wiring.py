"""Puts together what a target works with."""

import os
from collections.abc import Mapping
from pathlib import Path

from nvidia_triton.vast.context import Context
from nvidia_triton.vast.definition import InstanceDefinition, load_definition
from nvidia_triton.vast.errors import TargetError
from nvidia_triton.vast.servers import ServersFile
from nvidia_triton.vast.settings import ROOT, load_settings
from nvidia_triton.vast.state import State
from nvidia_triton.vast.work import Work

DEFINITION = Path("nvidia_triton", "vastai_instance_definition.yaml")


def open_context(
    environ: Mapping[str, str] = os.environ,
    *,
    needs_definition: bool = True,
    root: Path = ROOT,
    work: Work | None = None,
) -> Context:
    """With `needs_definition` false, a definition that cannot be read keeps nobody from ending what costs money.

    Raises:
        TargetError: a setting or the definition is wrong.
    """
    settings = load_settings(environ, root)
    named = settings.environ.get("DEFINITION")
    try:
        definition = load_definition(root / (os.path.expanduser(named) if named else DEFINITION))
    except TargetError:
        if needs_definition:
            raise
        definition = InstanceDefinition(onstart="", models=("none",))
    return Context(settings, definition, State(settings.local_dir), ServersFile(settings.local_dir), work or Work())
