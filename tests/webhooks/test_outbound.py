"""Connections to where users point: pinned to the address that was checked, with TLS that holds for the name."""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trustme

from app.services.addresses import Address, AddressPolicy, literal
from app.services.outbound import Sender, SendError
from tests.webhooks.receiver import Receiver, receiving

HEADERS = {"webhook-id": "1"}
LOCAL = AddressPolicy(private=True)


class Names:
    """A name server whose answers are given, one after the other."""

    def __init__(self, *answers: str) -> None:
        self.answers = list(answers)
        self.asked: list[str] = []

    async def __call__(self, host: str, port: int) -> Sequence[Address]:
        self.asked.append(host)
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        return [address for each in answer.split() if (address := literal(each))]


async def refusal(sender: Sender, url: str, seconds: float = 5) -> str:
    with pytest.raises(SendError) as refused:
        await sender.post(url, HEADERS, b"{}", seconds)
    return str(refused.value)


def named(receiver: Receiver, host: str) -> str:
    return receiver.url.replace("127.0.0.1", host)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "[::ffff:127.0.0.1]", "0.0.0.0", "127.1"])
async def test_nothing_on_this_host_is_reached(receiver: Receiver, host: str) -> None:
    async with Sender(AddressPolicy(), 4) as sender:
        assert "not public" in await refusal(sender, named(receiver, host) + "/ok")
    assert not receiver.hooks


async def test_a_name_with_one_bad_address_is_refused_whole(receiver: Receiver) -> None:
    async with Sender(AddressPolicy(), 4, Names("8.8.8.8 127.0.0.1")) as sender:
        assert "not public" in await refusal(sender, named(receiver, "rebound.test") + "/ok")
    assert not receiver.hooks


async def test_a_name_is_resolved_once_for_a_connection_and_judged_each_time(receiver: Receiver) -> None:
    names = Names("127.0.0.1", "169.254.169.254")
    url = named(receiver, "rebound.test") + "/status/204"
    async with Sender(LOCAL, 4, names) as sender:
        # The second goes over the connection of the first, which leads where it led.
        assert [(await sender.post(url, HEADERS, b"{}")).status for _ in range(2)] == [204, 204]
        assert names.asked == ["rebound.test"]
    async with Sender(LOCAL, 4, names) as sender:
        assert "not public" in await refusal(sender, url)
    assert [hook.headers["host"] for hook in receiver.hooks] == [named(receiver, "rebound.test")[7:]] * 2


async def test_the_next_address_is_taken_where_the_first_refuses(receiver: Receiver) -> None:
    async with Sender(LOCAL, 4, Names("127.0.0.2 127.0.0.1")) as sender:
        assert (await sender.post(named(receiver, "two.test") + "/ok", HEADERS, b"{}")).status == 204


async def test_names_that_do_not_exist_are_said_so() -> None:
    async with Sender(LOCAL, 4) as sender:
        assert "does not resolve" in await refusal(sender, "http://nowhere.invalid/")
        assert "does not resolve" in await refusal(sender, f"http://{'a' * 70}.test/")


async def test_what_goes_wrong_is_said_in_a_sentence(receiver: Receiver) -> None:
    async with Sender(LOCAL, 4) as sender:
        started = time.monotonic()
        assert await refusal(sender, receiver.url + "/hang", 0.5) == "127.0.0.1 did not answer within 0.5 s."
        assert time.monotonic() - started < 3
        assert await refusal(sender, receiver.url.replace("http:", "https:") + "/ok") == "TLS with 127.0.0.1 failed."
        async with answering(b"SSH-2.0-x\r\n") as url:
            assert await refusal(sender, url) == "127.0.0.1 did not answer in HTTP."
        async with answering(b"") as url:
            assert "without an answer" in await refusal(sender, url) or "in HTTP" in await refusal(sender, url)
        assert await refusal(sender, url) == "127.0.0.1 takes no connection."


async def test_tls_is_checked_against_the_name_although_an_address_is_connected_to() -> None:
    authority = trustme.CA()
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("hooks.test").configure_cert(tls)
    trusting = ssl.create_default_context()
    authority.configure_trust(trusting)
    seen: list[str | None] = []
    tls.sni_callback = lambda _socket, name, _context: seen.append(name)
    async with receiving(tls) as receiver, Sender(LOCAL, 4, Names("127.0.0.1"), trusting) as sender:
        assert (await sender.post(named(receiver, "hooks.test") + "/ok", HEADERS, b"{}")).status == 204
        assert "certificate of other.test does not hold" in await refusal(sender, named(receiver, "other.test") + "/ok")
        assert seen == ["hooks.test", "other.test"]
        async with Sender(LOCAL, 4, Names("127.0.0.1")) as strange:
            said = await refusal(strange, named(receiver, "hooks.test") + "/ok")
            assert "certificate of hooks.test does not hold" in said
    assert len(receiver.hooks) == 1


@asynccontextmanager
async def answering(said: bytes) -> Any:
    """A server that says this and closes."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(said)
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/"
    finally:
        server.close()
        await server.wait_closed()
