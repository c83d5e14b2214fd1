"""The rules of the example models, without Triton."""

import base64
import importlib.util
import io
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest
from PIL import Image

from nvidia_triton.local.settings import ROOT

TEXT = (
    "Dr. Grace Hopper met Alan Turing at the University of Cambridge on 3 May 1949. Acme Widgets Ltd. paid $1,200 to "
    "grace@example.org, phone +44 20 7946 0958, card 4111 1111 1111 1111, from Berlin at 10:30."
)


def module(model: str, name: str) -> ModuleType:
    path = ROOT / "models" / model / "1" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(f"{model}_{name}".replace("-", "_"), path)
    assert spec is not None
    assert spec.loader is not None
    made = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = made
    spec.loader.exec_module(made)
    return made


drawing, seeing = module("image-rules", "drawing"), module("vision-rules", "seeing")
rules, masking = module("ner-rules", "rules"), module("ner-rules", "masking")


def wish(prompt: str, **changes: object) -> object:
    values = {"negative_prompt": "", "guidance": 10.0, "steps": 5, "width": 96, "height": 64, "seed": 7}
    return drawing.Wish(prompt, **(values | changes))


def file(prompt: str, **changes: object) -> bytes:
    made = wish(prompt, **changes)
    return bytes(drawing.png(drawing.draw(made), made))


def picture(colour: object, size: tuple[int, int] = (40, 30), kind: str = "PNG", mode: str = "RGB") -> bytes:
    written = io.BytesIO()
    Image.new(mode, size, colour).save(written, kind)
    return written.getvalue()


def labels(text: str, *asked: str) -> list[tuple[str, str]]:
    return [(span["text"], span["label"]) for span in rules.find(text, asked)]


def test_the_same_wish_draws_the_same_picture_and_each_part_of_it_counts() -> None:
    first = file("a red house by the sea")
    assert file("a red house by the sea") == first
    changes = {"seed": 8, "steps": 6, "negative_prompt": "house", "guidance": 1.0, "width": 97, "height": 65}
    others = [file("a red house by the sea", **{name: value}) for name, value in changes.items()]
    pixels = {Image.open(io.BytesIO(each)).tobytes() for each in (first, *others)}
    assert len(pixels) == len(changes) + 1


def test_the_picture_says_what_it_is() -> None:
    image = Image.open(io.BytesIO(file("Ein roter Fuchs – 狐", width=128)))
    assert image.size == (128, 64)
    assert image.text["Software"] == drawing.WHAT_IT_IS  # type: ignore[attr-defined]
    assert "not by a trained model" in drawing.WHAT_IT_IS
    assert image.text["Description"] == "Ein roter Fuchs – 狐"  # type: ignore[attr-defined]
    assert json.loads(image.text["parameters"])["seed"] == 7  # type: ignore[attr-defined]


@pytest.mark.parametrize(("prompt", "unwanted", "expected"), [("red", "", "red"), ("red and blue", "red", "blue")])
def test_a_colour_of_the_prompt_is_in_the_sky_and_an_unwanted_one_is_not(
    prompt: str, unwanted: str, expected: str
) -> None:
    image = drawing.draw(wish(prompt, negative_prompt=unwanted))
    assert image.getpixel((0, 0)) == drawing.COLOURS[expected]


def test_the_smallest_and_the_largest_picture() -> None:
    for side in drawing.LIMITS["width"]:
        made = wish("mountains, trees and houses at night", width=side, height=side)
        assert drawing.draw(made).size == (side, side)


def test_entities_have_the_labels_that_were_asked_for() -> None:
    asked = ("Person", "company", "city", "date", "e-mail", "phone", "money", "credit card", "time", "dragon")
    assert labels(TEXT, *asked) == [
        ("Dr. Grace Hopper", "Person"),
        ("Alan Turing", "Person"),
        ("University of Cambridge", "company"),
        ("3 May 1949", "date"),
        ("Acme Widgets Ltd.", "company"),
        ("$1,200", "money"),
        ("grace@example.org", "e-mail"),
        ("+44 20 7946 0958", "phone"),
        ("4111 1111 1111 1111", "credit card"),
        ("Berlin", "city"),
        ("10:30", "time"),
    ]
    assert labels(TEXT, "location") == [("Berlin", "location")]


def test_places_are_characters_of_the_text() -> None:
    text = "🙂 Zoë wrote to Ada Lovelace (ada@example.org)."
    for span in rules.find(text, ["person", "email"]):
        assert text[span["start"] : span["end"]] == span["text"]
    assert labels(text, "email") == [("ada@example.org", "email")]


@pytest.mark.parametrize("text", ["4111 1111 1111 1112", "no names in here", "", "12"])
def test_what_is_no_entity(text: str) -> None:
    assert labels(text, "credit card", "person", "phone") == []


def test_masked_and_put_back() -> None:
    text = f"{TEXT} Alan Turing left. [PERSON_1] stays."
    spans = rules.find(text, ["Person", "email"])
    masked, mask_map = masking.mask(text, spans, ["person"])
    assert "Turing" not in masked
    assert "grace@example.org" in masked
    # The same entity has one placeholder, and none that the text had already.
    assert mask_map == {"[PERSON_2]": "Dr. Grace Hopper", "[PERSON_3]": "Alan Turing"}
    assert masked.count("[PERSON_3]") == 2
    for placeholder, original in mask_map.items():
        masked = masked.replace(placeholder, original)
    assert masked == text
    assert masking.mask(text, spans, []) == (text, {})


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"])
def test_size_colour_and_kind_are_measured(kind: str) -> None:
    seen = seeing.opened(picture((200, 40, 40), (40, 30), kind))
    assert seeing.answer(seen, "How large is it?") == f"The picture is a {kind} of 40 x 30 pixels."
    assert seeing.answer(seen, "Which colours?") == "Its main colours are red (100%)."
    assert seeing.WHAT_IT_IS in seeing.answer(seen, "")
    assert seeing.answer(seen, "Which model are you?") == seeing.WHAT_IT_IS


def test_base64_and_data_urls_are_taken() -> None:
    plain = picture("black")
    encoded = base64.b64encode(plain)
    assert seeing.opened(encoded) == seeing.opened(plain) == seeing.opened(b"data:image/png;base64," + encoded)
    assert "dark" in seeing.answer(seeing.opened(plain), "bright or dark?")


def test_what_is_transparent_counts_as_white() -> None:
    assert seeing.opened(picture((0, 0, 0, 0), mode="RGBA")).shares == [("white", 1.0)]


@pytest.mark.parametrize("data", [b"", b"no picture", picture("red", (400, 400))[:60], b"data:image/png;base64,AAAA"])
def test_what_is_no_picture_is_refused(data: bytes) -> None:
    with pytest.raises(seeing.NotAPicture, match="is not a PNG, JPEG"):
        seeing.opened(data)


def test_a_small_file_of_a_huge_picture_is_refused_before_it_is_decoded() -> None:
    bomb = picture(0, (20_000, 20_000), mode="1")
    assert len(bomb) < 100_000
    with pytest.raises(seeing.NotAPicture, match=r"20000 x 20000 pixels, and at most|can be read"):
        seeing.opened(bomb)


@pytest.mark.parametrize("path", sorted((ROOT / "models").glob("*-rules/1/*.py")), ids=str)
def test_each_file_is_read_in_a_minute(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 150
