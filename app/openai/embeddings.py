"""POST /v1/embeddings, for models that turn text into a vector."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field
from pydantic_core import to_json

from app.db.tables.contexts import Prompt
from app.errors import invalid
from app.openai.answers import Face, Row, choices_of, model_of
from app.openai.completions import is_ids
from app.openai.requests import OpenAIRequest, Prepared, Sources, checked, unsupported
from app.services.callers import Caller
from app.services.webhooks import accepted
from app.tasks.embed import EmbeddingParameters, shortened, vector

KIND = "embedding"
MOST_TEXTS = 2048


class EmbeddingRequest(OpenAIRequest):
    input: str | list[Any] = Field(
        description=f"a text, its token ids, or at most {MOST_TEXTS} of either", examples=["A small lamp."]
    )
    encoding_format: Literal["float", "base64"] | None = Field(
        None, description="base64 is that of little-endian float32"
    )
    dimensions: int | None = Field(None, description="the model's own size, or one that its folder names")


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
        sizes = services.profiles.of(chosen.model).dimensions
        if wanted.dimensions not in sizes:
            known = " or ".join(map(str, sizes)) or "what the model has, which is not known here: leave it out"
            raise unsupported("dimensions", f"can be {known}")
    texts = [wanted.input] if isinstance(wanted.input, str) else wanted.input
    if texts and all(isinstance(each, int) and not isinstance(each, bool) for each in texts):
        texts = [texts]
    if len(texts) <= MOST_TEXTS:
        texts = [
            await services.tokenizers.decode(chosen.model, each, "input") if is_ids(each) else each for each in texts
        ]
    if not all(isinstance(text, str) for text in texts):
        raise invalid("input", "must be a text, a list of token ids, or a list of either")
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
                "embedding": _embedding(each["text"], request.get("dimensions"), encoded),
            }
            for each in choices_of(row)
        ],
        "model": model_of(row, request),
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
    }


def _embedding(stored: str, size: int | None, encoded: bool) -> str | list[float]:
    """The vector, cut to `size` numbers and then of the length 1 again, in base64 where it is wanted `encoded`."""
    if size is not None:
        stored = shortened(stored, size)
    return stored if encoded else vector(stored)


FACE = Face(KIND, "/v1/embeddings", render_embedding)
