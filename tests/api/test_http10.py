"""Clients that speak HTTP/1.0, byte for byte."""

import asyncio
import json

from tests.service import Service


async def ask(service: Service, target: str, *, method: str = "GET") -> tuple[dict[str, str], bytes]:
    """The headers and all bytes until the connection ends."""
    reader, writer = await asyncio.open_connection(service.client.base_url.host, service.client.base_url.port)
    writer.write(f"{method} {target} HTTP/1.0\r\nHost: localhost\r\n\r\n".encode())
    head, _, body = (await asyncio.wait_for(reader.read(), 60)).partition(b"\r\n\r\n")
    writer.close()
    lines = head.decode().split("\r\n")
    assert lines[0].split()[1] == "200", lines[0]
    return {name.lower(): value for name, _, value in (line.partition(": ") for line in lines[1:])}, body


async def test_a_stream_ends_with_the_connection_and_has_no_chunk_sizes(service: Service) -> None:
    id_ = await service.send(prompt="[[sim:slow=5]]", parameters={"max_tokens": 30, "ignore_eos": True})
    headers, body = await ask(service, f"/results/{id_}/stream")
    assert "transfer-encoding" not in headers
    assert headers["connection"] == "close"
    lines = body.decode().splitlines()
    allowed = ("retry: ", "id: ", "event: ", "data: ", ": ")
    assert [line for line in lines if line and not line.startswith(allowed)] == []
    last = json.loads(lines[-2].removeprefix("data: "))
    assert (last["id"], last["status"]) == (id_, "completed")


async def test_an_answer_of_known_length_is_the_same(service: Service) -> None:
    headers, body = await ask(service, "/health/live")
    assert (headers["content-length"], json.loads(body)) == (str(len(body)), {"status": "live"})
    headers, body = await ask(service, "/health/live", method="HEAD")
    assert (headers["content-length"], body) == ("17", b"")
