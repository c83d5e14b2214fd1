"""How many bytes of bodies an API holds at once, and that small ones go on when large ones fill it."""

import asyncio
import gzip
import json
from collections.abc import AsyncIterator, Callable
from contextlib import suppress

import httpx
import pytest
import pytest_asyncio

from app.config import Settings, SettingsError, load_settings
from tests.service import Service, eventually, running_api

MIB = 1024 * 1024
# Above what counts as small, in bytes.
LARGE = 300_000
JSON = {"Content-Type": "application/json"}


def body_of(size: int) -> bytes:
    content = json.dumps({"content": ""}).encode()
    return content[:-2] + b"x" * (size - len(content)) + b'"}'


class Slow:
    """A request on a socket of its own that has sent a part of its body."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, rest: bytes) -> None:
        self._reader, self._writer, self._rest = reader, writer, rest

    @classmethod
    async def begin(cls, service: Service, size: int, framing: str) -> "Slow":
        url = service.client.base_url
        reader, writer = await asyncio.open_connection(url.host, url.port)
        body = body_of(size)
        part = body[: size - 10]
        writer.write(f"POST /contexts/ HTTP/1.1\r\nHost: {url.host}\r\nContent-Type: application/json\r\n".encode())
        if framing == "declared":
            writer.write(b"Content-Length: %d\r\n\r\n" % size + part[:10])
            return cls(reader, writer, body[10:])
        writer.write(b"Transfer-Encoding: chunked\r\n\r\n%x\r\n%b\r\n" % (len(part), part))
        return cls(reader, writer, b"a\r\n%b\r\n0\r\n\r\n" % body[-10:])

    async def finish(self) -> bytes:
        """Sends the rest; returns the line with the status."""
        self._writer.write(self._rest)
        status = await self._reader.readline()
        await self.leave()
        return status

    async def answer(self) -> bytes:
        """All that comes until the server ends the connection."""
        return await self._reader.read()

    async def leave(self) -> None:
        self._writer.close()
        with suppress(ConnectionError):
            await self._writer.wait_closed()


@pytest_asyncio.fixture
async def narrow(make_settings: Callable[..., Settings]) -> AsyncIterator[Service]:
    """An API with room for two bodies of the largest size."""
    room = {"max_body_bytes": MIB, "max_bodies_bytes": 2 * MIB, "max_content_chars": MIB}
    async with running_api(make_settings(**room, body_seconds=300)) as api:
        yield api


async def post(api: Service, content: bytes | AsyncIterator[bytes], path: str = "/contexts/") -> httpx.Response:
    return await api.client.post(path, content=content, headers=JSON)


async def chunked(body: bytes) -> AsyncIterator[bytes]:
    for start in range(0, len(body), 50_000):
        yield body[start : start + 50_000]


@pytest.mark.parametrize("framing", ["declared", "chunked"])
async def test_large_bodies_wait_for_room_and_small_ones_go_on(narrow: Service, framing: str) -> None:
    held = [await Slow.begin(narrow, MIB, framing) for _ in range(2)]

    async def refused() -> httpx.Response | None:
        answer = await post(narrow, body_of(LARGE))
        return answer if answer.status_code != 201 else None

    answer = await eventually(refused, "two bodies fill the room")
    assert (answer.status_code, answer.json()["code"], answer.headers["retry-after"]) == (503, "bodies_full", "2")
    assert (await post(narrow, chunked(body_of(LARGE)))).json()["code"] == "bodies_full"
    openai = await post(narrow, b'{"model": "tiny", "prompt": "%b"}' % (b"x" * LARGE), "/v1/completions")
    assert (openai.status_code, openai.json()["error"]["code"]) == (503, "bodies_full")

    for small in (body_of(60_000), chunked(body_of(60_000))):
        assert (await post(narrow, small)).status_code == 201
    packed = gzip.compress(body_of(60_000))
    answer = await narrow.client.post("/contexts/", content=packed, headers=JSON | {"Content-Encoding": "gzip"})
    assert answer.status_code == 201
    assert (await narrow.client.get("/health/live")).status_code == 200

    # One that is complete is answered and leaves its room; so does one whose client goes away.
    assert b"201" in await held[0].finish()
    assert (await post(narrow, body_of(MIB))).status_code == 201
    await held[1].leave()

    async def all_free() -> bool:
        again = [await Slow.begin(narrow, MIB, framing) for _ in range(2)]
        return all([b"201" in await each.finish() for each in again])

    await eventually(all_free, "the room is free again")


async def test_what_small_bodies_hold_has_a_bound_too(narrow: Service) -> None:
    """Two of 1 MiB, and two of 64 KiB in the sixteenth that small ones have."""
    held = [await Slow.begin(narrow, size, "declared") for size in (MIB, MIB, 65_536, 65_536)]

    async def refused() -> bool:
        answer = await post(narrow, body_of(1000))
        return answer.status_code == 503 and answer.json()["code"] == "bodies_full"

    await eventually(refused, "small ones fill their share")
    assert [b"201" in await each.finish() for each in held] == [True] * 4
    assert (await post(narrow, body_of(1000))).status_code == 201


@pytest.mark.parametrize("framing", ["declared", "chunked"])
async def test_a_body_that_does_not_come_leaves_its_room(make_settings: Callable[..., Settings], framing: str) -> None:
    narrow = make_settings(max_body_bytes=MIB, max_bodies_bytes=MIB, max_content_chars=MIB, body_seconds=0.5)
    async with running_api(narrow) as api:
        held = await Slow.begin(api, MIB, framing)
        require_too_slow(await held.answer())
        await held.leave()

        async def free() -> bool:
            return (await post(api, body_of(MIB))).status_code == 201

        await eventually(free, "the room is free again")


async def test_an_upload_that_trickles_in_is_too_slow(make_settings: Callable[..., Settings]) -> None:
    async with running_api(make_settings(body_seconds=0.5)) as api:
        host, port = api.client.base_url.host, api.client.base_url.port
        reader, writer = await asyncio.open_connection(host, port)
        writer.write(f"POST /v1/files HTTP/1.1\r\nHost: {host}\r\nContent-Length: 9999\r\n".encode())
        writer.write(b"Content-Type: multipart/form-data; boundary=b\r\n\r\n--b\r\n")
        writer.write(b'Content-Disposition: form-data; name="file"; filename="a"\r\n\r\n')

        async def trickle() -> None:
            while True:
                writer.write(b"-")
                await asyncio.sleep(0.1)

        sending = asyncio.create_task(trickle())
        require_too_slow(await asyncio.wait_for(reader.read(), 60))
        sending.cancel()
        writer.close()


def require_too_slow(answer: bytes) -> None:
    assert b" 408 " in answer.partition(b"\r\n")[0]
    assert b'"body_too_slow"' in answer
    assert b"connection: close" in answer.lower()


def test_room_for_less_than_one_body_is_refused_at_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MAX_BODIES_BYTES", "1048576")
    with pytest.raises(SettingsError, match="MAX_BODIES_BYTES is less than MAX_BODY_BYTES"):
        load_settings()
