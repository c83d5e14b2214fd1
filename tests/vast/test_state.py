"""A disk that is full or cannot be written: nothing is rented there, and what is rented still ends."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from nvidia_triton.vast import instances
from nvidia_triton.vast.context import Context
from nvidia_triton.vast.errors import TargetError
from nvidia_triton.vast.settings import load_settings
from nvidia_triton.vast.state import StateFailed
from nvidia_triton.vast.vast import VastClient
from nvidia_triton.vast.wiring import open_context
from tests.vast.fake import FakeVast
from tests.vast.fake.prerequisites import tool
from tests.vast.targets import ROOT, command, make

OFFER = 9101002


@pytest.fixture
def disk(vast: FakeVast, vast_env: dict[str, str]) -> Iterator[Path]:
    """LOCAL_DIR is a small disk of its own."""
    local = Path(vast_env["LOCAL_DIR"])
    local.mkdir()
    subprocess.run([tool("mount"), "-t", "tmpfs", "-o", "size=64k", "local", local], check=True)
    yield local
    subprocess.run(["umount", local], check=True)


@pytest.fixture
def context(disk: Path, vast_env: dict[str, str]) -> Context:
    return open_context(vast_env)


def fill(disk: Path) -> None:
    subprocess.run(["dd", "if=/dev/zero", f"of={disk / 'ballast'}", "bs=512"], stderr=subprocess.DEVNULL, check=False)


def seal(disk: Path) -> None:
    subprocess.run([tool("mount"), "-o", "remount,ro", disk], check=True)


@pytest.mark.parametrize("spoil", [fill, seal])
def test_what_is_rented_ends_without_a_disk(
    vast: FakeVast, vast_env: dict[str, str], disk: Path, context: Context, spoil: object
) -> None:
    assert callable(spoil)
    for target in ("gpu-down", "destroy-instance"):
        instances.create(context, VastClient(context.settings), OFFER)
        spoil(disk)
        ended = make(vast_env, target)
        assert vast.instances() == [], ended.stdout + ended.stderr
        assert "destroyed: about $0.0" in ended.stdout
        assert "Traceback" not in ended.stderr
        subprocess.run([tool("mount"), "-o", "remount,rw", disk], check=True)
        (disk / "ballast").unlink(missing_ok=True)


def test_an_intent_without_its_record_in_full_is_ended_too(
    vast: FakeVast, vast_env: dict[str, str], disk: Path, context: Context
) -> None:
    label = instances.PREFIX + "0badcafe"
    context.state.write("intent-0badcafe", {"label": label, "at": 0})
    vast.rent(label=label)
    fill(disk)
    down = make(vast_env, "gpu-down")
    assert vast.instances() == [], down.stdout + down.stderr
    assert "No space left on device" in down.stdout


@pytest.mark.parametrize("spoil", [fill, seal])
def test_nothing_is_rented_that_cannot_be_recorded(
    vast: FakeVast, vast_env: dict[str, str], disk: Path, context: Context, spoil: object
) -> None:
    assert callable(spoil)
    spoil(disk)
    with pytest.raises(StateFailed):
        instances.create(context, VastClient(context.settings), OFFER)
    up = make(vast_env, "create-instance", INSTANCE_ID=OFFER)
    assert up.returncode != 0
    assert "cannot be kept in" in up.stderr
    assert "LOCAL_DIR" in up.stderr
    assert "Traceback" not in up.stderr
    assert vast.calls("PUT", "/asks/") == []


def test_the_disk_fills_up_between_the_order_and_its_record(
    vast: FakeVast, disk: Path, context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = VastClient(context.settings)
    order = client.create

    def then_full(*arguments: object, **options: object) -> int:
        contract = order(*arguments, **options)  # type: ignore[arg-type]
        fill(disk)
        return contract

    monkeypatch.setattr(client, "create", then_full)
    with pytest.raises(TargetError) as raised:
        instances.create(context, client, OFFER)
    ident = vast.instances()[0]["id"]
    assert f"Instance {ident} is rented and costs money" in str(raised.value)
    assert f"`make destroy-instance CONTRACT_ID={ident}`" in str(raised.value)


def test_a_reader_that_goes_away_learns_what_costs(vast: FakeVast, vast_env: dict[str, str]) -> None:
    vast.boot_seconds = 60
    with subprocess.Popen(
        command("create-instance", INSTANCE_ID=OFFER),
        cwd=ROOT,
        env=vast_env | {"PYTHONUNBUFFERED": "1"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert "CONTRACT_ID" in process.stdout.readline()
        process.stdout.close()
        said = process.stderr.read()
    ident = vast.instances()[0]["id"]
    assert f"`make destroy-instance CONTRACT_ID={ident}` ends it" in said
    assert "Traceback" not in said


@pytest.mark.parametrize(
    ("environment", "text"),
    [
        ({"VAST_API_KEY": "line\nbreak"}, "copy it anew"),
        ({"VAST_API_KEY": "schlüssel"}, "copy it anew"),
        ({"VAST_POLL_SECONDS": "-1"}, "VAST_POLL_SECONDS"),
        ({"VAST_POLL_SECONDS": "nan"}, "VAST_POLL_SECONDS"),
        ({"VAST_URL": "console.vast.ai"}, "is not a URL"),
        ({"VAST_URL": "https://[::1"}, "is not a URL"),
        ({"VAST_URL": "http://vast.example"}, "unencrypted to vast.example: use https"),
    ],
)
def test_settings_that_cannot_be(tmp_path: Path, environment: dict[str, str], text: str) -> None:
    with pytest.raises(TargetError, match=text) as raised:
        load_settings(environment, tmp_path)
    assert "schlüssel" not in str(raised.value)


def test_a_settings_file_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / ".env.vast").write_bytes(b"VAST_API_KEY=\xff\xfe\n")
    with pytest.raises(TargetError, match=r"\.env\.vast cannot be read: it is not UTF-8"):
        load_settings({}, tmp_path)
