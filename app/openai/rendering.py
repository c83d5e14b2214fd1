"""The prompt of a stored chat: made where an engine takes prompts, and for whoever reads the context."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

from app.openai.chat_request import rendered_chat
from app.openai.messages import Message, for_template
from app.openai.responses_request import KIND as RESPONSE
from app.openai.responses_request import as_chat
from app.prompts.templates import Templates

# More messages than this are checked away from the event loop.
MANY_MESSAGES = 100


def asked_of(kind: str | None, request: Mapping[str, Any] | None) -> dict[str, Any]:
    """The stored request of a chat or a response, less its messages, as a chat has it."""
    asked = dict(request or {})
    if kind != RESPONSE:
        return asked
    return {name: asked[name] for name in ("chat_template_kwargs",) if name in asked} | as_chat(asked)


async def chat_prompt(
    templates: Templates,
    model: str,
    messages: Sequence[Mapping[str, Any]],
    kind: str | None,
    request: Mapping[str, Any] | None,
) -> str:
    """
    Raises:
        AppError: the model's template is not there, or does not take this chat.
    """
    if len(messages) > MANY_MESSAGES:
        plain = await asyncio.to_thread(_plain, messages)
    else:
        plain = _plain(messages)
    return await rendered_chat(templates, model, plain, asked_of(kind, request))


def _plain(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    return for_template([Message.model_validate(message) for message in messages])
