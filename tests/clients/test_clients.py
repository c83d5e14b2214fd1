"""docs/clients.md says what clients.toml says; a third of the small clients runs, another one each day."""

import asyncio
import time
from pathlib import Path

import pytest

from nvidia_triton.local.settings import ROOT
from tests.clients.installing import NotInstalledError, install
from tests.clients.running import Outcome, judge, run
from tests.clients.stack import running_stack
from tests.clients.table import SCRIPTS, Client, document, load
from tests.rotation import third_of

# For all that are not installed yet.
INSTALL_SECONDS = 20.0
# No client is begun after this; the others of the day are skipped.
LAST_BEGIN_SECONDS = 40.0
# A client that hangs fails, and holds nobody up for as long as `make test-clients` would let it.
CLIENT_SECONDS = 120.0
CHEAP = [each for each in load() if each.cheap]
TODAYS = third_of(CHEAP)


def test_the_document_has_the_table_and_the_setups() -> None:
    assert document() in (ROOT / "docs" / "clients.md").read_text()


def test_each_script_is_a_clients() -> None:
    assert {each.script for each in load()} == {each.name for each in SCRIPTS.iterdir() if each.is_file()}


def test_a_client_passes_only_by_all_that_the_table_says() -> None:
    client = Client("x", ("x==1",), "x.py", ("chat", "stream"))
    assert judge(client, "passed: chat\npassed: stream\n", 0) == Outcome(("chat", "stream"), "")
    assert judge(client, "passed: chat\n", 0).reason == "stream: not passed"
    assert judge(client, "passed: chat\npassed: stream\npassed: tools\n", 0).reason == "tools: not in clients.toml"
    broken = "passed: chat\nTraceback (most recent call last):\n  x\nx.BadRequestError: no\n"
    assert judge(client, broken, 1) == Outcome(("chat",), "stream: x.BadRequestError: no")
    assert judge(client, "passed: chat\n", None).reason == "stream: no end in time"


async def test_a_third_of_the_small_clients_works(tmp_path: Path) -> None:
    begin = time.monotonic()
    folders = {}
    skipped = {}
    for client in TODAYS:
        try:
            folders[client] = await asyncio.to_thread(
                install, client, max(1.0, begin + INSTALL_SECONDS - time.monotonic())
            )
        except NotInstalledError as missing:
            skipped[client.name] = str(missing)
    outcomes = {}
    if folders:
        async with running_stack(tmp_path) as stack:
            for client, folder in folders.items():
                if time.monotonic() - begin > LAST_BEGIN_SECONDS:
                    skipped[client.name] = f'no time was left: make test-clients CLIENTS="{client.name}"'
                    continue
                outcomes[client.name] = (await run(client, folder, stack, CLIENT_SECONDS)).reason
    assert outcomes == dict.fromkeys(outcomes, "")
    if skipped:
        pytest.skip(f"these clients are NOT tested: {skipped}")
