"""Files of ours for browsers."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from mimetypes import guess_type
from pathlib import Path

from fastapi import Response


def asset_response(path: Path, headers: Mapping[str, str]) -> Response:
    """The whole file, whatever part of it was asked for: no range can be wrong then."""
    return Response(_content(path), headers={"Accept-Ranges": "none", **headers}, media_type=guess_type(path.name)[0])


@cache
def _content(path: Path) -> bytes:
    return path.read_bytes()
