"""A market of the user's own behind four commands: the example of docs/vast.md, and commands that do not do it."""

import dataclasses
import re
import stat
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nvidia_triton.providers.base import Doubtful, NoOffer, OfferGone, Provider, Refused, Unavailable
from nvidia_triton.providers.registry import open_definition, open_provider
from nvidia_triton.vast.definition import InstanceDefinition
from nvidia_triton.vast.settings import ROOT, load_settings

FILE = ROOT / "nvidia_triton" / "vastai_instance_definition.yaml"
LABEL = "triton-tickets-1a2b"
Open = Callable[..., Provider]


@pytest.fixture
def definition() -> InstanceDefinition:
    return open_definition(FILE)


@pytest.fixture
def opened(vast_env: dict[str, str], tmp_path: Path) -> Open:
    def open_with(**commands: Any) -> Provider:
        unused = dict.fromkeys(("offers", "create", "list", "destroy"), "true")
        return open_provider("command", unused | commands, load_settings(vast_env, tmp_path))

    return open_with


def script(path: Path, text: str) -> str:
    path.write_text(text)
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)


def saying(folder: Path, text: str, name: str = "said") -> str:
    return script(folder / name, f"#!/bin/sh\ncat > /dev/null\n{text}\n")


async def test_the_documented_example_walks_a_host_of_ones_own(
    opened: Open, definition: InstanceDefinition, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    document = (ROOT / "docs" / "vast.md").read_text()
    found = re.search(r"```python\n(#!/usr/bin/env python3\n.*?)```", document, re.DOTALL)
    assert found is not None
    program = script(tmp_path / "machines.py", found.group(1))
    monkeypatch.chdir(tmp_path)
    commands = {name: [sys.executable, program, name] for name in ("offers", "create", "list", "destroy")}
    provider = opened(**commands)
    (offer,) = await provider.offers(dataclasses.replace(definition.offer_query(), gpu_names=()))
    # It is a machine of its own, also where the command does not say so.
    assert (offer.id, offer.machine, offer.price) == ("workstation", "workstation", 0.1)
    id_ = await provider.create(offer, LABEL, definition)
    (host,) = await provider.list("triton-tickets-")
    assert (host.id, host.label, host.state) == (id_, LABEL, "running")
    assert host.address is not None
    assert host.address.routes == (("workstation.lan", 22),)
    assert await provider.list("others-") == []
    with pytest.raises(OfferGone, match="it is in use"):
        await provider.create(offer, LABEL + "0", definition)
    await provider.destroy(id_)
    await provider.destroy(id_)
    assert await provider.list("triton-tickets-") == []


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("exit 3", "exit code 3: it said nothing"),
        ("echo no disk >&2; exit 1", "exit code 1: no disk"),
        ("echo not json", "answers something else than it should"),
        ("""echo '{"id": ""}'""", "answers something else than it should: id"),
        ("sleep 60", "has not ended within 0.3 s and was stopped"),
    ],
)
async def test_a_create_that_is_unclear_may_have_made_a_host(
    opened: Open, definition: InstanceDefinition, tmp_path: Path, text: str, problem: str
) -> None:
    offers = saying(tmp_path, """echo '{"offers": [{"id": "a", "price": 0.2, "vram_gb": 48}]}'""", "offers")
    provider = opened(offers=offers, create=saying(tmp_path, text), timeout=0.3 if "sleep" in text else 30)
    (offer,) = await provider.offers(definition.offer_query())
    with pytest.raises(Doubtful, match=re.escape(problem)):
        await provider.create(offer, LABEL, definition)


async def test_the_other_commands_say_what_is_wrong_with_them(
    opened: Open, definition: InstanceDefinition, tmp_path: Path
) -> None:
    query = definition.offer_query()
    with pytest.raises(Unavailable, match=r"cannot be started: No such file.* Is it installed here\?"):
        await opened(offers="/no/such/program").offers(query)
    failing = saying(tmp_path, """echo '{"error": "unavailable", "message": "the key is missing"}'""")
    with pytest.raises(Unavailable, match="says: the key is missing"):
        await opened(list=failing).list("x")
    with pytest.raises(NoOffer, match="no offer at all"):
        await opened(offers=saying(tmp_path, """echo '{"offers": []}'""")).offers(query)
    dear = saying(tmp_path, """echo '{"offers": [{"id": "a", "price": 9, "vram_gb": 8}]}'""")
    with pytest.raises(NoOffer, match=r"query.gpu_ram removes 1 .*max_price removes 1"):
        await opened(offers=dear).offers(query)
    with pytest.raises(Refused, match="cannot be used: offers"):
        opened(offers="")
    with pytest.raises(Refused, match="There is no provider"):
        open_provider("elsewhere", {}, load_settings({}, tmp_path))
