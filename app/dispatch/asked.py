"""What an engine is asked for a claim: a text, or a chat in the form that the engine takes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from app.engines.base import FINAL, WAIT, EngineError
from app.errors import AppError, ChatTemplateBroken, NoChatTemplate
from app.openai import rendering
from app.openai.pictures import images_of
from app.prompts.templates import Templates
from app.queue.ticket import Claim


@dataclass(slots=True)
class Asked:
    """A prompt, perhaps with images; or a chat's messages and the rest of its request; or tensors."""

    prompt: str = ""
    messages: list[dict[str, Any]] | None = None
    request: dict[str, Any] | None = None
    inputs: list[dict[str, Any]] | None = None
    # Beside a prompt, each in base64.
    images: list[str] = field(default_factory=list)


async def asked_of(claim: Claim, takes_messages: bool, templates: Templates) -> Asked:
    """
    Raises:
        EngineError: the chat needs a template that is not there, or that does not take it.
    """
    prompt = claim.prompt
    if prompt.inputs is not None:
        return Asked(inputs=prompt.inputs)
    if prompt.messages is None:
        return Asked(prompt.content or "")
    if takes_messages:
        return Asked(messages=prompt.messages, request=rendering.asked_of(claim.kind, claim.request))
    if prompt.content is not None:
        return Asked(prompt.content)
    try:
        made = await rendering.chat_prompt(templates, claim.model, prompt.messages, claim.kind, claim.request)
        return Asked(made, images=images_of(prompt.messages))
    except AppError as error:
        # Templates are the operator's: until one is there and right, the ticket waits.
        then = WAIT if isinstance(error, NoChatTemplate | ChatTemplateBroken) else FINAL
        raise EngineError(error.code, error.detail, then) from None
