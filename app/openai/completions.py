"""POST /v1/completions, and the same answer again by its id."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, TypeGuard
from uuid import UUID

from pydantic import Field

from app.db.tables.contexts import Prompt
from app.errors import invalid
from app.openai import logprobs as shapes
from app.openai.answers import Face, Row, RunningUsage, StreamUsage, choices_of, model_of, usage_of
from app.openai.default_model import model_or_default
from app.openai.ids import object_id
from app.openai.requests import GenerationRequest, Prepared, Sources, Unnamed, checked, unsupported
from app.services.callers import Caller
from app.services.streams import Delta
from app.services.webhooks import accepted

KIND = "text_completion"
MOST_PROMPTS = 128


Ids = list[int]


class CompletionRequest(GenerationRequest):
    model: Unnamed = None  # type: ignore[assignment]
    prompt: str | list[Any] = Field(
        description=f"a text, its token ids, or a list of at most {MOST_PROMPTS} of either",
        examples=["Once upon a time"],
    )
    logprobs: Annotated[int | None, Field(ge=0, le=20)] = None
    echo: bool | None = Field(
        None,
        description="puts the prompt before the text, with `logprobs` its tokens too",
    )
    prompt_logprobs: Annotated[
        int | None, Field(ge=0, le=20, description="vLLM's: alternatives at each token of the prompt")
    ] = None
    best_of: int | None = Field(None, description="n is all it may be")


async def prepare_completion(
    services: Sources, caller: Caller, body: CompletionRequest | Mapping[str, Any]
) -> Prepared:
    """A completion of one prompt as a ticket's prompt and parameters; otherwise as `prepare_completions`."""
    prepared = await prepare_completions(services, caller, body)
    if len(prepared) > 1:
        raise unsupported("prompt", "takes one prompt here; send a line for each")
    return prepared[0]


async def prepare_completions(
    services: Sources, caller: Caller, body: CompletionRequest | Mapping[str, Any]
) -> list[Prepared]:
    """A ticket for each prompt of a completion.

    Raises:
        AppError: whatever is wrong with it, naming the parameter.
    """
    wanted = body if isinstance(body, CompletionRequest) else checked(CompletionRequest, body)
    chosen = await services.adapters.resolve(caller, await model_or_default(services, caller, wanted.model))
    prompts = _prompts(wanted.prompt)
    if wanted.best_of is not None and wanted.best_of != (wanted.n or 1):
        raise unsupported("best_of", "all choices are returned; leave it out and send n")
    of_prompt = [wanted.prompt_logprobs, wanted.logprobs if wanted.echo else None]
    alternatives = max((each for each in of_prompt if each is not None), default=None)
    parameters = wanted.sampling(lora_name=chosen.adapter, prompt_logprobs=alternatives)
    webhook = accepted(wanted.webhook, services.settings)
    longest = services.settings.max_content_chars
    made = []
    for place, prompt in enumerate(prompts):
        where = f"prompt[{place}]" if len(prompts) > 1 else "prompt"
        text = prompt if isinstance(prompt, str) else await _text(services, chosen.model, prompt, where)
        if not text:
            raise invalid(where, "must not be empty")
        if len(text) > longest:
            raise invalid(where, f"is longer than {longest:,} characters")
        request = wanted.stored("prompt")
        if wanted.echo:
            request["prompt"] = text
        if len(prompts) > 1:
            request["prompts"] = len(prompts)
        made.append(Prepared(chosen.model, Prompt(text, metadata=wanted.metadata), parameters, KIND, request, webhook))
    return made


async def _text(services: Sources, model: str, ids: Ids, where: str) -> str:
    text = await services.tokenizers.decode(model, ids, where)
    # The engine's tokenizer puts this token before each prompt itself.
    return text.removeprefix(services.templates.first_token(model))


def _prompts(prompt: str | list[Any]) -> list[str | Ids]:
    if isinstance(prompt, str):
        return [prompt]
    if not prompt:
        raise invalid("prompt", "must not be empty")
    if all(map(_is_id, prompt)):
        return [prompt]
    if len(prompt) > MOST_PROMPTS:
        raise invalid("prompt", f"holds more than {MOST_PROMPTS} prompts; a batch takes more")
    if all(isinstance(each, str) for each in prompt) or all(map(is_ids, prompt)):
        return prompt
    raise invalid("prompt", "must be a text, a list of token ids, or a list of either")


def _is_id(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def is_ids(value: Any) -> TypeGuard[Ids]:
    return isinstance(value, list) and bool(value) and all(map(_is_id, value))


def merged(answers: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The answers to several prompts as one: their choices in the order of the prompts, their usage together."""
    choices = [choice for answer in answers for choice in answer["choices"]]
    return answers[0] | {
        "choices": [choice | {"index": index} for index, choice in enumerate(choices)],
        "usage": {name: sum(answer["usage"][name] for answer in answers) for name in answers[0]["usage"]},
    }


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
                "logprobs": _shaped(_told(each["logprobs"], row, request), request),
                "finish_reason": each["finish_reason"],
                **_of_prompt(each["logprobs"], row, request),
            }
            for each in choices_of(row)
        ],
        "usage": usage_of(row),
    }


def _told(logprobs: list[dict[str, Any]] | None, row: Row, request: Mapping[str, Any]) -> list[dict[str, Any]] | None:
    """The tokens of what is shown: without those of the prompt where it is not repeated."""
    hidden = request.get("prompt_logprobs") is not None and not request.get("echo")
    return logprobs[row["prompt_tokens"] or 0 :] if logprobs and hidden else logprobs


def _of_prompt(logprobs: list[dict[str, Any]] | None, row: Row, request: Mapping[str, Any]) -> dict[str, Any]:
    """`prompt_logprobs` as vLLM has it: null for the first token, of which nothing is told."""
    asked = request.get("prompt_logprobs")
    if asked is None:
        return {}
    tokens = (logprobs or [])[: row["prompt_tokens"] or 0]
    return {"prompt_logprobs": shapes.of_prompt(tokens, asked)}


def _shaped(
    logprobs: list[dict[str, Any]] | None, request: Mapping[str, Any], offset: int = 0
) -> dict[str, Any] | None:
    asked = request.get("logprobs")
    return None if asked is None else shapes.of_completion(logprobs, asked, offset)


class CompletionChunks:
    """Makes OpenAI's `text_completion` chunks."""

    def __init__(
        self, id_: UUID, created: int, model: str, request: Mapping[str, Any], usage: StreamUsage, first: int = 0
    ) -> None:
        """`first` is the index of its first choice: more than 0 where others come before it in one answer."""
        self._first = first
        self._head = {"id": object_id(KIND, id_), "object": KIND, "created": created, "model": model}
        self._request = request
        self._usage = usage
        self._running = RunningUsage()
        self._count = request.get("n") or 1
        self._length = [0] * self._count

    def start(self) -> list[dict[str, Any]]:
        if not self._request.get("echo"):
            return []
        return [self._chunk(index, self._request["prompt"]) for index in range(self._count)]

    def delta(self, delta: Delta) -> list[dict[str, Any]]:
        self._running.add(delta)
        logprobs = _shaped(delta.logprobs, self._request, self._length[delta.index])
        if logprobs is not None:
            self._length[delta.index] += sum(map(len, logprobs["tokens"]))
        return [self._chunk(delta.index, delta.text, logprobs=logprobs)] if delta.text or logprobs else []

    def end(self, row: Row) -> list[dict[str, Any]]:
        self._running.end(row)
        made = [self._chunk(each["index"], "", each["finish_reason"]) for each in choices_of(row)]
        if self._usage:
            made.append(self._head | {"choices": [], "usage": usage_of(row)})
        return made

    def _chunk(
        self, index: int, text: str, reason: str | None = None, logprobs: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        choice = {"index": self._first + index, "text": text, "logprobs": logprobs, "finish_reason": reason}
        usage = self._running.of(index) if self._usage == StreamUsage.IN_EACH else None
        return self._head | {"choices": [choice]} | ({"usage": usage} if self._usage else {})


FACE = Face(KIND, "/v1/completions", render_completion, CompletionChunks)
