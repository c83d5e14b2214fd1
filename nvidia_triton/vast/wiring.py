"""Puts together what a target works with."""

import os
import sys
from collections.abc import Mapping
from pathlib import Path

from rich.console import Console

from nvidia_triton.vast.context import Context
from nvidia_triton.vast.definition import InstanceDefinition, load_definition
from nvidia_triton.vast.errors import TargetError
from nvidia_triton.vast.servers import ServersFile
from nvidia_triton.vast.settings import ROOT, load_settings
from nvidia_triton.vast.state import State

DEFINITION = Path("nvidia_triton", "vastai_instance_definition.yaml")
PLAIN_WIDTH = 160


def open_context(
    environ: Mapping[str, str] = os.environ, *, needs_definition: bool = True, root: Path = ROOT
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
    console = Console() if sys.stdout.isatty() else Console(width=PLAIN_WIDTH)
    return Context(settings, definition, State(settings.local_dir), ServersFile(settings.local_dir), console)
