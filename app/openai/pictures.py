"""The images of a chat, for engines that get a prompt: their files beside it, and a place for each within it."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from app.errors import AppError, ChatTemplateRefused, invalid
from app.openai.requests import unsupported
from app.prompts.templates import Templates
from app.services.image_fetching import ImageFetcher, NotFetched

IMAGE_URL = "image_url"
# Stands where a template that knows images puts its own mark; one that shows it has printed the part as it is.
MARK = "[image of the chat]"
_DATA_URL = re.compile(r"data:image/[\w.+-]+;base64,", re.IGNORECASE)


# A part of type `image_url` as templates know it.
PLACE_OF_IMAGE = {"type": "image", "image": MARK}


def images_of(messages: Sequence[Mapping[str, Any]]) -> list[str]:
    """In the order of the chat, each in base64.

    Raises:
        UnsupportedParameter: one is not in its message.
    """
    return [_data(part, where) for part, where in _images(messages)]


def check_images(messages: Sequence[Mapping[str, Any]]) -> bool:
    """Whether there are any.

    Raises:
        UnsupportedParameter: one is not in its message, or is none.
    """
    places = list(_images(messages))
    for part, where in places:
        try:
            empty = not base64.b64decode(_data(part, where), validate=True)
        except (binascii.Error, ValueError):
            empty = True
        if empty:
            raise unsupported(f"{where}.{IMAGE_URL}", "the data URL holds no image in base64")
    return bool(places)


def _images(messages: Sequence[Mapping[str, Any]]) -> Iterator[tuple[Mapping[str, Any], str]]:
    """Each part that is an image, and where it stands."""
    for place, message in enumerate(messages):
        if isinstance(message.get("content"), list):
            for number, part in enumerate(message["content"]):
                if part["type"] == IMAGE_URL:
                    yield part, f"messages[{place}].content[{number}]"


def _data(part: Mapping[str, Any], where: str) -> str:
    url = _url(part)
    if not isinstance(url, str) or not (head := _DATA_URL.match(url)):
        raise unsupported(
            f"{where}.{IMAGE_URL}",
            "an image is sent along, as a data URL: data:image/png;base64,... Nothing is fetched",
        )
    return url[head.end() :]


async def with_fetched(images: ImageFetcher, messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The messages, with the images at addresses in them.

    Raises:
        InvalidRequest: one cannot be fetched; its place is named.
    """
    found = [(url, where) for part, where in _images(messages) if (url := _address(part)) is not None]
    if not found:
        return messages
    try:
        data = iter(await images.fetch([url for url, _ in found]))
    except NotFetched as error:
        raise invalid(f"{found[error.place][1]}.{IMAGE_URL}", str(error)) from None

    def filled(part: dict[str, Any]) -> dict[str, Any]:
        if part["type"] != IMAGE_URL or _address(part) is None:
            return part
        given = part[IMAGE_URL]
        return part | {IMAGE_URL: {**(given if isinstance(given, Mapping) else {}), "url": next(data)}}

    return [
        message | {"content": [filled(part) for part in message["content"]]}
        if isinstance(message.get("content"), list)
        else message
        for message in messages
    ]


def _url(part: Mapping[str, Any]) -> Any:
    given = part.get(IMAGE_URL)
    return given.get("url") if isinstance(given, Mapping) else given


def _address(part: Mapping[str, Any]) -> str | None:
    url = _url(part)
    return url if isinstance(url, str) and url[:8].lower() == "https://" else None


async def rendered(
    templates: Templates, model: str, messages: list[dict[str, Any]], *, stored: bool, **variables: Any
) -> str:
    """The prompt of a chat, in which each image has its place: of a `stored` one that was seen when it came.

    Raises:
        UnsupportedParameter: the model's template has none for images.
        AppError: as `Templates.render`.
    """
    if stored or all(isinstance(message["content"], str) for message in messages):
        return await templates.render(model, messages, **variables)
    texts = [_without_images(message) for message in messages]
    plain = await templates.render(model, texts, **variables)
    try:
        prompt = await templates.render(model, messages, **variables)
    except ChatTemplateRefused:
        prompt = plain
    if prompt == plain or MARK in prompt:
        raise no_images(model, "its chat template has no place for them")
    return prompt


def no_images(model: str, why: str) -> AppError:
    return unsupported("messages", f"hold an image, and the model {model} takes none: {why}. Send text alone")


def _without_images(message: dict[str, Any]) -> dict[str, Any]:
    """With one text for a content."""
    content = message["content"]
    if isinstance(content, str):
        return message
    return message | {"content": "\n".join(part["text"] for part in content if part["type"] == "text")}
