"""Draws a landscape from the words of a prompt, by rules. Nothing is learned and nothing is understood."""

from __future__ import annotations

import hashlib
import io
import json
import math
import random
import re
from dataclasses import asdict, dataclass

import numpy as np
from PIL import Image, ImageDraw, PngImagePlugin

WHAT_IT_IS = "image-rules: drawn by rules from the words of the prompt, not by a trained model"
LIMITS = {"guidance": (0, 30), "steps": (1, 150), "width": (16, 2048), "height": (16, 2048)}
# At this guidance and above, a colour that the prompt names is used as it is; below, it is mixed with another one.
FULL_GUIDANCE = 10.0

Colour = tuple[int, int, int]
COLOURS: dict[str, Colour] = {
    "red": (196, 55, 48),
    "orange": (226, 132, 44),
    "yellow": (235, 204, 76),
    "green": (72, 138, 76),
    "blue": (62, 108, 184),
    "purple": (118, 74, 156),
    "pink": (224, 132, 166),
    "brown": (122, 84, 56),
    "white": (240, 240, 236),
    "grey": (128, 132, 138),
    "gray": (128, 132, 138),
    "black": (34, 34, 40),
}
NIGHT = {"night", "moon", "midnight", "dark", "stars"}
WATER = {"sea", "ocean", "lake", "river", "water", "beach"}
TREES = {"tree", "trees", "forest", "wood", "woods", "garden"}
HOUSES = {"house", "houses", "city", "town", "village", "building"}
MOUNTAINS = {"mountain", "mountains", "alps", "peak", "hill", "hills"}


@dataclass(frozen=True)
class Wish:
    """What a picture is made from; the same wish makes the same picture. Sizes in pixels."""

    prompt: str
    negative_prompt: str
    guidance: float
    steps: int
    width: int
    height: int
    seed: int


def draw(wish: Wish) -> Image.Image:
    """A sky, a sun or moon, hills, and what the prompt's words add; words of the negative prompt add nothing."""
    words = _words(wish.prompt) - _words(wish.negative_prompt)
    # Size and steps do not enter: the same scene at another size.
    text = json.dumps([wish.prompt, wish.negative_prompt, wish.seed])
    dice = random.Random(int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big"))  # noqa: S311
    sky, ground, light = _palette(words, _words(wish.negative_prompt), wish.guidance, dice)
    if words & NIGHT:
        sky, ground = _mixed(sky, COLOURS["black"], 0.75), _mixed(ground, COLOURS["black"], 0.5)
    image = _gradient(sky, _mixed(sky, light, 0.6), wish.width, wish.height)
    pen = ImageDraw.Draw(image, "RGBA")
    _sun(pen, wish, COLOURS["white"] if words & NIGHT else light, dice)
    rough = 0.22 if words & MOUNTAINS else 0.08
    for layer in range(3):
        _hills(pen, wish, 0.5 + 0.13 * layer, rough, _mixed(ground, sky, 0.5 - 0.25 * layer), dice)
    if words & WATER:
        pen.rectangle((0, 0.8 * wish.height, wish.width, wish.height), fill=_mixed(COLOURS["blue"], sky, 0.4))
    for kind, shape in ((TREES, _tree), (HOUSES, _house)):
        for _ in range(12 if words & kind else 0):
            shape(pen, wish, dice)
    for _ in range(wish.steps):
        _stroke(pen, wish, light, dice)
    return image


def png(image: Image.Image, wish: Wish) -> bytes:
    """The file, in whose text chunks stands what made it and from what."""
    chunks = PngImagePlugin.PngInfo()
    chunks.add_text("Software", WHAT_IT_IS)
    chunks.add_itxt("Description", wish.prompt)
    chunks.add_text("parameters", json.dumps(asdict(wish)))
    file = io.BytesIO()
    image.save(file, "PNG", pnginfo=chunks)
    return file.getvalue()


def _words(text: str) -> set[str]:
    return set(re.findall(r"\w+", text.lower()))


def _palette(words: set[str], unwanted: set[str], guidance: float, dice: random.Random) -> list[Colour]:
    """Colours of the sky, the ground and the light: those that the words name first, in the order of `COLOURS`."""
    others = [colour for name, colour in COLOURS.items() if name not in unwanted] or [COLOURS["grey"]]
    share = min(guidance / FULL_GUIDANCE, 1.0)
    named = [_mixed(dice.choice(others), colour, share) for name, colour in COLOURS.items() if name in words]
    return (named + [dice.choice(others) for _ in range(3)])[:3]


def _mixed(one: Colour, other: Colour, share: float) -> Colour:
    """`share` of the other one."""
    red, green, blue = (round(a + (b - a) * share) for a, b in zip(one, other, strict=True))
    return red, green, blue


def _gradient(top: Colour, bottom: Colour, width: int, height: int) -> Image.Image:
    rows = np.linspace(top, bottom, height).round().astype(np.uint8)
    return Image.fromarray(np.repeat(rows[:, None], width, axis=1))


def _sun(pen: ImageDraw.ImageDraw, wish: Wish, colour: Colour, dice: random.Random) -> None:
    x, y, radius = dice.uniform(0.2, 0.8) * wish.width, dice.uniform(0.12, 0.35) * wish.height, 0.07 * wish.height
    pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=_mixed(colour, COLOURS["white"], 0.4))


def _hills(
    pen: ImageDraw.ImageDraw, wish: Wish, level: float, rough: float, colour: Colour, dice: random.Random
) -> None:
    waves = [(dice.uniform(1, 7), dice.uniform(0, 6.3), dice.uniform(0.2, 1) * rough / 3) for _ in range(4)]
    line = [
        (x, (level + sum(high * math.sin(many * x / wish.width + shift) for many, shift, high in waves)) * wish.height)
        for x in range(0, wish.width + 4, 4)
    ]
    pen.polygon([*line, (wish.width + 4, wish.height), (0, wish.height)], fill=colour)


def _tree(pen: ImageDraw.ImageDraw, wish: Wish, dice: random.Random) -> None:
    x, y, size = dice.uniform(0, 1) * wish.width, dice.uniform(0.7, 0.95) * wish.height, 0.12 * wish.height
    pen.rectangle((x - size / 16, y - size / 4, x + size / 16, y), fill=COLOURS["brown"])
    green = _mixed(COLOURS["green"], COLOURS["black"], dice.uniform(0, 0.5))
    pen.polygon([(x - size / 3, y - size / 4), (x + size / 3, y - size / 4), (x, y - size)], fill=green)


def _house(pen: ImageDraw.ImageDraw, wish: Wish, dice: random.Random) -> None:
    x, y = dice.uniform(0, 1) * wish.width, dice.uniform(0.7, 0.9) * wish.height
    wide, high = dice.uniform(0.04, 0.08) * wish.width, dice.uniform(0.08, 0.25) * wish.height
    pen.rectangle((x, y - high, x + wide, y), fill=_mixed(COLOURS["grey"], COLOURS["brown"], dice.uniform(0, 1)))
    pen.rectangle((x + wide / 3, y - high * 0.8, x + wide / 2, y - high * 0.6), fill=COLOURS["yellow"])


def _stroke(pen: ImageDraw.ImageDraw, wish: Wish, colour: Colour, dice: random.Random) -> None:
    """A thin cloud or blade: every step adds one."""
    x, y = dice.uniform(-0.1, 1) * wish.width, dice.uniform(0, 1) * wish.height
    pen.line((x, y, x + dice.uniform(0.05, 0.25) * wish.width, y), fill=(*colour, 60), width=max(1, wish.height // 256))
