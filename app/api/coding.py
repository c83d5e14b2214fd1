"""Bodies that come compressed (RFC 9110, Content-Encoding)."""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import Callable, Iterable

import zstandard

from app.errors import BodyTooLarge, MalformedBody, UnsupportedMediaType

# More than this is decompressed beside the event loop, in bytes.
LARGE = 32 * 1024
# What a zstd frame may ask for to be decompressed in, in bytes: what the format says every decoder should have.
LARGEST_WINDOW = 8 * 1024 * 1024


def coding_of(headers: Iterable[tuple[bytes, bytes]]) -> str:
    """The one coding of a body; empty where it is sent as it is.

    Raises:
        UnsupportedMediaType: there is none of this name here, or there are several.
    """
    given = b",".join(value for name, value in headers if name == b"content-encoding").decode("latin-1")
    codings = [each for part in given.split(",") if (each := part.strip().lower()) not in ("", "identity")]
    if not codings:
        return ""
    if len(codings) > 1 or codings[0] not in CODINGS:
        raise UnsupportedMediaType(
            f"A body with Content-Encoding {given[:50]!r} is not read here: send it as it is, or in one of gzip, "
            "deflate and zstd."
        )
    return codings[0]


async def decompressed(body: bytes, coding: str, most: int) -> bytes:
    """
    Raises:
        BodyTooLarge: it comes to more than `most` bytes.
        MalformedBody: it is not in this coding, or not whole.
    """
    try:
        found = (
            await asyncio.to_thread(CODINGS[coding], body, most + 1)
            if len(body) > LARGE
            else CODINGS[coding](body, most + 1)
        )
    except (zlib.error, zstandard.ZstdError):
        raise MalformedBody(f"The body is not {coding}, as its Content-Encoding says, or not all of it came.") from None
    if len(found) > most:
        raise too_large(most, upload=False)
    return found


def too_large(most: int, upload: bool) -> BodyTooLarge:
    name = "MAX_FILE_BYTES" if upload else "MAX_BODY_BYTES"
    return BodyTooLarge(
        f"The body is larger than {most:,} bytes; send less, or raise {name}.", headers={"Connection": "close"}
    )


def _gzip(body: bytes, most: int) -> bytes:
    return _inflated(body, most, 16 + zlib.MAX_WBITS)


def _deflate(body: bytes, most: int) -> bytes:
    """With the header of zlib, as the standard has it, or without, as many send it."""
    try:
        return _inflated(body, most, zlib.MAX_WBITS)
    except zlib.error:
        return _inflated(body, most, -zlib.MAX_WBITS)


def _inflated(body: bytes, most: int, bits: int) -> bytes:
    found = b""
    while len(found) < most:
        reader = zlib.decompressobj(bits)
        found += reader.decompress(body, most - len(found))
        if reader.eof and reader.unused_data and bits > zlib.MAX_WBITS:
            # A gzip file may have several members.
            body = reader.unused_data
            continue
        if not reader.eof and len(found) < most:
            raise zlib.error("not whole")
        break
    return found


def _zstd(body: bytes, most: int) -> bytes:
    with zstandard.ZstdDecompressor(max_window_size=LARGEST_WINDOW).stream_reader(
        body, read_across_frames=True
    ) as reader:
        found = reader.read(most)
    if len(found) < most and not _ends(body):
        raise zstandard.ZstdError("not whole")
    return found


def _ends(body: bytes) -> bool:
    """Whether the last frame is whole; only asked of what is known to be small when it is decompressed."""
    while body:
        reader = zstandard.ZstdDecompressor(max_window_size=LARGEST_WINDOW).decompressobj()
        reader.decompress(body)
        if not reader.eof:
            return False
        body = reader.unused_data
    return True


CODINGS: dict[str, Callable[[bytes, int], bytes]] = {
    "gzip": _gzip,
    "x-gzip": _gzip,
    "deflate": _deflate,
    "zstd": _zstd,
}
