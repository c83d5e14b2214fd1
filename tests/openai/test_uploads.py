"""Where uploads wait until they are whole, and what happens when there is no room for them."""

import asyncio
import subprocess
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import httpx
import pytest

from app.config import Settings, SettingsError, load_settings
from tests.service import Service, running_api

MIB = 1024 * 1024


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A folder with room for 64 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    try:
        mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "uploads", folder], capture_output=True)
    except OSError:
        pytest.skip("there is no mount")
    if mounted.returncode:
        pytest.skip("only root may mount")
    yield folder
    subprocess.run(["umount", folder], check=True)


async def upload(service: Service, size: int, name: str = "a.jsonl") -> httpx.Response:
    return await service.client.post(
        "/v1/files", data={"purpose": "batch"}, files={"file": (name, b"x" * size)}, timeout=120
    )


async def test_a_file_waits_in_the_folder_that_is_named_and_a_full_one_is_said(
    make_settings: Callable[..., Settings],
    small_disk: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    size = 72 * MIB
    monkeypatch.setattr(tempfile, "tempdir", str(small_disk))
    async with running_api(make_settings()) as service:
        assert "let TMPDIR name a larger folder" in capfd.readouterr().err
        refused = await upload(service, size)
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "spool_full")
        assert refused.headers["retry-after"] == "5"
        assert str(small_disk) not in refused.text
        # Nothing of it is left, there or in the list.
        assert (await upload(service, 40 * MIB)).status_code == 200
        assert [file["bytes"] for file in (await service.client.get("/v1/files")).json()["data"]] == [40 * MIB]
        monkeypatch.undo()
        stored = await upload(service, size)
        assert (stored.status_code, stored.json()["bytes"]) == (200, size)


async def test_uploads_under_way_leave_each_other_room(make_settings: Callable[..., Settings]) -> None:
    settings = make_settings(max_file_bytes=MIB, spool_bytes=MIB)
    async with running_api(settings) as service:
        go_on = asyncio.Event()

        async def slow() -> AsyncIterator[bytes]:
            yield b'--b\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nbatch\r\n'
            yield b'--b\r\nContent-Disposition: form-data; name="file"; filename="slow"\r\n\r\n' + b"x" * 1000
            await go_on.wait()
            yield b"x\r\n--b--\r\n"

        # Their length is not declared, so each has room for the largest: one of them waits for its end.
        headers = {"Content-Type": "multipart/form-data; boundary=b"}
        uploads = [
            asyncio.create_task(service.client.post("/v1/files", content=slow(), headers=headers)) for _ in range(2)
        ]
        (refused,), (stored,) = await asyncio.wait(uploads, return_when=asyncio.FIRST_COMPLETED)
        answer = await refused
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "spool_full")
        assert (await upload(service, 1000)).status_code == 503
        go_on.set()
        assert (await stored).json()["bytes"] == 1001
        assert (await upload(service, 1000)).status_code == 200


def test_room_for_less_than_one_file_is_refused_at_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPOOL_BYTES", "1048576")
    with pytest.raises(SettingsError, match="SPOOL_BYTES is less than MAX_FILE_BYTES"):
        load_settings()
