"""What becomes of each parameter: `python -m app.openai.parameters` prints the table of docs/clients.md."""

from __future__ import annotations

import sys

from app.openai.chat_request import ChatRequest
from app.openai.completions import CompletionRequest
from app.openai.embeddings import EmbeddingRequest
from app.openai.requests import ONLY, UNSUPPORTED, WITHOUT_EFFECT, OpenAIRequest
from app.openai.responses_request import REFUSED, ResponseRequest

ENDPOINTS: dict[str, tuple[type[OpenAIRequest], frozenset[str]]] = {
    "chat": (ChatRequest, frozenset()),
    "completions": (CompletionRequest, frozenset()),
    "embeddings": (EmbeddingRequest, frozenset()),
    "responses": (ResponseRequest, frozenset(REFUSED)),
}


def outcome(name: str, model: type[OpenAIRequest], refused: frozenset[str]) -> str:
    if name in refused:
        return "refused"
    if name in model.model_fields:
        return "no effect" if name in WITHOUT_EFFECT else "honoured"
    return f"`{str(ONLY[name][0]).lower()}` only" if name in ONLY else "refused"


def names() -> list[str]:
    fields = {name for model, _ in ENDPOINTS.values() for name in model.model_fields}
    return sorted(fields | set(UNSUPPORTED) | set(ONLY) | set(REFUSED))


def table() -> str:
    """In Markdown."""
    rows = [["parameter", *ENDPOINTS], ["---"] * (len(ENDPOINTS) + 1)]
    rows += [[f"`{name}`", *(outcome(name, *each) for each in ENDPOINTS.values())] for name in names()]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


if __name__ == "__main__":
    sys.stdout.write(table())
