"""New tickets: for a stored context, for a prompt that comes along, or once more for a final result."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple
from uuid import UUID

from pydantic_core import PydanticCustomError

from app.config import Settings
from app.db.ids import time_of, uuid7
from app.db.tables.contexts import Prompt
from app.errors import ContextNotFound, InvalidParameters, LineDefective, Removed, ResultPending, invalid
from app.queue import columns
from app.queue.bulk import statements_of
from app.queue.store import QueueStore, submission_row, submission_size
from app.queue.submit import LARGEST_BATCH, Submitter
from app.queue.ticket import Idempotency, Status, Submission, rank_of
from app.services.callers import Caller
from app.services.catalog import Catalog
from app.services.contexts import Contexts
from app.services.engine_parameters import engine_parameters, require_bounded
from app.services.idempotency import idempotency_of, made_before
from app.services.inputs import Inputs
from app.services.limits import Limits
from app.services.results import Results
from app.services.wishes import ANY, Wish, Wishes
from app.tasks import task_of
from app.tasks.embed import EmbeddingParameters
from app.tasks.generate import SamplingParameters
from app.tasks.infer import INFER, InferParameters
from app.telemetry import tracing
from app.telemetry.metrics import SUBMITTED, of_model

# What a retry has anew: everything else it takes from the ticket it tries again.
OF_ONE_TICKET = {
    *("id", "owner_id", "key_id", "created_at", "rank", "expires_at", "retry_of", "streamed", "trace_parent"),
    "conversation_id",
}

# Why a result cannot be tried again, where many are.
NOT_AGAIN = (ResultPending, LineDefective, Removed, InvalidParameters)
NO_PARAMETERS = "are for texts, and this context holds tensors: what a model is told besides is an input of its own"


class Turn(NamedTuple):
    """A conversation that a response belongs to, and how many of its messages, the last ones, it adds."""

    conversation_id: UUID
    added: int


class Submissions:
    def __init__(
        self,
        store: QueueStore,
        contexts: Contexts,
        results: Results,
        catalog: Catalog,
        limits: Limits,
        inputs: Inputs,
        wishes: Wishes,
        settings: Settings,
    ) -> None:
        self._wishes = wishes
        self._inputs = inputs
        self._store = store
        self._submitter = Submitter(store.submit_rows, submission_size)
        self._contexts = contexts
        self._results = results
        self._catalog = catalog
        self._limits = limits
        self._settings = settings

    async def submit(
        self,
        caller: Caller,
        model: str,
        context_id: UUID,
        parameters: SamplingParameters,
        *,
        priority: int = 0,
        expires_in: float | None = None,
        client_reference: str | None = None,
        streamed: bool = False,
        idempotency_key: str | None = None,
        webhook: dict[str, Any] | None = None,
        wish: Wish = ANY,
    ) -> tuple[Mapping[str, Any], bool]:
        """Stores a ticket, committed when this returns; True when an earlier request with the key had made it.

        How it is brought, `streamed` or not, makes no other request of it: a key does not tell these apart.
        `expires_in` in seconds; `webhook` as `accepted` gives it, the key's own where it is None. The row has at least
        the columns of a new ticket.

        Raises:
            InvalidParameters: the parameters contradict each other.
            ModelNotFound: no server has ever served the model.
            InvalidRequest: there is no such server or kind as the wish names.
            ContextNotFound: no such context.
            InvalidInputs: the context holds tensors, which the model does not take.
            IdempotencyMismatch: the key came with another request before.
        """
        engine_parameters = self.for_engine(parameters)
        await self._catalog.require(model)
        await self._wishes.require(wish)
        idempotency = idempotency_of(
            idempotency_key,
            "send",
            model,
            context_id,
            engine_parameters,
            priority,
            expires_in,
            client_reference,
            webhook,
            *wish.distinct,
        )
        submission = self.ticket(
            caller,
            context_id,
            model,
            engine_parameters,
            priority,
            expires_in,
            client_reference,
            idempotency=idempotency,
            streamed=streamed,
            webhook=webhook or caller.webhook,
            wish=wish.stored,
        )
        return await self._store_once(caller, submission, sampled=bool(parameters.model_fields_set))

    async def submit_prompt(
        self,
        caller: Caller,
        model: str,
        prompt: Prompt,
        parameters: SamplingParameters | EmbeddingParameters | InferParameters,
        *,
        kind: str,
        request: dict[str, Any],
        streamed: bool = False,
        priority: int = 0,
        expires_in: float | None = None,
        client_reference: str | None = None,
        idempotency_key: str | None = None,
        webhook: dict[str, Any] | None = None,
        kept: bool = True,
        wish: Wish = ANY,
        turn: Turn | None = None,
    ) -> tuple[Mapping[str, Any], bool]:
        """Stores a prompt and its ticket in one statement; otherwise as `submit`. Tensors are as `stored` gives them.

        `kind` and `request` are what the answer is rendered by. What is not `kept` loses its texts once delivered.
        """
        engine_parameters = self.for_engine(parameters, nested=False)
        await self._catalog.require(model)
        await self._wishes.require(wish)
        if prompt.inputs is not None:
            await self._inputs.require(model, prompt.inputs)
        said = prompt.messages
        if said is not None and turn is not None:
            # Meanwhile the conversation may have gone on.
            said = said[len(said) - turn.added :]
        submission = self.ticket(
            caller,
            uuid7(),
            model,
            engine_parameters,
            priority,
            expires_in,
            client_reference,
            # A template may write the date into the prompt: the messages tell whether it is the same request.
            idempotency=idempotency_of(
                idempotency_key,
                kind,
                model,
                said or prompt.content or prompt.inputs,
                prompt.metadata,
                engine_parameters,
                request,
                priority,
                expires_in,
                webhook,
                *wish.distinct,
            ),
            prompt=prompt,
            task=task_of(engine_parameters),
            kind=kind,
            request=request,
            streamed=streamed,
            webhook=webhook or caller.webhook,
            kept=kept,
            wish=wish.stored,
            conversation_id=None if turn is None else turn.conversation_id,
        )
        return await self._store_once(caller, submission)

    def for_engine(
        self, parameters: SamplingParameters | EmbeddingParameters | InferParameters, *, nested: bool = True
    ) -> dict[str, Any]:
        """The parameters as the engine gets them; raises InvalidParameters."""
        return engine_parameters(parameters, self._settings, nested=nested)

    async def retry(
        self, caller: Caller, id_: UUID, idempotency_key: str | None = None, *, streamed: bool = False
    ) -> tuple[Mapping[str, Any], bool]:
        """A new ticket for what a final result asked for; the old one stays. Returns as `submit` does.

        Raises:
            ResultNotFound: no such result.
            ResultPending: it is not final yet.
            LineDefective: it never had a prompt.
            Removed: its prompt is not kept.
            InvalidParameters: its answer may come to more than is allowed by now.
            IdempotencyMismatch: the key came with another request before.
        """
        old = await self._results.get(caller, id_)
        tracing.link(old["trace_parent"])
        return await self._store_once(caller, replace(self._again(caller, old, idempotency_key), streamed=streamed))

    async def retry_many(self, caller: Caller, ids: Collection[UUID], idempotency_key: str) -> int:
        """As `retry` for each of them, by few statements; returns how many new tickets there are, made before or now.

        The key of each is `idempotency_key` and its id. Those that cannot be tried again are left out.

        Raises:
            PendingLimitReached: none of them was stored.
        """
        submissions = []
        found = await self._results.get_many(caller, ids)
        for id_ in filter(found.__contains__, ids):
            with suppress(*NOT_AGAIN):
                submissions.append(self._again(caller, found[id_], f"{idempotency_key}-{id_}"))
        made = 0
        rows = {submission.id: submission_row(submission) for submission in submissions}
        for part in statements_of(submissions, LARGEST_BATCH, lambda each: submission_size(rows[each.id])):
            async with self._limits.storing(caller, [submission.id for submission in part]):
                stored = await self._store.submit_rows([rows[submission.id] for submission in part])
            for submission in part:
                if submission.id in stored:
                    of_model(SUBMITTED, submission.model).inc()
                    made += 1
                else:
                    # Made before, or its context is gone.
                    with suppress(*NOT_AGAIN, ContextNotFound):
                        await self._store_once(caller, submission)
                        made += 1
        return made

    def _again(self, caller: Caller, old: Mapping[str, Any], idempotency_key: str | None) -> Submission:
        """Raises what `retry` does of a result that there is."""
        id_ = old["id"]
        if not Status(old["status"]).final:
            raise ResultPending(f"Result {id_} is pending and will be run: wait for its end, or cancel it first.")
        if old["error_code"] == LineDefective.code:
            raise LineDefective(
                f"Result {id_} is a line of a batch that was never made into a prompt: send its request again instead."
            )
        if not old["kept"]:
            raise Removed(f"Result {id_} came with store: false, so its prompt is not kept: send its request again.")
        try:
            require_bounded(old["parameters"], self._settings)
        except PydanticCustomError as error:
            raise InvalidParameters(
                f"Result {id_} cannot be tried again as it is: {error.message()}. Send its context with other "
                "parameters instead."
            ) from None
        life = None if old["expires_at"] is None else (old["expires_at"] - old["created_at"]).total_seconds()
        webhook = old["webhook"] or caller.webhook
        new = self.ticket(
            caller,
            old["context_id"],
            old["model"],
            old["parameters"],
            old["priority"],
            life,
            old["client_reference"],
            retry_of=id_,
            idempotency=idempotency_of(idempotency_key, "retry", id_),
        )
        asked = {name: old[name] for name in columns.SUBMITTED.names if name not in OF_ONE_TICKET}
        return replace(new, **asked | {"webhook": webhook})

    def ticket(
        self,
        caller: Caller,
        context_id: UUID,
        model: str,
        parameters: dict[str, Any],
        priority: int,
        expires_in: float | None,
        client_reference: str | None,
        *,
        idempotency: Idempotency | None = None,
        **more: Any,
    ) -> Submission:
        # Every ticket of a caller is made here; `more` are other attributes of it.
        caller.require_model(model, parameters.get("lora_name"))
        id_ = uuid7()
        created_at = time_of(id_)
        expires_at = None if expires_in is None else datetime.now(UTC) + timedelta(seconds=expires_in)
        return Submission(
            id=id_,
            context_id=context_id,
            model=model,
            parameters=parameters,
            priority=priority,
            rank=rank_of(created_at, priority, self._settings.priority_ageing_seconds, expires_at),
            created_at=created_at,
            expires_at=expires_at,
            client_reference=client_reference,
            idempotency=idempotency,
            owner_id=caller.owner_id,
            key_id=caller.key_id,
            trace_parent=tracing.current(),
            **more,
        )

    async def _store_once(
        self, caller: Caller, submission: Submission, *, sampled: bool = False
    ) -> tuple[Mapping[str, Any], bool]:
        """`sampled` says that the request has parameters of its own."""
        while not await self._store_within_limits(caller, submission):
            if earlier := await made_before(self._store, caller.owner_id, submission.idempotency):
                return await self._results.get(caller, earlier), True
            # Not the key, or a key that ran out just now: then the context decides.
            if submission.prompt is None:
                context = await self._contexts.get(caller, submission.context_id)
                if context["inputs"] is not None and submission.task != INFER:
                    if sampled:
                        raise invalid("parameters", NO_PARAMETERS)
                    await self._inputs.require(submission.model, context["inputs"])
                    parameters = InferParameters().for_engine(0)
                    submission = replace(submission, task=INFER, parameters=parameters)
        of_model(SUBMITTED, submission.model).inc()
        return row_of(submission), False

    async def _store_within_limits(self, caller: Caller, submission: Submission) -> bool:
        row, keyed = submission_row(submission), submission.idempotency is not None
        if caller.pending_limit is None:
            return await self._submitter.submit(submission.id, row, keyed=keyed)
        async with self._limits.storing(caller, (submission.id,)):
            return await self._submitter.submit(submission.id, row, keyed=keyed)


def row_of(submission: Submission) -> dict[str, Any]:
    """A new ticket as it is read, less what no answer to a submit shows."""
    return columns.SUBMITTED.attributes(submission) | {
        "status": Status.PENDING,
        "attempt_token": None,
        "cancel_requested_at": None,
    }
