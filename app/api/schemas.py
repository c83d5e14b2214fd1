"""Bodies of requests and answers."""

from collections.abc import Mapping
from dataclasses import asdict
from datetime import datetime
from typing import Annotated, Any, Literal, Self
from urllib.parse import quote
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from app.db.tables import results
from app.queue.ticket import PRIORITY_HIGHEST, PRIORITY_LOWEST, Phase, Status
from app.services.results import Waiting, phase
from app.services.webhooks import DeliveryState, Webhook
from app.services.wishes import Wish
from app.storable import StorableObject, StorableText
from app.tasks.generate import SamplingParameters
from app.tasks.infer import INFER
from app.tasks.tensors import FLOATS, MOST_TENSORS, InputTensor

LONGEST_LIFE_SECONDS = 30 * 24 * 3600
ClientReference = Annotated[StorableText, Field(min_length=1, max_length=200)]


ServerName = Annotated[StorableText, Field(min_length=1, max_length=2000)]
ServerKinds = Annotated[list[Annotated[StorableText, Field(max_length=50)]], Field(min_length=1, max_length=16)]


class RequestBody(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class ContextCreate(RequestBody):
    content: Annotated[StorableText, Field(min_length=1, examples=["Name three uses of a paper clip."])] | None = None
    inputs: Annotated[list[InputTensor], Field(min_length=1, max_length=MOST_TENSORS)] | None = Field(
        None, description="instead of `content`: tensors, in the JSON of KServe v2"
    )
    metadata: StorableObject | None = Field(None, examples=[{"source": "demo"}])

    @model_validator(mode="after")
    def _says_one_thing(self) -> Self:
        if (self.content is None) == (self.inputs is None):
            raise PydanticCustomError("content_or_inputs", "give either content, a text, or inputs, tensors")
        return self


class Context(BaseModel):
    id: UUID
    content: str | None = Field(description="of a chat, what its model's template makes of it; null where that is gone")
    inputs: list[InputTensor] | None = Field(None, description="of a model that takes tensors")
    metadata: dict[str, Any] | None
    created_at: datetime


class WishOptions(RequestBody):
    server: ServerName | None = Field(None, description="the name of the server that is to run it")
    server_kinds: ServerKinds | None = Field(None, description="the kinds of servers that may run it")

    @property
    def wish(self) -> Wish:
        return Wish(self.server, tuple(self.server_kinds or ()))

    @model_validator(mode="after")
    def _wishes_one_thing(self) -> Self:
        if self.server is not None and self.server_kinds is not None:
            raise PydanticCustomError("server_or_kinds", "give either server or server_kinds")
        return self


class SendOptions(WishOptions):
    parameters: SamplingParameters = Field(default_factory=SamplingParameters)
    priority: int = Field(0, ge=PRIORITY_LOWEST, le=PRIORITY_HIGHEST, description="higher is served first")
    expires_in: float | None = Field(
        None,
        gt=0,
        le=LONGEST_LIFE_SECONDS,
        allow_inf_nan=False,
        description="seconds; a result not finished by then fails with the code `expired`, so one that expires "
        "soon goes earlier",
    )
    client_reference: ClientReference | None = Field(None, description="a name of your own, to find it by")
    webhook: Webhook | None = Field(None, description="whom to tell of the end; else whom the API key names")
    stream: bool = Field(
        False,
        description="have the text as it is generated: to follow it, and to keep what there is when it is cancelled; "
        "else it comes whole, at the end",
    )


class WishedServers(BaseModel):
    server: str | None
    server_kinds: list[str] | None


class Ticket(BaseModel):
    result_id: UUID
    status: Status
    phase: Phase | None
    model: str
    context_id: UUID
    retry_of: UUID | None = Field(description="the result that this one tries again")
    created_at: datetime
    status_url: str
    cancel_url: str


class Usage(BaseModel):
    prompt_tokens: int | None
    completion_tokens: int | None


class ResultError(BaseModel):
    code: str
    message: str


class Cancellation(BaseModel):
    requested_at: datetime
    engine_stopped_at: datetime | None = Field(description="null where no engine ran it at the time")


class WaitingState(BaseModel):
    reason: str = Field(
        description="queued, no_server, model_loading, model_down or backoff; of a model that has a pool of hosts also "
        "host_starting, no_offer, budget, max_hosts, hosts_busy, hosts_fail or not_yet"
    )
    detail: str | None = Field(
        description="with model_down: since when, why, and what is done about it; with a wish: what its servers lack; "
        "with a reason of hosts: what stands in the way"
    )
    ahead_seconds: float | None = Field(
        description="it is served as if it had come so much earlier, because it expires soon; null where it does not"
    )
    host: str | None = Field(description="with host_starting: the host")
    step: str | None = Field(description="with host_starting: what it does")
    estimated_ready_at: datetime | None = Field(description="with host_starting")
    position: int = Field(
        description="among the owner's results for the model; 1 is next, 1001 is everything beyond 1,000"
    )


class Provenance(BaseModel):
    server: str = Field(description="its name")
    kind: str
    engine_version: str | None = Field(description="null, as the next, where the server does not tell")
    model_revision: str | None
    parameters: dict[str, Any] = Field(description="as they were really sent, by the server's own names")
    usage_estimated: bool = Field(False, description="true where the engine counts no tokens")


class Choice(BaseModel):
    index: int
    text: str
    finish_reason: str | None
    cumulative_logprob: float | None = None
    logprobs: list[dict[str, Any]] | None = None


class OutputFile(BaseModel):
    path: str = Field(examples=["/results/0198c0de-0000-7000-8000-000000000000/outputs/image"])
    media_type: str
    bytes: int


class OutputTensor(BaseModel):
    name: str
    datatype: str
    shape: list[int]
    response: int = Field(description="of a decoupled model, the number of the response that has it")
    data: list[Any] | None = Field(None, description="the elements, flat; null where they are files")
    files: list[OutputFile] | None = Field(
        None, description="what is binary or large: each element of BYTES, or all numbers of a tensor, little-endian"
    )

    @classmethod
    def of(cls, result_id: UUID, output: Mapping[str, Any]) -> Self:
        """A tensor of a stored answer or event."""
        files = None
        if "files" in output:
            path = f"/results/{result_id}/outputs/{quote(output['name'], safe='')}"
            files = [
                OutputFile(path=path + _which(output["response"], element), **file)
                for element, file in enumerate(output["files"])
            ]
        data = output.get("data")
        if data is not None and output["datatype"] in FLOATS:
            # Postgres writes large numbers without a point.
            data = [None if number is None else float(number) for number in data]
        return cls(**dict(output) | {"data": data, "files": files})


class Result(BaseModel):
    id: UUID
    context_id: UUID
    retry_of: UUID | None = Field(description="the result that this one tries again")
    model: str
    status: Status
    phase: Phase | None = Field(description="queued, running or cancelling while pending, else null")
    parameters: dict[str, Any] = Field(description="as sent to the engine, defaults filled in")
    output: str | None = Field(description="what was generated, without the prompt")
    outputs: list[Choice] | list[OutputTensor] | None = Field(
        description="all choices, when n > 1 or logprobs were asked for; or the tensors of a model that has no text"
    )
    finish_reason: str | None
    usage: Usage
    provenance: Provenance | None = Field(description="what made the answer; null until then")
    error: ResultError | None = Field(description="why it failed")
    last_error: ResultError | None = Field(description="while pending, what the last attempt met")
    waiting: WaitingState | None = Field(description="while queued, why; only when one result is asked for")
    cancellation: Cancellation | None
    attempt_count: int
    cost: float | None = Field(
        description="dollars of all its runs, at their servers' prices; null where none is known or none has ended"
    )
    priority: int
    wish: WishedServers | None = Field(description="the servers that may run it; null where any may")
    client_reference: str | None
    kept: bool = Field(description="false for `store: false`: its texts are removed once the answer was delivered")
    created_at: datetime
    started_at: datetime | None
    completed_at: datetime | None
    expires_at: datetime | None

    @classmethod
    def of(cls, row: Mapping[str, Any], waiting: Waiting | None = None) -> Self:
        fields = {name: row[name] for name in _COLUMNS}
        if row["task"] == INFER and row["answer"] is not None:
            fields["outputs"] = [OutputTensor.of(row["id"], output) for output in row["answer"]["outputs"]]
        if not row["kept"]:
            # An answer that was removed is empty.
            fields["output"] = row["output"] or None
        wish = Wish.of(row["wish"])
        fields["wish"] = (
            WishedServers(server=wish.server, server_kinds=list(wish.kinds) or None) if row["wish"] else None
        )
        error = None
        if row["error_code"] is not None:
            error = ResultError(code=row["error_code"], message=row["error_message"])
        cancellation = None
        if row["cancel_requested_at"] is not None:
            cancellation = Cancellation(
                requested_at=row["cancel_requested_at"], engine_stopped_at=row["engine_stopped_at"]
            )
        return cls(
            **fields,
            phase=phase(row),
            usage=Usage(prompt_tokens=row["prompt_tokens"], completion_tokens=row["completion_tokens"]),
            error=error if row["status"] == Status.FAILED else None,
            last_error=error if row["status"] == Status.PENDING else None,
            waiting=None if waiting is None else WaitingState(**asdict(waiting)),
            cancellation=cancellation,
        )


def _which(response: int, element: int) -> str:
    asked = [f"{name}={number}" for name, number in (("response", response), ("element", element)) if number]
    return f"?{'&'.join(asked)}" if asked else ""


# A field of a column's name is that column.
_COLUMNS = tuple(name for name in Result.model_fields if name in results.c)


class Attempt(BaseModel):
    number: int
    dispatcher: str
    server: str | None
    started_at: datetime
    ended_at: datetime
    outcome: str
    error: ResultError | None
    usage: Usage
    provenance: Provenance | None = Field(description="null where no server was asked, or the dispatcher was lost")

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> Self:
        return cls(
            provenance=row["provenance"],
            number=row["number"],
            dispatcher=row["dispatcher"],
            server=row["server"],
            started_at=row["started_at"],
            ended_at=row["ended_at"],
            outcome=row["outcome"],
            error=ResultError(code=row["error_code"], message=row["error_message"]) if row["error_code"] else None,
            usage=Usage(prompt_tokens=row["prompt_tokens"], completion_tokens=row["completion_tokens"]),
        )


class Delivery(BaseModel):
    id: UUID = Field(description="what the receiver gets as `webhook-id`, the same at each try")
    event: str
    url: str
    status: Literal["pending", "delivered", "given_up"]
    tries: int
    last_error: str | None
    created_at: datetime
    next_try_at: datetime | None
    delivered_at: datetime | None

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> Self:
        return cls(
            id=row["id"],
            event=row["event"],
            url=row["url"],
            status=DeliveryState.of(row).value,
            tries=row["tries"],
            last_error=row["last_error"],
            created_at=row["created_at"],
            next_try_at=row["due_at"],
            delivered_at=row["delivered_at"],
        )


class WebhookSecret(BaseModel):
    secret: str = Field(examples=["whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"])


class RotatedSecret(WebhookSecret):
    old_secret_signs_until: datetime


class SetAsideModel(BaseModel):
    """A model that a server calls ready, but that does not answer."""

    server: str
    model: str
    since: datetime
    reason: str
    note: str = Field(description="what is done about it")


class Model(BaseModel):
    name: str
    version: str
    state: str = Field(description="ready, loading or unavailable")
    reason: str | None = Field(description="why it is not ready, or that a simulation answers for it")
    servers: list[str] = Field(description="gRPC addresses of the servers where it is ready")
    set_aside: list[SetAsideModel] = Field(description="where it gets no requests because it does not answer")


class Tensor(BaseModel):
    name: str
    datatype: str
    shape: list[int]


class ModelInput(Tensor):
    optional: bool = False


class ModelDetail(Model):
    inputs: list[ModelInput]
    outputs: list[Tensor]
    statistics: dict[str, list[dict[str, Any]]] = Field(description="Triton's model_stats, by server")


class Problem(BaseModel):
    """RFC 9457 problem details; `code` is stable."""

    type: str
    title: str
    status: int
    code: str
    detail: str
    errors: list[dict[str, str]] | None = None


class Live(BaseModel):
    status: str


class Version(BaseModel):
    version: str


class ServerHealth(BaseModel):
    url: str
    name: str | None = Field(description="what TRITON_SERVERS_FILE calls it")
    up: bool
    reason: str | None
    ready_models: list[str]
    set_aside: list[SetAsideModel] = Field(
        description="models that do not answer, although the server calls them ready"
    )


class Ready(BaseModel):
    status: str = Field(description="ready or unready")
    database: str = Field(description="ok, or what to do")
    triton: list[ServerHealth] = Field(description="reported only: tickets wait while servers are down")
