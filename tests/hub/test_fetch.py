"""Files of models, downloaded from a hub on loopback that cuts, damages, refuses and moves."""

import dataclasses
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from nvidia_triton.hub import download, source
from nvidia_triton.hub.download import File, Order, Progress, fetch, prune
from nvidia_triton.hub.transfer import DownloadError
from nvidia_triton.hub.transfer import Hub as Client
from nvidia_triton.local.settings import ROOT
from nvidia_triton.vast.errors import TargetError
from nvidia_triton.vast.repository import validate
from tests.hub.server import COMMIT, Hub

REPOSITORY = "owner/weights"
MB = 1_000_000
BIG, SMALL = "model.safetensors", "config.json"
TOKEN = "hf_" + "a" * 34
FILES = {
    BIG: random.Random(1).randbytes(3 * MB),
    "parts/second.safetensors": random.Random(2).randbytes(MB),
    SMALL: b'{"hidden_size": 8}',
    "empty.txt": b"",
}


@pytest.fixture
def hub() -> Iterator[Hub]:
    with Hub() as running:
        running.repositories[REPOSITORY] = dict(FILES)
        yield running


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "PAUSES", (0.01,))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "weights"


def order(folder: Path, revision: str = COMMIT, **changed: File) -> Order:
    files = {path: File(path, len(content), hashlib.sha256(content).hexdigest()) for path, content in FILES.items()}
    return Order("m", REPOSITORY, revision, folder, tuple((files | changed).values()))


def get(hub: Hub, folder: Path, token: str = "", **changed: File) -> list[str]:
    return fetch([order(folder, **changed)], Client(hub.url, token), lambda _: None)["m"]


def content(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }  # fmt: skip


def test_every_file_is_there_and_a_second_time_nothing_is_sent(hub: Hub, folder: Path) -> None:
    assert sorted(get(hub, folder)) == sorted(FILES)
    assert content(folder) == FILES
    asked = len(hub.requests)
    assert get(hub, folder) == []
    assert len(hub.requests) == asked


def test_a_cut_connection_is_gone_on_with_where_it_broke(hub: Hub, folder: Path) -> None:
    hub.cut[BIG] = [MB, MB // 2, 0, 7]
    get(hub, folder)
    assert content(folder) == FILES
    assert hub.sent(BIG) == len(FILES[BIG])
    ranges = [each.range for each in hub.requests if each.path.endswith(BIG) and "/cdn/" in each.path]
    assert ranges == ["", f"bytes={MB}-", f"bytes={MB * 3 // 2}-", f"bytes={MB * 3 // 2}-", f"bytes={MB * 3 // 2 + 7}-"]


def test_what_arrived_before_it_was_given_up_is_kept(hub: Hub, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "TRIES", 2)
    hub.cut[BIG] = [MB, 0, 0]
    with pytest.raises(DownloadError, match=rf"{BIG} of {REPOSITORY} cannot be downloaded: the connection broke"):
        get(hub, folder)
    hub.cut.clear()
    get(hub, folder)
    assert content(folder) == FILES
    assert hub.sent(BIG) == len(FILES[BIG])


def test_a_flipped_bit_on_the_disk_is_found_and_only_that_file_sent_again(hub: Hub, folder: Path) -> None:
    get(hub, folder)
    damaged = bytearray(FILES[BIG])
    damaged[1234567] ^= 4
    (folder / BIG).write_bytes(damaged)
    hub.requests.clear()
    assert get(hub, folder) == [BIG]
    assert content(folder) == FILES
    assert sum(each.sent for each in hub.requests) == len(FILES[BIG])


def test_a_flipped_bit_on_the_way_is_found_and_only_that_file_sent_again(hub: Hub, folder: Path) -> None:
    hub.flip[BIG] = 1
    get(hub, folder)
    assert content(folder) == FILES
    assert {path: hub.sent(path) for path in FILES} == {
        path: len(each) * (2 if path == BIG else 1) for path, each in FILES.items()
    }


def test_a_file_that_always_arrives_damaged_is_named(hub: Hub, folder: Path) -> None:
    hub.flip[BIG] = 9
    with pytest.raises(DownloadError, match=rf"{BIG} of {REPOSITORY} arrives with the SHA-256 \w+, twice"):
        get(hub, folder)
    assert not (folder / BIG).exists()


def test_a_disk_that_is_too_small_is_refused_before_a_byte(hub: Hub, folder: Path) -> None:
    huge = File("huge.bin", 10**16, "0" * 64)
    with pytest.raises(DownloadError, match=r"take 10,000,000\.0 GB more, and [\d.,]+ [GM]B of the disk are free"):
        get(hub, folder, huge=huge)
    assert hub.requests == []
    assert content(folder) == {}


def test_what_is_there_already_counts_for_the_disk(hub: Hub, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    get(hub, folder)
    (folder / SMALL).unlink()
    free = download.shutil.disk_usage(folder)._replace(free=download.RESERVE + len(FILES[SMALL]))
    monkeypatch.setattr(download.shutil, "disk_usage", lambda _: free)
    assert get(hub, folder) == [SMALL]


@pytest.mark.parametrize(
    ("revision", "sentence"),
    [("f" * 40, rf"{REPOSITORY} on 127\.0\.0\.1:\d+ has no revision f{{40}}: correct it in source.json")],
)
def test_a_wrong_revision_is_a_sentence(hub: Hub, folder: Path, revision: str, sentence: str) -> None:
    with pytest.raises(DownloadError, match=sentence):
        fetch([order(folder, revision)], Client(hub.url), lambda _: None)


def test_another_file_than_the_one_listed_is_refused_before_it_is_sent(hub: Hub, folder: Path) -> None:
    with pytest.raises(DownloadError, match=rf"{BIG} of {REPOSITORY} is another file than the one in source.json"):
        get(hub, folder, **{BIG: File(BIG, len(FILES[BIG]), "0" * 64)})
    assert hub.sent(BIG) == 0


def test_a_file_that_is_not_there_is_named(hub: Hub, folder: Path) -> None:
    with pytest.raises(DownloadError, match=rf"{REPOSITORY} on \S+ has no file gone.txt at {COMMIT}"):
        get(hub, folder, gone=File("gone.txt", 3, "0" * 64))


def test_the_token_goes_to_the_hub_and_nowhere_else(hub: Hub, folder: Path) -> None:
    hub.token = TOKEN
    with pytest.raises(DownloadError, match="or it is private and needs HF_TOKEN"):
        get(hub, folder)
    with pytest.raises(DownloadError, match="or it is private and HF_TOKEN does not open it") as refused:
        get(hub, folder, token="hf_wrong")
    assert "hf_wrong" not in str(refused.value)
    hub.requests.clear()
    get(hub, folder, token=TOKEN)
    assert content(folder) == FILES
    assert {each.authorization for each in hub.requests if "/cdn/" not in each.path} == {f"Bearer {TOKEN}"}
    assert {each.authorization for each in hub.requests if "/cdn/" in each.path} == {""}


def test_a_hub_that_is_busy_is_asked_again(hub: Hub, folder: Path) -> None:
    hub.unavailable = 5
    get(hub, folder)
    assert content(folder) == FILES


def test_a_hub_that_sends_no_ranges_begins_again(hub: Hub, folder: Path) -> None:
    hub.cut[BIG] = [MB]
    hub.without_ranges = True
    get(hub, folder)
    assert content(folder) == FILES


def test_no_hub_at_all(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "TRIES", 2)
    with Hub() as gone:
        url = gone.url
    with pytest.raises(DownloadError, match=r"cannot be downloaded: http://127\.0\.0\.1:\d+ does not answer"):
        fetch([order(folder)], Client(url), lambda _: None)


@pytest.mark.parametrize("endpoint", ["no url", "ftp:", "127.0.0.1:1"])
def test_an_endpoint_that_is_no_url(folder: Path, endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "TRIES", 1)
    with pytest.raises(DownloadError, match="HF_ENDPOINT"):
        fetch([order(folder)], Client(endpoint), lambda _: None)


def test_progress_ends_with_all_bytes_even_after_a_cut(hub: Hub, folder: Path) -> None:
    hub.cut[BIG] = [MB, 0]
    seen: list[Progress] = []
    fetch([order(folder)], Client(hub.url), seen.append)
    total = sum(map(len, FILES.values()))
    assert seen[-1] == Progress("downloading", total, total)
    assert all(0 <= each.done <= each.total for each in seen)


def test_files_of_another_revision_are_removed_where_the_folder_is_the_hubs_alone(hub: Hub, folder: Path) -> None:
    get(hub, folder)
    (folder / "old").mkdir()
    (folder / "old" / "shard.bin").write_bytes(b"old")
    prune(order(folder))
    assert content(folder) == FILES
    assert not (folder / "old").exists()


def test_killed_half_way_it_goes_on(hub: Hub, tmp_path: Path) -> None:
    """As the program that runs on a host, with nothing of this project beside it."""
    for name in ("download.py", "transfer.py"):
        (tmp_path / name).write_bytes((ROOT / "nvidia_triton" / "hub" / name).read_bytes())
    folder = tmp_path / "weights"
    work = [
        order(folder)._asdict() | {"folder": str(folder), "files": [file._asdict() for file in order(folder).files]}
    ]

    def start() -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-I", "-c", f"import sys; sys.path[:] = [{str(tmp_path)!r}, *sys.path]; import runpy; "
             f"runpy.run_path({str(tmp_path / 'download.py')!r}, run_name='__main__')"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env={"HF_ENDPOINT": hub.url, "PATH": os.environ["PATH"]},
        )  # fmt: skip
        assert process.stdin is not None
        process.stdin.write(json.dumps(work))
        process.stdin.close()
        return process

    # It waits between its tries, with what has arrived on the disk.
    hub.cut[BIG] = [MB, *([0] * 3)]
    first = start()
    partial = folder / ".partial" / hashlib.sha256(FILES[BIG]).hexdigest()
    deadline = time.monotonic() + 30
    while not partial.exists() or partial.stat().st_size < MB:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    first.send_signal(signal.SIGKILL)
    first.wait()
    hub.cut.clear()
    second = start()
    assert second.stdout is not None
    *lines, last = [json.loads(line) for line in second.stdout]
    assert second.wait() == 0
    assert BIG in last["fetched"]["m"]
    assert all("progress" in line for line in lines)
    assert content(folder) == FILES
    assert hub.sent(BIG) == len(FILES[BIG])


# source.json, and the target that writes and reads it


@dataclasses.dataclass
class Target:
    """`make fetch-model` in a checkout of its own."""

    models: Path
    hub: Hub

    def __call__(self, **variables: str) -> tuple[int, str, str]:
        program = (
            "import sys, pathlib; from nvidia_triton.hub import __main__ as cli; "
            "cli.ROOT = pathlib.Path(sys.argv[1]); sys.exit(cli.main())"
        )
        done = subprocess.run(
            [sys.executable, "-c", program, str(self.models.parent)],
            env={"PATH": os.environ["PATH"], "COLUMNS": "200", "HF_ENDPOINT": self.hub.url, **variables},
            capture_output=True, text=True, check=False, cwd=ROOT, timeout=60,
        )  # fmt: skip
        return done.returncode, done.stdout, done.stderr


@pytest.fixture
def target(hub: Hub, tmp_path: Path) -> Target:
    (tmp_path / "models" / "m" / "1").mkdir(parents=True)
    (tmp_path / "models" / "m" / "config.pbtxt").write_text('backend: "python"\n')
    (tmp_path / "models" / "m" / "1" / "model.py").touch()
    return Target(tmp_path / "models", hub)


def test_source_json_is_written_and_the_files_fetched_and_repaired(target: Target) -> None:
    target.hub.repositories[REPOSITORY] |= {"pytorch_model.bin": b"x" * 5000, ".gitattributes": b"a"}
    code, said, problem = target(MODEL="m", REPO=REPOSITORY)
    assert (code, problem) == (0, "")
    assert f"{REPOSITORY} at {COMMIT}" in said
    assert "4 files, 4.0 MB, are verified in models/m/1/weights" in said
    model = target.models / "m"
    written = source.read(model)
    assert written is not None
    assert (written.revision, {file.path for file in written.files}) == (COMMIT, set(FILES))
    assert content(model / "1/weights") == FILES
    assert [folder.name for folder in validate(target.models, ["m"])] == ["m"]
    (model / "1/weights" / SMALL).write_bytes(b'{"hidden_size": 9}')
    code, said, _ = target(MODEL="m")
    assert code == 0
    assert said.endswith(f"downloaded: {SMALL}.\n")


def test_patterns_choose_files(target: Target) -> None:
    assert target(MODEL="m", REPO=REPOSITORY, FILES="*.json parts/*")[0] == 0
    written = source.read(target.models / "m")
    assert written is not None
    assert [file.path for file in written.files] == [SMALL, "parts/second.safetensors"]


@pytest.mark.parametrize(
    ("variables", "sentence"),
    [
        ({}, "Say which model"),
        ({"MODEL": "other"}, "There is no models/other: copy the example"),
        ({"MODEL": "../m"}, "There is no models/../m"),
        ({"MODEL": "m"}, "models/m has no source.json: write one with `make fetch-model MODEL=m REPO=owner/name"),
        ({"MODEL": "m", "REPO": "weights"}, "REPO=weights is not the name of a repository"),
        ({"MODEL": "m", "REPO": "owner/none"}, "There is no owner/none on 127.0.0.1"),
        ({"MODEL": "m", "REPO": REPOSITORY, "REVISION": "v9"}, f"{REPOSITORY} on 127.0.0.1"),
        ({"MODEL": "m", "REPO": REPOSITORY, "FILES": "*.gguf"}, f"{REPOSITORY} has no file like *.gguf: it has"),
    ],
)
def test_what_cannot_be_meant_is_a_sentence(target: Target, variables: dict[str, str], sentence: str) -> None:
    code, said, problem = target(**variables, HF_TOKEN=TOKEN)
    assert (code, said) == (1, "")
    assert problem.startswith(sentence)
    assert "Traceback" not in problem
    assert TOKEN not in problem
    assert not (target.models / "m/source.json").exists()


def test_a_folder_in_whose_place_a_file_is_is_a_sentence(target: Target) -> None:
    assert target(MODEL="m", REPO=REPOSITORY, FILES="*.json")[0] == 0
    shutil.rmtree(target.models / "m/1/weights")
    (target.models / "m/1/weights").write_text("in the way")
    assert target(MODEL="m") == (1, "", "models/m cannot be written: Not a directory.\n")


GOOD = {"path": "a", "size": 1, "sha256": "0" * 64}


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"revision": "main"}, "revision: must be a commit of 40 hexadecimal digits"),
        ({"repository": "x"}, "repository: must be owner/name"),
        ({"files": [GOOD | {"sha256": "1"}]}, r"files\.0\.sha256: must be 64 hexadecimal digits"),
        ({"files": [GOOD | {"path": "../a"}]}, r"files\.0\.path: must be a path inside the repository"),
        ({"files": [GOOD | {"path": "/a"}]}, r"files\.0\.path: must be a path inside the repository"),
        ({"files": [GOOD | {"size": -1}]}, r"files\.0\.size: Input should be greater than or equal to 0"),
        ({"files": [GOOD, GOOD]}, "files: name a file twice"),
        ({"files": [GOOD, GOOD | {"path": "a/b"}]}, "files: name a file that is the folder of another one"),
        ({"files": []}, "files: List should have at least 1 item"),
        ({"token": "x"}, "token: Extra inputs are not permitted"),
    ],
)
def test_mistakes_in_source_json_are_named_before_anything_is_sent(
    target: Target, change: dict[str, object], sentence: str
) -> None:
    good = {"repository": REPOSITORY, "revision": COMMIT, "files": [GOOD]}
    (target.models / "m/source.json").write_text(json.dumps(good | change))
    with pytest.raises(TargetError, match=rf"models/m/source\.json: {sentence}"):
        validate(target.models, ["m"])
    code, _, problem = target(MODEL="m")
    assert code == 1
    assert problem.startswith("models/m/source.json: ")
    assert target.hub.requests == []
