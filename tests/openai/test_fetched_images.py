"""Images at addresses, fetched before a chat is stored: from public ones alone, of a known kind, and not too large."""

from __future__ import annotations

import asyncio
import base64
import ssl
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from ipaddress import ip_address
from typing import Any

import pytest
import trustme

from app.config import Settings
from app.errors import InvalidRequest
from app.openai.pictures import with_fetched
from app.services.addresses import Address, AddressPolicy
from app.services.image_fetching import MOST_IMAGES, ImageFetcher, NotFetched
from app.services.outbound import Sender
from tests.service import running_api

PNG = b"\x89PNG\r\n\x1a\n" + bytes(92)
MOST_BYTES = 1000
ANSWERS = {
    "/picture": (200, b"", PNG),
    "/webp": (200, b"", b"RIFF\0\0\0\0WEBPVP8 "),
    "/moved": (302, b"location: /picture\r\n", b""),
    "/round": (302, b"location: /round\r\n", b""),
    "/down": (302, b"location: http://images.test/picture\r\n", b""),
    "/inside": (302, b"location: https://inside.test/picture\r\n", b""),
    "/gone": (404, b"", PNG),
    "/page": (200, b"", b"<html>"),
    "/large": (200, b"", PNG * 20),
    "/half": (200, b"", PNG * 6),
}


class Server:
    """Answers over TLS, as images.test and inside.test."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.port = 0
        self._authority = trustme.CA()

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        path = head.split()[1].decode()
        self.asked.append(path)
        status, headers, body = ANSWERS[path]
        writer.write(
            b"HTTP/1.1 %d x\r\nconnection: close\r\ncontent-length: %d\r\n%s\r\n%s" % (status, len(body), headers, body)
        )
        writer.close()

    async def resolve(self, host: str, port: int) -> Sequence[Address]:
        """inside.test stands for this host, whatever is allowed."""
        return [ip_address("169.254.169.254" if host == "inside.test" else "127.0.0.1")]

    def url(self, path: str) -> str:
        return f"https://images.test:{self.port}{path}"

    @asynccontextmanager
    async def running(self) -> AsyncIterator[ImageFetcher]:
        served, trusting = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.create_default_context()
        self._authority.issue_cert("images.test").configure_cert(served)
        self._authority.configure_trust(trusting)
        server = await asyncio.start_server(self.answer, "127.0.0.1", 0, ssl=served)
        self.port = server.sockets[0].getsockname()[1]
        async with server, Sender(AddressPolicy(private=True), 4, self.resolve, trusting) as sender:
            yield ImageFetcher(sender, MOST_BYTES)


async def test_they_become_data_urls_in_their_places_and_redirects_are_followed() -> None:
    server = Server()
    async with server.running() as images:
        sent = "data:image/gif;base64,R0lGODlh"
        given = [
            {"url": server.url("/moved"), "detail": "low"},
            {"url": sent},
            server.url("/webp").replace("https", "HTTPS"),
        ]
        parts = [{"type": "image_url", "image_url": each} for each in given]
        messages = [{"role": "system", "content": "Look."}, {"role": "user", "content": parts}]
        system, user = await with_fetched(images, messages)
    assert system == messages[0]
    first, second, third = (part["image_url"] for part in user["content"])
    assert first == {"url": "data:image/png;base64," + base64.b64encode(PNG).decode(), "detail": "low"}
    assert second == {"url": sent}
    assert third["url"].startswith("data:image/webp;base64,")
    assert parts[0]["image_url"] == given[0], "what was given stays as it was"
    assert server.asked == ["/moved", "/picture", "/webp"]


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("/gone", "the server answered 404"),
        ("/round", "the server answered 302"),
        ("/down", "not https://"),
        ("/inside", "not public"),
        ("/page", "holds no PNG"),
        ("/large", "sent more than 1,000 bytes"),
    ],
)
async def test_what_cannot_be_had_is_refused_by_its_place(path: str, said: str) -> None:
    server = Server()
    async with server.running() as images:
        parts = [{"type": "text", "text": "?"}, {"type": "image_url", "image_url": {"url": server.url(path)}}]
        with pytest.raises(InvalidRequest) as refused:
            await with_fetched(images, [{"role": "user", "content": parts}])
    assert refused.value.errors[0]["field"] == "messages[0].content[1].image_url"
    assert said in refused.value.detail


async def test_together_they_are_no_larger_than_one_may_be_and_not_too_many() -> None:
    server = Server()
    async with server.running() as images:
        with pytest.raises(NotFetched) as refused:
            await images.fetch([server.url("/half"), server.url("/half")])
        assert refused.value.place == 1
        server.asked.clear()
        with pytest.raises(NotFetched, match="no more than 16"):
            await images.fetch([server.url("/picture")] * (MOST_IMAGES + 1))
        assert not server.asked


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "[::1]", "169.254.169.254", "10.0.0.1", "2130706433"])
async def test_the_service_itself_goes_to_public_addresses_alone(
    make_settings: Callable[..., Settings], host: str
) -> None:
    """Whatever webhooks may do."""
    server = Server()
    settings = make_settings(fetch_images=True, webhook_allow_private=True)
    async with server.running(), running_api(settings) as service:
        part: dict[str, Any] = {"type": "image_url", "image_url": {"url": f"https://{host}:{server.port}/picture"}}
        body = {"model": "tiny", "messages": [{"role": "user", "content": [part]}]}
        answer = await service.client.post("/v1/chat/completions", json=body)
        stored = (await service.client.get("/results/")).json()
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert error["param"] == "messages[0].content[0].image_url", error
    assert "not public" in error["message"]
    assert not server.asked
    assert not stored
