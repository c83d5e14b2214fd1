"""The prompt of a stored chat: made where an engine takes prompts, and for whoever reads the context."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from app.openai.chat_request import rendered_chat
from app.openai.responses_request import KIND as RESPONSE
from app.openai.responses_request import as_chat
from app.prompts.templates import Templates


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
    return await rendered_chat(templates, model, messages, asked_of(kind, request), stored=True)
