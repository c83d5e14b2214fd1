"""docs/scaling.md: its numbers are those of the formulas, its commands and names those there are."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import asyncpg
import pytest

from app.config import Settings

ROOT = Path(__file__).parents[2]
DOC = (ROOT / "docs" / "scaling.md").read_text()
USABLE = 100 - 3


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", DOC, re.DOTALL | re.MULTILINE)


def test_the_connection_counts_follow_the_formula() -> None:
    rows = re.findall(r"^\| (\d+) \| (\d+) \| (\d+) \| (\d+) \| (yes|no)\b", DOC, re.MULTILINE)
    assert len(rows) == 6
    for apis, dispatchers, pool, connections, fits in rows:
        assert int(connections) == (int(apis) + int(dispatchers)) * (int(pool) + 1) + 1
        assert (fits == "yes") == (int(connections) <= USABLE)


def test_the_slots_kept_for_single_prompts_are_those_of_the_setting() -> None:
    share = Settings.model_fields["interactive_share"].default
    assert "60 slots of 64" in DOC
    assert 64 - int(64 * share) == 60
    assert "fewer than 16 slots" in DOC
    assert (int(15 * share), int(16 * share)) == (0, 1)


def test_every_setting_named_there_is_one() -> None:
    named = set(re.findall(r"\b[A-Z]+(?:_[A-Z]+)+\b", DOC))
    assert named <= {name.upper() for name in Settings.model_fields}


async def test_the_query_runs(database_url: str) -> None:
    connection = await asyncpg.connect(database_url)
    try:
        for query in blocks("sql"):
            assert await connection.fetch(query)
    finally:
        await connection.close()


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="needs kubectl, which builds without a cluster")
def test_the_commands_run() -> None:
    for command in blocks("sh"):
        environment = {"PATH": os.environ["PATH"], "KUBECONFIG": os.devnull}
        done = subprocess.run(
            ["bash", "-euc", command], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 0, done.stderr
