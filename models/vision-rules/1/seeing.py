"""Answers questions on a picture by measuring it: its size, its colours, its brightness. What it shows is not seen."""

from __future__ import annotations

import base64
import binascii
import io
import re
from collections import Counter
from dataclasses import dataclass

from PIL import Image

WHAT_IT_IS = (
    "I am vision-rules: I measure a picture by rules and am no trained model, so I do not see what the picture shows."
)
# More is refused before it is decoded; a photograph of 50 megapixels passes.
MAX_PIXELS = 60_000_000
# Colours are counted on a copy of at most this many pixels a side.
COUNTED_SIDE = 128
DATA_URL = re.compile(rb"data:[\w./+-]*;base64,")
NAMED = {
    "black": (20, 20, 20),
    "grey": (128, 128, 128),
    "white": (245, 245, 245),
    "red": (200, 40, 40),
    "orange": (235, 135, 40),
    "yellow": (235, 210, 60),
    "green": (60, 150, 70),
    "turquoise": (60, 180, 180),
    "blue": (50, 90, 190),
    "purple": (120, 60, 160),
    "pink": (235, 140, 175),
    "brown": (120, 80, 50),
}


class NotAPicture(Exception):
    """The text is for the user."""


@dataclass(frozen=True)
class Picture:
    """`shares` are the shares of the named colours, the largest first; `brightness` is from 0 to 1."""

    kind: str
    width: int
    height: int
    shares: list[tuple[str, float]]
    brightness: float


def opened(data: bytes) -> Picture:
    """Measures a PNG, JPEG, WebP, GIF, BMP or TIFF: its bytes, the base64 of them, or a data URL.

    Raises:
        NotAPicture: it is none of these, damaged, or larger than `MAX_PIXELS`.
    """
    url = DATA_URL.match(data)
    try:
        decoded = base64.b64decode(data[url.end() if url else 0 :], validate=True)
    except (binascii.Error, ValueError):
        decoded = data
    try:
        with Image.open(io.BytesIO(decoded), formats=("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")) as image:
            width, height = image.size
            if width * height > MAX_PIXELS:
                raise NotAPicture(f"image has {width} x {height} pixels, and at most {MAX_PIXELS} are taken")
            small = image.convert("RGBA")
            small.thumbnail((COUNTED_SIDE, COUNTED_SIDE))
            # What is transparent counts as white.
            pixels = Image.alpha_composite(Image.new("RGBA", small.size, "white"), small).convert("RGB")
            kind = image.format or "picture"
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        raise NotAPicture("image is not a PNG, JPEG, WebP, GIF, BMP or TIFF that can be read") from None
    counts: Counter[str] = Counter()
    light = 0.0
    for count, colour in pixels.getcolors(COUNTED_SIDE**2) or []:
        counts[_name(colour)] += count
        light += count * (0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2]) / 255
    total = counts.total()
    return Picture(kind, width, height, [(name, count / total) for name, count in counts.most_common()], light / total)


def answer(picture: Picture, question: str) -> str:
    """What the question's words ask for; all of it where they ask for nothing that can be measured."""
    words = set(re.findall(r"[a-z]+", question.lower()))
    said = []
    if words & {"who", "you", "model", "ai"}:
        said.append(WHAT_IT_IS)
    if words & {"size", "width", "height", "wide", "high", "tall", "large", "big", "resolution", "pixels", "format"}:
        said.append(_size(picture))
    if words & {"colour", "colours", "color", "colors", "hue"}:
        said.append(_colours(picture))
    if words & {"bright", "brightness", "dark", "light"}:
        said.append(_brightness(picture))
    return " ".join(said or [_size(picture), _colours(picture), _brightness(picture), WHAT_IT_IS])


def _size(picture: Picture) -> str:
    return f"The picture is a {picture.kind} of {picture.width} x {picture.height} pixels."


def _colours(picture: Picture) -> str:
    told = ", ".join(f"{name} ({share:.0%})" for name, share in picture.shares[:3] if share >= 0.01)
    return f"Its main colours are {told}."


def _brightness(picture: Picture) -> str:
    word = "dark" if picture.brightness < 0.35 else "bright" if picture.brightness > 0.65 else "neither dark nor bright"
    return f"It is {word}: its mean brightness is {picture.brightness:.0%}."


def _name(colour: tuple[int, ...]) -> str:
    return min(NAMED, key=lambda name: sum((a - b) ** 2 for a, b in zip(colour, NAMED[name], strict=True)))
