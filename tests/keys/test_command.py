"""`make key`, `make keys`, `make revoke-key`: the command behind them."""

import asyncio
import os
import subprocess
import sys
from typing import Any

import pytest

from app.services.keys import KEY
from tests.keys.conftest import bearer
from tests.service import ROOT, Service


def run(url: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "nvidia_triton.local.database", "app.cli.keys", *arguments],
        cwd=ROOT,
        env={**os.environ, "DATABASE_URL": url, "COLUMNS": "200"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


async def command(service: Service, *arguments: str) -> Any:
    return await asyncio.to_thread(run, service.settings.database_url, *arguments)


async def test_a_key_is_made_used_listed_and_revoked(guarded: Service) -> None:
    made = await command(
        guarded, "create", "laptop", "--owner", "alice", "--scopes", "read submit", "--expires-days", "30",
        "--requests-per-minute", "60", "--pending", "100", "--tokens-per-day", "1000000", "--weight", "2",
    )  # fmt: skip
    assert made.returncode == 0, made.stderr
    key = made.stdout.strip()
    assert KEY.fullmatch(key)
    for words in ("of alice", "60 requests a minute", "100 tickets pending", "1,000,000 tokens a day", "only time"):
        assert words in made.stderr
    assert (await guarded.client.get("/contexts/", headers=bearer(key))).status_code == 200

    listed = (await command(guarded, "list")).stdout
    assert key not in listed
    for words in ("laptop", "alice", key[-4:], "read submit", "active"):
        assert words in listed
    id_ = made.stderr.split()[2]
    assert (await command(guarded, "revoke", id_)).returncode == 0
    assert "revoked" in (await command(guarded, "list")).stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("create", "x", "--scopes", "read write"), "write"),
        (("create", "x", "--scopes", " "), "none"),
        (("create", " "), "printable"),
        (("create", "x", "--weight", "0"), "above 0"),
        (("create", "x", "--expires-days", "nan"), "above 0"),
        (("create", "x", "--pending", "many"), "many"),
        (("create", "all"), "all owners"),
        (("revoke", "x"), "make keys"),
        (("revoke", "00000000-0000-0000-0000-000000000000"), "make keys"),
    ],
)
async def test_what_cannot_be_is_said_in_a_sentence(database_url: str, arguments: tuple[str, ...], words: str) -> None:
    done = await asyncio.to_thread(run, database_url, *arguments)
    assert done.returncode != 0
    assert words in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


def test_without_a_database_it_says_so() -> None:
    done = run("postgresql://nobody:nothing-here@127.0.0.1:9/none", "list")
    assert (done.returncode, done.stdout) == (1, "")
    assert "DATABASE_URL" in done.stderr
    assert "Traceback" not in done.stderr
