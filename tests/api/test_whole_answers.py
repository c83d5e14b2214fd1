"""What is sent in one write is byte for byte what uvicorn sends, and what is wrong is refused as there."""

import asyncio
import logging
from typing import Any

import pytest
from starlette.types import Message, Send
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

from app.api.application import _at_once


class Connection(asyncio.Transport):
    """Keeps what is written to it."""

    def __init__(self) -> None:
        super().__init__()
        self.writes: list[bytes] = []
        self.closed = False

    def write(self, data: Any) -> None:
        self.writes.append(bytes(data))

    def is_closing(self) -> bool:
        return self.closed

    def close(self) -> None:
        self.closed = True


def cycle_on(connection: Connection, method: str, *, keep_alive: bool) -> RequestResponseCycle:
    return RequestResponseCycle(
        scope={"type": "http", "method": method, "http_version": "1.1"},  # type: ignore[typeddict-item]
        transport=connection,
        flow=FlowControl(connection),
        logger=logging.getLogger("uvicorn.error"),
        access_logger=logging.getLogger("uvicorn.access"),
        access_log=False,
        default_headers=[(b"date", b"Mon, 30 Nov 2026 04:00:00 GMT")],
        message_event=asyncio.Event(),
        expect_100_continue=False,
        keep_alive=keep_alive,
        on_response=lambda: None,
    )


def start(status: int, *headers: tuple[bytes, bytes]) -> Message:
    return {"type": "http.response.start", "status": status, "headers": headers}


def body(text: bytes = b"", *, more: bool = False) -> Message:
    return {"type": "http.response.body", "body": text, "more_body": more}


LENGTH = (b"content-length", b"5")
NAMED = (b"X-Named", b"a b")
WHOLE = [start(202, LENGTH, NAMED), body(b"12345")]


async def sent(send: Send, messages: list[Message]) -> str:
    """What was raised, or nothing."""
    try:
        for message in messages:
            await send(message)
    except RuntimeError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("keep_alive", [True, False], ids=["kept", "closed"])
@pytest.mark.parametrize(
    ("method", "messages"),
    [
        ("POST", WHOLE),
        ("HEAD", [start(200, LENGTH), body()]),
        ("GET", [start(200, (b"content-length", b"0")), body()]),
        ("GET", [start(200, LENGTH), body(b"123", more=True), body(b"45")]),
        ("GET", [start(200, NAMED), body(b"1", more=True), body(b"2")]),
        ("DELETE", [start(204), body()]),
        ("GET", [start(200, LENGTH, (b"connection", b"close")), body(b"12345")]),
        ("GET", [start(200, LENGTH), body(b"1234")]),
        ("GET", [start(200, LENGTH), body(b"123456")]),
        ("GET", [start(200, LENGTH, (b"x", b"a\r\nb: c")), body(b"12345")]),
        ("GET", [start(200, LENGTH, (b"x y", b"a")), body(b"12345")]),
        ("GET", [start(200, LENGTH), start(200, LENGTH)]),
        ("GET", [*WHOLE, body(b"12345")]),
        ("GET", [start(200, (b"content-length", b"100000")), body(b"x" * 100_000)]),
    ],
)
async def test_it_is_what_uvicorn_sends(method: str, messages: list[Message], keep_alive: bool) -> None:
    ours, theirs = Connection(), Connection()
    cycle, alone = (cycle_on(each, method, keep_alive=keep_alive) for each in (ours, theirs))
    refused = await sent(_at_once(cycle), messages)
    assert refused == await sent(alone.send, messages)  # type: ignore[arg-type]
    if not refused:
        assert b"".join(ours.writes) == b"".join(theirs.writes)
    assert ours.closed == theirs.closed
    assert (cycle.response_complete, cycle.message_event.is_set()) == (
        alone.response_complete,
        alone.message_event.is_set(),
    )


async def test_a_whole_answer_is_one_write() -> None:
    connection = Connection()
    cycle = cycle_on(connection, "POST", keep_alive=True)
    assert await sent(_at_once(cycle), WHOLE) == ""
    [written] = connection.writes
    assert written.startswith(b"HTTP/1.1 202 Accepted\r\ndate: ")
    assert written.endswith(b"\r\nx-named: a b\r\n\r\n12345")


async def test_a_head_without_its_body_is_not_sent() -> None:
    connection = Connection()
    cycle = cycle_on(connection, "GET", keep_alive=True)
    assert await sent(_at_once(cycle), [start(200, LENGTH)]) == ""
    # So uvicorn can still say that the application failed.
    assert (connection.writes, cycle.response_started) == ([], False)
