"""Where uploads wait until they are whole, and what happens when there is no room for them."""

import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from app.api.spool import Spool
from app.config import Settings, SettingsError, load_settings
from app.errors import SpoolFull
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


def test_uploads_under_way_leave_each_other_room(make_settings: Callable[..., Settings]) -> None:
    spool = Spool(make_settings(max_file_bytes=MIB, spool_bytes=2 * MIB))
    with spool.reserved(MIB // 2):
        # An undeclared length has room for the largest file.
        with spool.reserved(None), spool.reserved(MIB // 2):
            with pytest.raises(SpoolFull) as full, spool.reserved(1):
                pass
            assert full.value.headers == {"Retry-After": "5"}
        # More than a file may have is refused as it comes, and needs no more room than one.
        with spool.reserved(100 * MIB):
            pass
    with spool.reserved(None), spool.reserved(None):
        pass


def test_room_for_less_than_one_file_is_refused_at_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPOOL_BYTES", "1048576")
    with pytest.raises(SettingsError, match="SPOOL_BYTES is less than MAX_FILE_BYTES"):
        load_settings()
