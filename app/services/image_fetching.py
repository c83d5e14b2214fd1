"""Images at addresses that a chat names, fetched before it is stored, so that nothing depends on the address later."""

from __future__ import annotations

import base64
import time
from collections.abc import Sequence
from urllib.parse import urljoin, urlsplit

import httpx

from app.services.outbound import Sender, SendError

# All images of a chat together.
SECONDS = 15.0
MOST_IMAGES = 16
MOST_REDIRECTS = 3
INSTEAD = "Send the image as a data URL"
REDIRECTS = (301, 302, 303, 307, 308)
# Told by their first bytes: what a server says of them may be wrong.
KINDS = {b"\x89PNG\r\n\x1a\n": "png", b"\xff\xd8\xff": "jpeg", b"GIF87a": "gif", b"GIF89a": "gif"}


class NotFetched(Exception):
    """The text says why, for whoever named the address; `place` is that of the image."""

    def __init__(self, place: int, why: str) -> None:
        super().__init__(why)
        self.place = place


class ImageFetcher:
    """Reads images of up to `most_bytes` together, through a sender that goes to public addresses alone."""

    def __init__(self, sender: Sender, most_bytes: int) -> None:
        self._sender = sender
        self._most_bytes = most_bytes

    async def fetch(self, urls: Sequence[str]) -> list[str]:
        """Each image as a data URL.

        Raises:
            NotFetched: one is not there in time, is none, or they are too many or too large.
        """
        if len(urls) > MOST_IMAGES:
            raise NotFetched(MOST_IMAGES, f"no more than {MOST_IMAGES} images of a chat are fetched; send fewer")
        images: list[str] = []
        left = self._most_bytes
        # One after the other, so that what they come to is known while they come.
        until = time.monotonic() + SECONDS
        for place, url in enumerate(urls):
            image = await self._image(place, url, left, until)
            left -= len(image)
            images.append(f"data:image/{_kind(image)};base64,{base64.b64encode(image).decode()}")
        return images

    async def _image(self, place: int, url: str, most_bytes: int, until: float) -> bytes:
        for _ in range(MOST_REDIRECTS + 1):
            if urlsplit(url).scheme.lower() != "https":
                raise NotFetched(place, f"leads to an address that is not https://. {INSTEAD}")
            try:
                found = await self._sender.get(url, most_bytes, max(0.0, until - time.monotonic()))
            except (SendError, httpx.InvalidURL) as error:
                raise NotFetched(place, f"cannot be fetched: {str(error).removesuffix('.')}. {INSTEAD}") from None
            if found.status not in REDIRECTS or not found.location:
                break
            url = urljoin(url, found.location)
        if found.status != 200:
            raise NotFetched(place, f"cannot be fetched: the server answered {found.status}. {INSTEAD}")
        if not _kind(found.body):
            raise NotFetched(place, "holds no PNG, JPEG, GIF or WebP")
        return found.body


def _kind(image: bytes) -> str | None:
    if image[:4] == b"RIFF" and image[8:12] == b"WEBP":
        return "webp"
    return next((kind for start, kind in KINDS.items() if image.startswith(start)), None)
