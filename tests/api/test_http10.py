"""Clients that speak HTTP/1.0, byte for byte."""

import asyncio
import json
import os
import re
import subprocess
import sys
import urllib.request
from collections.abc import Callable
from pathlib import Path

from app.config import Settings
from tests.service import ROOT, Service, eventually


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


async def test_uvicorn_alone_does_it_too(make_settings: Callable[..., Settings], tmp_path: Path) -> None:
    """`uvicorn app.main:app`, without the settings of `python -m app.main`."""
    settings = make_settings()
    log = tmp_path / "log"
    with log.open("wb") as output:
        process = subprocess.Popen(  # noqa: ASYNC220
            [sys.executable, "-m", "uvicorn", "app.main:app", "--port", "0"],
            cwd=ROOT,
            env={**os.environ, "DATABASE_URL": settings.database_url, "TRITON_URLS": ",".join(settings.triton_urls)},
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:

        async def address() -> re.Match[str] | None:
            assert process.poll() is None, log.read_text()
            return re.search(r"running on http://([\d.]+):(\d+)", log.read_text())

        host, port = (await eventually(address, "uvicorn listens")).groups()

        def sent() -> str:
            request = urllib.request.Request(
                f"http://{host}:{port}/contexts/", b'{"content": "x"}', {"Content-Type": "application/json"}
            )
            with urllib.request.urlopen(request, timeout=30) as answer:
                context = json.load(answer)["id"]
            request = urllib.request.Request(f"http://{host}:{port}/models/send/tiny/{context}", method="POST")
            with urllib.request.urlopen(request, timeout=30) as answer:
                return str(json.load(answer)["result_id"])

        id_ = await asyncio.to_thread(sent)
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(f"GET /results/{id_}/stream HTTP/1.0\r\nHost: {host}\r\n\r\n".encode())
        head = (await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 60)).decode().lower()
        assert head.startswith("http/1.1 200")
        assert "transfer-encoding" not in head
        assert (await asyncio.wait_for(reader.readline(), 60)).startswith(b"retry: ")
        writer.close()
    finally:
        process.kill()
        process.wait()
