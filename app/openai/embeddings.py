"""POST /v1/embeddings, for models that turn text into a vector."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field
from pydantic_core import to_json

from app.db.tables.contexts import Prompt
from app.errors import invalid
from app.openai.answers import Face, Row, choices_of, model_of
from app.openai.requests import OpenAIRequest, Prepared, Sources, checked, unsupported
from app.services.callers import Caller
from app.services.webhooks import accepted
from app.tasks.embed import EmbeddingParameters, vector

KIND = "embedding"
MOST_TEXTS = 2048


class EmbeddingRequest(OpenAIRequest):
    input: str | list[Any] = Field(description=f"a text, or at most {MOST_TEXTS} texts", examples=["A small lamp."])
    encoding_format: Literal["float", "base64"] | None = Field(
        None, description="base64 is that of little-endian float32"
    )
    dimensions: int | None = Field(None, description="models here have one size only")


async def prepare_embedding(services: Sources, caller: Caller, body: EmbeddingRequest | Mapping[str, Any]) -> Prepared:
    """One ticket for all texts of the request; its context is their JSON array.

    Raises:
        AppError: whatever is wrong with it, naming the parameter.
    """
    wanted = body if isinstance(body, EmbeddingRequest) else checked(EmbeddingRequest, body)
    chosen = await services.adapters.resolve(caller, wanted.model)
    if chosen.adapter is not None:
        raise unsupported("model", f"adapters generate text only; embeddings are made by {chosen.model}")
    if wanted.dimensions is not None:
        raise unsupported("dimensions", "the model has one size only; leave it out")
    texts = [wanted.input] if isinstance(wanted.input, str) else wanted.input
    if not all(isinstance(text, str) for text in texts):
        raise unsupported("input", "takes text, not token ids")
    if not texts or not all(texts):
        raise invalid("input", "must not be empty")
    if len(texts) > MOST_TEXTS:
        raise invalid("input", f"holds more than {MOST_TEXTS:,} texts")
    longest = services.settings.max_content_chars
    if sum(map(len, texts)) > longest:
        raise invalid("input", f"is longer than {longest:,} characters")
    prompt, webhook = Prompt(to_json(texts).decode()), accepted(wanted.webhook, services.settings)
    return Prepared(chosen.model, prompt, EmbeddingParameters(), KIND, wanted.stored("input"), webhook)


def render_embedding(row: Row, request: Mapping[str, Any]) -> dict[str, Any]:
    """A completed result as OpenAI's list of embeddings."""
    encoded = request.get("encoding_format") == "base64"
    tokens = row["prompt_tokens"] or 0
    return {
        "object": "list",
        "data": [
            {
                "object": "embedding",
                "index": each["index"],
                "embedding": each["text"] if encoded else vector(each["text"]),
            }
            for each in choices_of(row)
        ],
        "model": model_of(row, request),
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
    }


FACE = Face(KIND, "/v1/embeddings", render_embedding)
