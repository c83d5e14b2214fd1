"""Bodies of a comparison's requests and answers."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, Any, Literal, Self
from uuid import UUID

from pydantic import BaseModel, Field, ValidationError, model_validator
from pydantic_core import PydanticCustomError

from app.api.schemas import RequestBody, ResultError, SendOptions, Usage, WishOptions
from app.errors import InvalidParameters
from app.openai.chat_request import EXAMPLE, MOST_MESSAGES
from app.openai.messages import Message
from app.queue.ticket import Phase, Status
from app.services.comparisons import Comparison, Contender
from app.services.results import phase
from app.storable import StorableObject, StorableText
from app.tasks.generate import SamplingParameters

MAX_ENTRIES = 16
ModelName = Annotated[StorableText, Field(min_length=1, max_length=255, examples=["demo"])]


class Entry(WishOptions):
    model: ModelName
    parameters: SamplingParameters = Field(
        default_factory=SamplingParameters, description="instead of the common ones of the same name; null for none"
    )


class ComparisonCreate(SendOptions):
    """All that a ticket is sent with is that of every ticket; entries may have other parameters and servers."""

    content: Annotated[StorableText, Field(min_length=1)] | None = Field(None, description="a prompt")
    messages: Annotated[list[Message], Field(min_length=1, max_length=MOST_MESSAGES)] | None = Field(
        None, description="a chat, rendered by each model's own template", examples=EXAMPLE
    )
    context_id: UUID | None = Field(None, strict=False, description="a stored prompt")
    metadata: StorableObject | None = Field(None, description="kept with the prompt")
    entries: Annotated[list[Entry], Field(min_length=1, max_length=MAX_ENTRIES)]

    @model_validator(mode="after")
    def _one_prompt(self) -> Self:
        if sum(each is not None for each in (self.content, self.messages, self.context_id)) != 1:
            raise PydanticCustomError("one_prompt", "give exactly one of content, messages, context_id")
        if self.context_id is not None and self.metadata is not None:
            raise PydanticCustomError("stored_metadata", "metadata belong to the stored prompt; leave them out")
        return self

    def contenders(self) -> list[Contender]:
        """Each entry with its parameters over the common ones.

        Raises:
            InvalidParameters: together they contradict each other.
        """
        common = _given(self.parameters)
        made = []
        for place, entry in enumerate(self.entries):
            try:
                parameters = SamplingParameters.model_validate(common | _given(entry.parameters))
            except ValidationError as error:
                message = str(error.errors(include_url=False)[0]["msg"])
                field = f"entries.{place}.parameters"
                raise InvalidParameters(f"{field}: {message}", errors=[{"field": field, "message": message}]) from None
            wish = entry.wish if entry.wish.stored else self.wish
            made.append(Contender(entry.model, parameters, wish))
        return made


class PickCreate(RequestBody):
    result_id: UUID | None = Field(None, strict=False, description="the best of the answers; null where none is better")


class Pick(BaseModel):
    comparison_id: UUID
    result_id: UUID | None = Field(description="null where none was better than the others")
    model: str | None = Field(description="whose answer was picked")
    server: str | None = Field(description="which server had made it")
    models: list[str] = Field(description="all that were compared, in the order of the comparison")
    key_id: UUID | None = Field(description="who picked; null for a caller without a key")
    created_at: datetime

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> Self:
        return cls(**{name: row[name] for name in cls.model_fields})


def _given(parameters: SamplingParameters) -> dict[str, Any]:
    return parameters.model_dump(exclude_unset=True, by_alias=True)


class Ranked(BaseModel):
    result_id: UUID
    model: str
    status: Status | Literal["removed"] = Field(description="removed: the result was deleted on its own")


class Answer(Ranked):
    phase: Phase | None = Field(description="queued, running or cancelling while pending, else null")
    output: str | None = Field(description="null too where the texts come to more than 8 MiB together")
    finish_reason: str | None
    usage: Usage
    seconds: float | None = Field(description="from its first start to its end")
    cost: float | None = Field(description="dollars; null where the server's price is not known")
    server: str | None
    error: ResultError | None = Field(description="why it failed")
    result_url: str


class ComparisonSummary(BaseModel):
    id: UUID
    status: Status = Field(description="pending while a result is, then completed if one is, else failed")
    context_id: UUID
    created_at: datetime
    entries: list[Ranked]

    @classmethod
    def of(cls, comparison: Comparison) -> Self:
        entries = [
            Ranked(result_id=id_, model=model, status="removed" if row is None else row["status"])
            for id_, model, row in _entries(comparison)
        ]
        return cls(**_shared(comparison), entries=entries)


class ComparisonTable(BaseModel):
    id: UUID
    status: Status = Field(description="pending while a result is, then completed if one is, else failed")
    context_id: UUID
    created_at: datetime
    entries: list[Answer] = Field(description="in the order of the request")
    stream_url: str
    cancel_url: str

    @classmethod
    def of(cls, comparison: Comparison, root: str) -> Self:
        url = f"{root}/comparisons/{comparison.row['id']}"
        entries = [_answer(id_, model, row, root) for id_, model, row in _entries(comparison)]
        return cls(**_shared(comparison), entries=entries, stream_url=f"{url}/stream", cancel_url=f"{url}/cancel")


def _shared(comparison: Comparison) -> dict[str, Any]:
    return {name: comparison.row[name] for name in ("id", "context_id", "created_at")} | {"status": comparison.status}


def _entries(comparison: Comparison) -> list[tuple[UUID, str, Mapping[str, Any] | None]]:
    row = comparison.row
    pairs = zip(row["result_ids"], row["models"], strict=True)
    return [(id_, model, comparison.results.get(id_)) for id_, model in pairs]


def _answer(id_: UUID, model: str, row: Mapping[str, Any] | None, root: str) -> Answer:
    if row is None:
        gone: dict[str, Any] = dict.fromkeys(("phase", "output", "finish_reason", "seconds", "cost", "server", "error"))
        usage = Usage(prompt_tokens=None, completion_tokens=None)
        return Answer(
            result_id=id_, model=model, status="removed", usage=usage, result_url=f"{root}/results/{id_}", **gone
        )
    error = None
    if row["status"] == Status.FAILED:
        error = ResultError(code=row["error_code"], message=row["error_message"])
    return Answer(
        result_id=id_,
        model=model,
        status=row["status"],
        phase=phase(row),
        output=row["output"],
        finish_reason=row["finish_reason"],
        usage=Usage(prompt_tokens=row["prompt_tokens"], completion_tokens=row["completion_tokens"]),
        seconds=row["seconds"],
        cost=row["cost"],
        server=row["server"],
        error=error,
        result_url=f"{root}/results/{id_}",
    )
