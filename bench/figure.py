"""What a measure comes to, and where it is written."""

import json
import os
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

RESULTS = Path(__file__).with_name("results")


@dataclass
class Figure:
    """`ours` and `theirs` are medians in `unit`; `value` is compared with `target`."""

    name: str
    value: float
    target: str
    met: bool
    ours: str
    theirs: str
    extra: dict[str, Any] = field(default_factory=dict)


def show(figures: Sequence[Figure]) -> None:
    table = Table(title="bench")
    for column in ("what", "value", "target", "", "ours", "against"):
        table.add_column(column)
    for figure in figures:
        mark = "" if figure.target == "reported" else "[green]met[/]" if figure.met else "[red]short[/]"
        table.add_row(figure.name, f"{figure.value:.2f}", figure.target, mark, figure.ours, figure.theirs)
    Console().print(table)


def write(figures: dict[str, Figure], picture: str) -> None:
    """Of each measure by name, as JSON, and a picture of them, as SVG, beside it."""
    RESULTS.mkdir(exist_ok=True)
    now = datetime.now(UTC)
    file = RESULTS / f"{now:%Y%m%dT%H%M%SZ}.json"
    machine = {"cores": os.cpu_count(), "python": platform.python_version(), "at": now.isoformat()}
    found = [{"measure": name, **asdict(figure)} for name, figure in figures.items()]
    file.write_text(json.dumps({"machine": machine, "figures": found}, indent=2))
    file.with_suffix(".svg").write_text(picture)
    shown = file.relative_to(Path.cwd()) if file.is_relative_to(Path.cwd()) else file
    print(f"written to {shown}, with a picture beside it")
