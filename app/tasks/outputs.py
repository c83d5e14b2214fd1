"""The tensors that a model answers with: what of them is shown as JSON, and what is kept as files. Pure, no I/O."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

# An output of more bytes than this is kept as files.
LARGE_BYTES = 64 * 1024
# Of an output of texts or blobs, each element is a file of its own, up to so many; beyond, all are in one.
MOST_FILES = 64
BLOB = "application/octet-stream"

# By what a file begins with. Nothing that a browser would run is among them.
_MAGIC: tuple[tuple[bytes, str], ...] = (
    (b"\x89PNG\r\n\x1a\n", "image/png"),
    (b"\xff\xd8\xff", "image/jpeg"),
    (b"GIF87a", "image/gif"),
    (b"GIF89a", "image/gif"),
    (b"II*\x00", "image/tiff"),
    (b"MM\x00*", "image/tiff"),
    (b"OggS", "audio/ogg"),
    (b"fLaC", "audio/flac"),
    (b"ID3", "audio/mpeg"),
    (b"\x1a\x45\xdf\xa3", "video/webm"),
    (b"%PDF-", "application/pdf"),
)
_RIFF = {b"WAVE": "audio/wav", b"WEBP": "image/webp"}


@dataclass(frozen=True, slots=True)
class Output:
    """One tensor of one response: `data` flat, as JSON has it, or else `files`."""

    name: str
    datatype: str
    shape: list[int]
    data: list[Any] | None = None
    files: tuple[bytes, ...] = ()
    # In bytes.
    size: int = 0

    def document(self, response: int) -> dict[str, Any]:
        """As it is stored and shown, with the number of its response."""
        document: dict[str, Any] = {
            "name": self.name,
            "datatype": self.datatype,
            "shape": self.shape,
            "response": response,
        }
        if self.data is not None:
            return document | {"data": self.data}
        files = [{"media_type": media_type_of(each), "bytes": len(each)} for each in self.files]
        return document | {"files": files}


@dataclass(frozen=True, slots=True)
class OutputFile:
    """One element of a BYTES output, or another output as a whole: its numbers in order, little-endian."""

    response: int
    name: str
    element: int
    media_type: str
    data: bytes


def bytes_output(name: str, shape: list[int], elements: Sequence[bytes]) -> Output:
    """Texts where all elements are short UTF-8 that Postgres can store, else files."""
    size = sum(map(len, elements))
    if size <= LARGE_BYTES and len(elements) <= LARGE_BYTES // 4:
        try:
            texts = [element.decode() for element in elements]
        except UnicodeDecodeError:
            texts = None
        if texts is not None and not any("\x00" in text for text in texts):
            return Output(name, "BYTES", shape, data=texts, size=size)
    if len(elements) > MOST_FILES:
        # As KServe sends them: each with its length before it.
        elements = [b"".join(len(each).to_bytes(4, "little") + each for each in elements)]
    return Output(name, "BYTES", shape, files=tuple(elements), size=size)


def media_type_of(data: bytes) -> str:
    """By its first bytes; a type that says nothing where they are not known."""
    if data[:4] == b"RIFF" and data[8:12] in _RIFF:
        return _RIFF[data[8:12]]
    if data[4:8] == b"ftyp":
        return "video/mp4"
    return next((media_type for magic, media_type in _MAGIC if data.startswith(magic)), BLOB)
