"""POST /v1/completions, and the same answer again by its id."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any
from uuid import UUID

from pydantic import Field

from app.db.tables.contexts import Prompt
from app.errors import invalid
from app.openai import logprobs as shapes
from app.openai.answers import Face, Row, choices_of, model_of, usage_of
from app.openai.ids import object_id
from app.openai.requests import GenerationRequest, Prepared, Sources, checked, unsupported
from app.services.callers import Caller
from app.services.streams import Delta
from app.services.webhooks import accepted

KIND = "text_completion"


class CompletionRequest(GenerationRequest):
    prompt: str | list[Any] = Field(
        description="one text; a list may hold one text only", examples=["Once upon a time"]
    )
    logprobs: Annotated[int | None, Field(ge=0, le=20)] = None
    echo: bool | None = Field(None, description="puts the prompt before the text")
    best_of: int | None = Field(None, description="n is all it may be")


async def prepare_completion(
    services: Sources, caller: Caller, body: CompletionRequest | Mapping[str, Any]
) -> Prepared:
    """A completion as a ticket's prompt and parameters.

    Raises:
        AppError: whatever is wrong with it, naming the parameter.
    """
    wanted = body if isinstance(body, CompletionRequest) else checked(CompletionRequest, body)
    chosen = await services.adapters.resolve(caller, wanted.model)
    prompt = _one_text(wanted.prompt)
    if not prompt:
        raise invalid("prompt", "must not be empty")
    longest = services.settings.max_content_chars
    if len(prompt) > longest:
        raise invalid("prompt", f"is longer than {longest:,} characters")
    if wanted.best_of is not None and wanted.best_of != (wanted.n or 1):
        raise unsupported("best_of", "all choices are returned; leave it out and send n")
    if wanted.echo and wanted.logprobs is not None:
        raise unsupported("echo", "the backend returns no log probabilities of the prompt; leave out logprobs or echo")
    request = wanted.stored("prompt")
    if wanted.echo:
        request["prompt"] = prompt
    parameters = wanted.sampling(lora_name=chosen.adapter)
    webhook = accepted(wanted.webhook, services.settings)
    return Prepared(chosen.model, Prompt(prompt, metadata=wanted.metadata), parameters, KIND, request, webhook)


def _one_text(prompt: str | list[Any]) -> str:
    if isinstance(prompt, str):
        return prompt
    if len(prompt) == 1 and isinstance(prompt[0], str):
        return prompt[0]
    if prompt and all(isinstance(each, str) for each in prompt):
        raise unsupported("prompt", "takes one text; send a request for each, or a batch")
    raise unsupported("prompt", "takes text, not token ids")


def render_completion(row: Row, request: Mapping[str, Any]) -> dict[str, Any]:
    """A completed result as OpenAI's `text_completion`; `request` as `Prepared` has it."""
    before = request.get("prompt", "") if request.get("echo") else ""
    return {
        "id": object_id(KIND, row["id"]),
        "object": KIND,
        "created": int(row["created_at"].timestamp()),
        "model": model_of(row, request),
        "choices": [
            {
                "index": each["index"],
                "text": before + each["text"],
                "logprobs": _shaped(each["logprobs"], request),
                "finish_reason": each["finish_reason"],
            }
            for each in choices_of(row)
        ],
        "usage": usage_of(row),
    }


def _shaped(
    logprobs: list[dict[str, Any]] | None, request: Mapping[str, Any], offset: int = 0
) -> dict[str, Any] | None:
    asked = request.get("logprobs")
    return None if asked is None else shapes.of_completion(logprobs, asked, offset)


class CompletionChunks:
    """Makes OpenAI's `text_completion` chunks."""

    def __init__(self, id_: UUID, created: int, model: str, request: Mapping[str, Any], usage: bool) -> None:
        self._head = {"id": object_id(KIND, id_), "object": KIND, "created": created, "model": model}
        self._request = request
        self._usage = usage
        self._count = request.get("n") or 1
        self._length = [0] * self._count

    def start(self) -> list[dict[str, Any]]:
        if not self._request.get("echo"):
            return []
        return [self._chunk(index, self._request["prompt"]) for index in range(self._count)]

    def delta(self, delta: Delta) -> list[dict[str, Any]]:
        logprobs = _shaped(delta.logprobs, self._request, self._length[delta.index])
        if logprobs is not None:
            self._length[delta.index] += sum(map(len, logprobs["tokens"]))
        return [self._chunk(delta.index, delta.text, logprobs=logprobs)] if delta.text or logprobs else []

    def end(self, row: Row) -> list[dict[str, Any]]:
        made = [self._chunk(each["index"], "", each["finish_reason"]) for each in choices_of(row)]
        if self._usage:
            made.append(self._head | {"choices": [], "usage": usage_of(row)})
        return made

    def _chunk(
        self, index: int, text: str, reason: str | None = None, logprobs: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        choice = {"index": index, "text": text, "logprobs": logprobs, "finish_reason": reason}
        return self._head | {"choices": [choice]} | ({"usage": None} if self._usage else {})


FACE = Face(KIND, "/v1/completions", render_completion, CompletionChunks)
