"""`source.json` of a model's folder: which files of which revision of a repository belong into `1/weights/`."""

from __future__ import annotations

import fnmatch
import hashlib
import json
from pathlib import Path, PurePosixPath
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from nvidia_triton.hub.download import File, Order
from nvidia_triton.hub.transfer import DownloadError, Hub

NAME = "source.json"
# In a model's folder. What is here comes from the hub, on every machine, and is never sent to another.
WEIGHTS = PurePosixPath("1/weights")
# Other copies of the weights that are there as safetensors.
OTHER_FORMATS = (".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack", ".onnx", ".onnx_data", ".ot", ".tflite", ".gguf")
SAFETENSORS = ".safetensors"
# The hub keeps larger files apart, and tells their SHA-256.
MAX_PLAIN_BYTES = 50_000_000


class _Model(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)


class SourceFile(_Model):
    path: Annotated[str, Field(min_length=1, max_length=400)]
    size: Annotated[int, Field(ge=0)]
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]

    @field_validator("path")
    @classmethod
    def _stays_inside(cls, path: str) -> str:
        parts = path.split("/")
        if "\\" in path or "\0" in path or any(part in ("", ".", "..", ".partial") for part in parts):
            raise ValueError("must be a path inside the repository")
        return path


class Source(_Model):
    """`revision` is a commit: a branch would move, and its files with it. Sizes are in bytes."""

    repository: Annotated[str, Field(pattern=r"^[\w-][\w.-]*/[\w-][\w.-]*$")]
    revision: Annotated[str, Field(pattern="^[0-9a-f]{40}$")]
    files: Annotated[list[SourceFile], Field(min_length=1)]

    @field_validator("files")
    @classmethod
    def _are_distinct(cls, files: list[SourceFile]) -> list[SourceFile]:
        paths = {file.path for file in files}
        if len(paths) != len(files):
            raise ValueError("name a file twice")
        if any(parent.as_posix() in paths for path in paths for parent in PurePosixPath(path).parents):
            raise ValueError("name a file that is the folder of another one")
        return files

    @property
    def size(self) -> int:
        return sum(file.size for file in self.files)

    def paths(self, version: str) -> frozenset[str]:
        """Paths of the files in the version's folder."""
        folder, name = WEIGHTS.parts
        return frozenset(f"{name}/{file.path}" for file in self.files) if version == folder else frozenset()

    def order(self, model: str, folder: Path) -> Order:
        """`folder` is that of the weights."""
        files = tuple(File(file.path, file.size, file.sha256) for file in self.files)
        return Order(model, self.repository, self.revision, folder, files)


class SourceProblem(Exception):
    """What is wrong with a source.json, a sentence for each mistake."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("; ".join(problems))
        self.problems = problems


def read(model: Path) -> Source | None:
    """What `model`, a model's folder, says of its weights; None where it says nothing.

    Raises:
        SourceProblem: the file cannot be used.
    """
    try:
        content = json.loads((model / NAME).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except OSError as error:
        raise SourceProblem([f"cannot be read: {error.strerror}"]) from None
    except ValueError as error:
        raise SourceProblem([f"is not JSON: {error}"]) from None
    try:
        return Source.model_validate(content)
    except ValidationError as error:
        raise SourceProblem([_sentence(each) for each in error.errors()[:10]]) from None


def write(model: Path, source: Source) -> None:
    text = json.dumps(source.model_dump(), indent=2) + "\n"
    partial = model / f".{NAME}"
    partial.write_text(text, encoding="utf-8")
    partial.replace(model / NAME)


def describe(hub: Hub, repository: str, revision: str, patterns: list[str]) -> Source:
    """What the hub has at `revision`, a branch, tag or commit; all of it, or the files that fit one of `patterns`.

    Without patterns, where weights are there as safetensors, other formats of them are left out.

    Raises:
        DownloadError, Passing: the hub does not have it or does not answer.
    """
    listing = hub.listing(repository, revision)
    every = {each["rfilename"]: each for each in listing["siblings"]}
    wanted = sorted(path for path in every if _is_wanted(path, patterns, every))
    if not wanted:
        raise DownloadError(
            f"{repository} has no file like {' '.join(patterns)}: it has {', '.join(sorted(every)[:20])}."
            if patterns
            else f"{repository} has no files."
        )
    files = [_described(hub, repository, listing["sha"], every[path]) for path in wanted]
    return Source(repository=repository, revision=listing["sha"], files=files)


def _is_wanted(path: str, patterns: list[str], every: dict[str, Any]) -> bool:
    if patterns:
        return any(fnmatch.fnmatchcase(path, pattern) for pattern in patterns)
    safe = any(each.endswith(SAFETENSORS) for each in every)
    return path != ".gitattributes" and not (safe and path.endswith(OTHER_FORMATS))


def _described(hub: Hub, repository: str, revision: str, entry: dict[str, Any]) -> SourceFile:
    path, large = entry["rfilename"], entry.get("lfs")
    if large:
        return SourceFile(path=path, size=large["size"], sha256=large["sha256"])
    # Of a file in git itself the hub tells the hash of the git object, so this one is read.
    with hub.read(repository, revision, path) as answer:
        content = answer.read(MAX_PLAIN_BYTES)
    if entry.get("blobId") not in (None, git_hash(content)):
        raise DownloadError(f"{path} of {repository} arrived damaged: try again.")
    return SourceFile(path=path, size=len(content), sha256=hashlib.sha256(content).hexdigest())


def git_hash(content: bytes) -> str:
    """The name of a file's object in git."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


def _sentence(error: Any) -> str:
    place = ".".join(str(part) for part in error["loc"])
    message = error["msg"].removeprefix("Value error, ")
    if error["type"] == "string_pattern_mismatch":
        message = {
            "revision": "must be a commit of 40 hexadecimal digits",
            "sha256": "must be 64 hexadecimal digits",
            "repository": "must be owner/name",
        }[str(error["loc"][-1])]
    return f"{place}: {message}" if place else message
