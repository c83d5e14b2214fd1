"""Counting tokens: the requests of /tokenize and /detokenize, and the prompt that a response would send."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field

from app.errors import invalid
from app.openai.chat_request import ChatRequest, prepare_chat
from app.openai.rendering import chat_prompt
from app.openai.requests import OpenAIRequest, Prepared, Sources, checked
from app.openai.responses_prepare import prepare_response
from app.openai.responses_request import ResponseRequest
from app.services.callers import Caller

MOST_TOKENS = 1_000_000
# Of a chat, what changes its prompt.
OF_A_CHAT = ("messages", "tools", "add_generation_prompt", "continue_final_message", "chat_template_kwargs")


class TokenizeRequest(OpenAIRequest):
    prompt: str | None = Field(None, examples=["Once upon a time"])
    messages: list[dict[str, Any]] | None = None
    add_special_tokens: bool | None = Field(None, description="true for a prompt, false for a chat, unless it is given")
    return_token_strs: bool | None = None
    tools: list[dict[str, Any]] | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None


class DetokenizeRequest(OpenAIRequest):
    tokens: Annotated[list[Annotated[int, Field(ge=0, lt=2**31)]], Field(max_length=MOST_TOKENS)]


async def tokens_of(sources: Sources, caller: Caller, body: TokenizeRequest) -> tuple[str, list[int]]:
    """The model, and the ids of what it would be sent.

    Raises:
        AppError: whatever is wrong with the request, naming the parameter.
    """
    if (body.prompt is None) == (body.messages is None):
        raise invalid("prompt", "give either a prompt or messages")
    special = body.messages is None if body.add_special_tokens is None else body.add_special_tokens
    if body.prompt is not None:
        chosen = await sources.adapters.resolve(caller, body.model)
        longest = sources.settings.max_content_chars
        if len(body.prompt) > longest:
            raise invalid("prompt", f"is longer than {longest:,} characters")
        return chosen.model, await sources.tokenizers.encode(chosen.model, body.prompt, special=special)
    chat = {name: getattr(body, name) for name in OF_A_CHAT if getattr(body, name) is not None}
    prepared = await prepare_chat(sources, caller, checked(ChatRequest, chat | {"model": body.model}))
    return prepared.model, await encoded(sources, prepared, special)


async def input_tokens(sources: Sources, caller: Caller, body: ResponseRequest) -> int:
    """How many tokens the prompt of a response has, that of the conversation before it too."""
    prepared = await prepare_response(sources, caller, body)
    return len(await encoded(sources, prepared, special=True))


async def encoded(sources: Sources, prepared: Prepared, special: bool) -> list[int]:
    messages = prepared.prompt.messages or []
    text = await chat_prompt(sources.templates, prepared.model, messages, prepared.kind, prepared.request)
    return await sources.tokenizers.encode(prepared.model, text, special=special)
