"""What comes before a body has its bounds, and who leaves in the middle of one is no fault."""

import asyncio
from collections.abc import Callable

import pytest

from app.api import application
from app.api.application import MAX_HEAD_BYTES
from app.config import Settings
from tests.service import Service, running_api

START = b"GET /health/live HTTP/1.1\r\nHost: localhost\r\n"


async def connect(service: Service) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    return await asyncio.open_connection(service.client.base_url.host, service.client.base_url.port)


async def answers(service: Service, *parts: bytes) -> bytes:
    """All that is answered until the connection ends."""
    reader, writer = await connect(service)
    try:
        for part in parts:
            writer.write(part)
            await asyncio.sleep(0.02)
        return await asyncio.wait_for(reader.read(), 30)
    except ConnectionError:
        return b""
    finally:
        writer.close()


@pytest.mark.parametrize("part", [b"a" * 1024, b"a: 1\r\n" * 128], ids=["one", "many"])
async def test_a_head_that_goes_on_is_refused_before_its_end(api: Service, part: bytes) -> None:
    whole = part * (MAX_HEAD_BYTES // len(part) + 1)
    chunks = [whole[place : place + 8192] for place in range(0, len(whole), 8192)]
    answer = await answers(api, START + b"X: ", *chunks)
    assert answer.startswith(b"HTTP/1.1 431 Request Header Fields Too Large\r\n")


async def test_a_head_of_common_length_and_one_behind_a_long_body_are_not(api: Service) -> None:
    body = b'{"content": "' + b"x" * 3 * MAX_HEAD_BYTES + b'"}'
    post = (
        b"POST /contexts/ HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
    )
    last = START + b"X: " + b"a" * 30_000 + b"\r\nConnection: close\r\n\r\n"
    answer = await answers(api, post % len(body) + body + START, b"X: 1\r\n\r\n", last)
    assert [answer.count(b"HTTP/1.1 %d " % status) for status in (201, 200, 431)] == [1, 2, 0]


async def test_a_head_that_does_not_come_ends_the_connection(
    make_settings: Callable[..., Settings], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(application, "HEAD_SECONDS", 0.3)
    async with running_api(make_settings()) as service:
        for parts in ((), (START,), (START + b"\r\n", START)):
            assert b"HTTP/1.1 408 " in await answers(service, *parts)
        # A body may take longer, and so may an answer.
        post = (
            b"POST /contexts/ HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 15\r\n"
        )
        reader, writer = await connect(service)
        writer.write(post + b"\r\n")
        await asyncio.sleep(0.7)
        writer.write(b'{"content":"x"}')
        assert b" 201 " in await asyncio.wait_for(reader.readline(), 30)
        writer.close()


@pytest.mark.parametrize("path", ["/v1/files", "/console/batches/check", "/contexts/"])
async def test_who_leaves_while_a_body_is_read_leaves_no_trace(
    api: Service, caplog: pytest.LogCaptureFixture, path: str
) -> None:
    kind = b"application/json" if path == "/contexts/" else b"multipart/form-data; boundary=x"
    part = (
        b'{"content": "'
        if path == "/contexts/"
        else b'--x\r\nContent-Disposition: form-data; name="file"; filename="a"'
    )
    head = b"POST %s HTTP/1.1\r\nHost: localhost\r\nContent-Type: %s\r\nContent-Length: 5000\r\n\r\n"
    _, writer = await connect(api)
    writer.write(head % (path.encode(), kind) + part)
    await writer.drain()
    await asyncio.sleep(0.3)
    writer.transport.abort()
    for _ in range(20):
        await asyncio.sleep(0.02)
        assert (await api.client.get("/health/live")).status_code == 200
    assert "ASGI" not in caplog.text
