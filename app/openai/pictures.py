"""The images of a chat, for engines that get a prompt: their files beside it, and a place for each within it."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Mapping, Sequence
from typing import Any

from app.errors import AppError, ChatTemplateRefused
from app.openai.requests import unsupported
from app.prompts.templates import Templates

IMAGE_URL = "image_url"
# Stands where a template that knows images puts its own mark; one that shows it has printed the part as it is.
MARK = "[image of the chat]"
_DATA_URL = re.compile(r"data:image/[\w.+-]+;base64,", re.IGNORECASE)


def place_of_image(part: Mapping[str, Any], where: str) -> dict[str, str]:
    """A part of type `image_url` as templates know it.

    Raises:
        UnsupportedParameter: it holds no image, or says where one is instead.
    """
    _in_base64(part, where)
    return {"type": "image", "image": MARK}


def _in_base64(part: Mapping[str, Any], where: str) -> str:
    given = part.get(IMAGE_URL)
    url = given.get("url") if isinstance(given, Mapping) else given
    if not isinstance(url, str) or not (head := _DATA_URL.match(url)):
        raise unsupported(
            f"{where}.{IMAGE_URL}",
            "an image is sent along, as a data URL: data:image/png;base64,... Nothing is fetched",
        )
    data = url[head.end() :]
    try:
        empty = not base64.b64decode(data, validate=True)
    except (binascii.Error, ValueError):
        empty = True
    if empty:
        raise unsupported(f"{where}.{IMAGE_URL}", "the data URL holds no image in base64")
    return data


def images_of(messages: Sequence[Mapping[str, Any]]) -> list[str]:
    """In the order of the chat, each in base64.

    Raises:
        UnsupportedParameter: one is not in its message.
    """
    return [
        _in_base64(part, f"messages[{place}].content[{number}]")
        for place, message in enumerate(messages)
        if isinstance(message.get("content"), list)
        for number, part in enumerate(message["content"])
        if part["type"] == IMAGE_URL
    ]


async def rendered(templates: Templates, model: str, messages: list[dict[str, Any]], **variables: Any) -> str:
    """The prompt of a chat, in which each image has its place.

    Raises:
        UnsupportedParameter: the model's template has none for images.
        AppError: as `Templates.render`.
    """
    texts = [_without_images(message) for message in messages]
    if texts == messages:
        return await templates.render(model, messages, **variables)
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
