"""Files of a hub on a rented machine: it downloads, verifies and repairs them itself."""

import hashlib
import json
import random
import shutil
from pathlib import Path

import pytest

from nvidia_triton.vast import remote
from nvidia_triton.vast.deploy import deploy
from nvidia_triton.vast.errors import TargetError
from tests.hub import server
from tests.hub.server import COMMIT, Asked
from tests.vast.fake import FakeVast
from tests.vast.kit import until
from tests.vast.rented import Rented, rent
from tests.vast.test_deploy import OTHER_IMAGE, ready

REPOSITORY = "owner/weights"
BIG, SMALL = "model.safetensors", "config.json"
FILES = {BIG: random.Random(1).randbytes(3_000_000), SMALL: b'{"hidden_size": 8}'}
CUT = 1_000_000
# Of the machine's own loopback.
PORT = 8900
TOKEN = "hf_" + "a" * 34


class HubThere:
    """A hub on the loopback of the rented machine, which has a network of its own."""

    def __init__(self, rented: Rented, folder: Path) -> None:
        self.log = folder / "requests"
        folder.mkdir()
        program = folder / "server.py"
        shutil.copy(server.__file__, program)
        for path, content in FILES.items():
            target = folder / "served" / REPOSITORY / path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(content)
        arguments = f"{PORT} {folder / 'served'} {self.log} {BIG}={CUT}"
        rented.ssh(f"setsid nohup python3 {program} {arguments} >/dev/null 2>&1 </dev/null &")
        until(self.log.exists, "the hub is up", 30)

    def requests(self) -> list[Asked]:
        """Those since the last call."""
        lines = self.log.read_text().splitlines()
        self.log.write_text("")
        return [Asked(*json.loads(line)) for line in lines]


@pytest.fixture
def rented(vast: FakeVast, vast_env: dict[str, str], tmp_path: Path) -> Rented:
    environment = vast_env | {"HF_ENDPOINT": f"http://127.0.0.1:{PORT}", "HF_TOKEN": TOKEN}
    made = rent(vast, environment, tmp_path / "checkout", image=OTHER_IMAGE)
    remote.run_tritonserver(made.context, made.instance)
    made.said()
    return made


@pytest.fixture
def hub(rented: Rented, tmp_path: Path) -> HubThere:
    return HubThere(rented, tmp_path / "hub")


def add_model(rented: Rented, revision: str = COMMIT, **more: int) -> Path:
    model = rented.add_model("m")
    settings = json.loads((model / "1/model.json").read_text()) | {"model": "/opt/models/m/1/weights"}
    (model / "1/model.json").write_text(json.dumps(settings))
    files = [
        {"path": path, "size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        for path, content in FILES.items()
    ]
    files += [{"path": path, "size": size, "sha256": "0" * 64} for path, size in more.items()]
    text = json.dumps({"repository": REPOSITORY, "revision": revision, "files": files})
    (model / "source.json").write_text(text)
    return model


def weights(rented: Rented) -> dict[str, bytes]:
    folder = rented.opt / "models/m/1/weights"
    return {path.name: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_downloaded_there_resumed_verified_and_repaired(rented: Rented, hub: HubThere) -> None:
    model = add_model(rented)
    # What this machine has of them is not sent: the other one downloads its own.
    (model / "1/weights").mkdir()
    (model / "1/weights/here.bin").write_bytes(b"here")
    deploy(rented.context, rented.instance, ["m"])
    assert ready(rented) == {"m"}
    assert weights(rented) == FILES
    said = rented.said()
    assert f"m: 2 files downloaded ({BIG}, {SMALL}); all files verified" in said
    asked = hub.requests()
    assert [each.sent for each in asked if each.path.endswith(BIG) and each.sent] == [CUT, len(FILES[BIG]) - CUT]
    assert {each.authorization for each in asked if "/resolve/" in each.path} == {f"Bearer {TOKEN}"}
    assert TOKEN not in said

    deploy(rented.context, rented.instance, ["m"])
    said = rented.said()
    assert "m: none downloaded; all files verified" in said
    assert "m: unchanged and ready" in said
    assert hub.requests() == []

    served = rented.opt / "models/m/1/weights" / BIG
    damaged = bytearray(FILES[BIG])
    damaged[CUT + 5] ^= 1
    served.write_bytes(damaged)
    deploy(rented.context, rented.instance, ["m"])
    said = rented.said()
    assert f"m: 1 file downloaded ({BIG}); all files verified" in said
    assert "m: ready after" in said
    assert weights(rented) == FILES
    assert {each.path.rpartition("/")[2]: each.sent for each in hub.requests() if each.sent} == {BIG: len(FILES[BIG])}


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (
            {"revision": "f" * 40},
            rf"On vast-\d+: {REPOSITORY} on 127\.0\.0\.1:{PORT} has no revision f+: correct it in",
        ),
        ({"huge.bin": 10**16}, r"On vast-\d+: The files take 10,000,000\.0 GB more, and .* Nothing was downloaded\."),
    ],
)
def test_what_cannot_be_had_changes_nothing(
    rented: Rented, hub: HubThere, options: dict[str, object], sentence: str
) -> None:
    add_model(rented, **options)  # type: ignore[arg-type]
    with pytest.raises(TargetError, match=sentence) as refused:
        deploy(rented.context, rented.instance, ["m"])
    assert TOKEN not in str(refused.value)
    assert ready(rented) == set()
    assert not (rented.opt / "models/m").exists()
    assert [each for each in hub.requests() if each.sent > len(FILES[SMALL])] == []
