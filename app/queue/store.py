"""The queue: submit, claim, renew, settle, release, cancel. What each statement does stands in statements/."""

from collections.abc import Collection, Mapping, Sequence
from datetime import datetime
from operator import itemgetter
from typing import Any
from uuid import UUID

from pydantic_core import to_json

from app.db.engine import Database
from app.db.tables.contexts import Prompt
from app.errors import DatabaseUnavailable
from app.queue.audit import KEYLESS, Actor
from app.queue.bulk import MAX_STATEMENT_BYTES
from app.queue.columns import ASKED, CLAIMED, PROMPT, SETTLED, SUBMITTED
from app.queue.counting import count_claims, count_final, count_returned
from app.queue.housekeeping import (
    COMPACT_USAGE,
    FORGET_KEYS,
    FORGET_MINUTES,
    FORGET_REQUESTS,
    LOCK_UNUSED_CONTEXTS,
    REMOVE,
    REMOVE_CHATS,
    REMOVE_COMPARISONS,
    REMOVE_CONTEXTS,
)
from app.queue.statements.cancel import ABANDONED, CANCEL, CANCEL_MANY, CANCELLING, NOT_ASKED, SWEEP
from app.queue.statements.channels import IDS_PER_NOTIFY
from app.queue.statements.claim import CLAIM, CLAIM_ONLY
from app.queue.statements.keys import KEY_IN_USE
from app.queue.statements.position import POSITION
from app.queue.statements.release import RELEASE
from app.queue.statements.renew import RENEW
from app.queue.statements.settle import SETTLE
from app.queue.statements.submit import CREATE_CONTEXT, FLUSH, SUBMIT_UNFLUSHED
from app.queue.ticket import Claim, Claims, Held, Idempotency, Release, Settlement, Submission

SubmissionRow = tuple[Any, ...]
_NO_PROMPT = [None] * len(PROMPT.names)


class QueueStore:
    """The queue's statements; every method raises DatabaseUnavailable when Postgres is out of reach."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def create_context(
        self, id_: UUID, prompt: Prompt, created_at: datetime, idempotency: Idempotency | None, owner_id: int = 0
    ) -> bool:
        """Stores a prompt; False when its Idempotency-Key is in use."""
        return bool(await self.create_contexts([context_row(id_, prompt, created_at, idempotency, owner_id)]))

    async def create_contexts(self, rows: Sequence[SubmissionRow]) -> set[UUID]:
        """As `create_context`, of what `context_row` gives; no two may bring the same key."""
        async with self._database.hot() as connection:
            return {row[0] for row in await connection.fetch(CREATE_CONTEXT, *_arrays(rows))}

    async def key_in_use(self, owner_id: int, key: str) -> tuple[bytes, UUID] | None:
        """What an Idempotency-Key was used for: the digest of the request and the id it made."""
        async with self._database.hot() as connection:
            row = await connection.fetchrow(KEY_IN_USE, owner_id, key)
        return None if row is None else (row["fingerprint"], row["resource_id"])

    async def submit(self, submissions: Sequence[Submission]) -> set[UUID]:
        """Stores tickets in one transaction; returns the ids stored.

        Left out are tickets whose context does not exist, and those whose Idempotency-Key is in use. No two of one
        call may bring the same key.
        """
        return await self.submit_rows([submission_row(submission) for submission in submissions])

    async def submit_rows(self, rows: Sequence[SubmissionRow]) -> set[UUID]:
        """As `submit`, of what `submission_row` gives."""
        arrays = _arrays(rows)
        async with self._database.hot() as connection:
            ids = {row[0] for row in await connection.fetch(SUBMIT_UNFLUSHED, *arrays)}
        # Also where none was stored: an earlier one with the same key is acknowledged then.
        try:
            async with self._database.hot() as connection:
                await connection.fetchval(FLUSH)
        except DatabaseUnavailable as error:
            # They may be stored all the same.
            raise DatabaseUnavailable from error.__cause__
        return ids

    async def claim(
        self,
        slots: Sequence[tuple[str, str, int | None] | tuple[str, str, int | None, int]],
        *,
        lease_seconds: float,
        dispatcher: str,
        holding: Sequence[UUID] = (),
        running: Mapping[tuple[str, int], int] | None = None,
        most_bytes: int = MAX_STATEMENT_BYTES,
        ended: Sequence[UUID] = (),
        named: Collection[tuple[str, str, str]] = (),
        kept_share: float = 0.0,
    ) -> Claims:
        """Claims a result for each slot (model, server, concurrency) while there are any, and room on the server.

        A fourth element is how many more than its concurrency the server may have, to wait in the engine.

        No more than `most_bytes` of prompts and expected answers, or one result that has more.
        Owners take turns by their weights. All dispatchers together get no more of a model on a server than its
        concurrency, for which there must be slots (slots.py); None counts nothing. `holding` are the tokens of claims
        the caller still works on: those it keeps, even if their leases ran out while Postgres was away; the slots of
        those that have `ended` are free. `running` counts what the caller runs, by model and owner. Servers fulfil
        wishes by what `named` says of them: (server, name, kind). The share `kept_share` of a server's slots, rounded
        down, is kept for what is due by its rank.
        """
        if not slots:
            return Claims([], raced=False)
        models, servers, most, unreserved = _columns(slots, lambda slot: _bounds(*slot, kept_share=kept_share))
        busy = running or {}
        async with self._database.hot() as connection:
            # Who works on nothing is probably woken for one ticket alone.
            if not holding and len(set(models)) == 1 and most[0] is not None:
                only = await connection.fetchrow(
                    CLAIM_ONLY, models[0], servers[0], lease_seconds, dispatcher, [], most[0], list(ended)
                )
                if only["id"] is not None or not only["pending"]:
                    claimed = [only] if only["pending"] else []
                    count_claims(claimed)
                    return Claims([_claim(row) for row in claimed], raced=False, granted={models[0]: len(models)})
            rows = await connection.fetch(
                CLAIM,
                models,
                servers,
                lease_seconds,
                dispatcher,
                list(holding),
                [model for model, _ in busy],
                [owner_id for _, owner_id in busy],
                list(busy.values()),
                min(most_bytes, MAX_STATEMENT_BYTES),
                most,
                list(ended),
                *([list(column) for column in zip(*named, strict=True)] or [[], [], []]),
                unreserved,
            )
        claimed = [row for row in rows if row["id"] is not None]
        count_claims(claimed)
        claims = [_claim(row) for row in claimed]
        left_out, admitted = rows[0]["left_out"], rows[0]["admitted"]
        held_back = rows[0]["placed"] - admitted
        raced = rows[0]["seen"] > len(claims) + left_out + held_back or admitted > len(claims)
        return Claims(claims, raced=raced, left_out=left_out, held_back=held_back, granted=rows[0]["granted"] or {})

    async def renew(self, held: Sequence[tuple[UUID, UUID, str | None]], *, lease_seconds: float) -> dict[UUID, Held]:
        """Renews the leases of (id, token, server) in one statement, by token; one that is missing is lost."""
        async with self._database.hot() as connection:
            rows = await connection.fetch(RENEW, *_columns(held, lambda claim: claim), lease_seconds)
        return {row["token"]: Held(row["cancel_requested"], row["expired"], row["streamed"]) for row in rows}

    async def settle(self, settlements: Sequence[Settlement]) -> set[UUID]:
        """Writes final states; returns the ids that were still claimed under their token."""
        columns = _arrays([settlement_row(each) for each in settlements])
        files = [
            (end.id, file.response, file.name, file.element, file.media_type, file.data)
            for end in settlements
            for file in end.files
        ]
        kept = _columns(files, lambda file: file) if files else []
        statement = SETTLE[bool(files), any(end.host_id is not None for end in settlements)]
        async with self._database.hot() as connection:
            rows = await connection.fetch(statement, *columns, *kept)
        count_final(rows)
        return {row["id"] for row in rows}

    async def release(self, releases: Sequence[Release]) -> set[UUID]:
        """Puts claimed results back; returns the ids that were still claimed under their token."""
        columns = _columns(
            releases,
            lambda r: (
                r.id,
                r.token,
                r.outcome.value,
                r.server,
                r.delay,
                r.attempt_spent,
                r.error_code,
                r.error_message,
                r.gpu_seconds,
                r.cost,
                r.host_id,
                None if r.provenance is None else to_json(r.provenance, inf_nan_mode="null").decode(),
            ),
        )
        async with self._database.hot() as connection:
            rows = await connection.fetch(RELEASE, *columns)
        count_returned(rows)
        return {row["id"] for row in rows}

    async def cancel(self, id_: UUID, owner_id: int = 0, actor: Actor = KEYLESS) -> None:
        """Asks for a cancel; a final result stays as it is. What another key made is noted in the audit log."""
        async with self._database.hot() as connection:
            count_final(await connection.fetch(CANCEL, id_, owner_id, actor.key_id, actor.name))

    async def cancel_many(self, ids: Sequence[UUID], owner_id: int, actor: Actor = KEYLESS) -> int:
        """As `cancel`, for those of them that are pending; returns of how many nobody had asked it before."""
        async with self._database.hot() as connection:
            rows = await connection.fetch(CANCEL_MANY, ids, owner_id, actor.key_id, actor.name)
            count_final(rows)
            left = await connection.fetch(NOT_ASKED, ids, owner_id)
        for row in left:
            await self.cancel(row["id"], owner_id, actor)
        return len(rows) + len(left)

    async def position(self, model: str, rank: datetime, id_: UUID, owner_id: int = 0, wish: str = "") -> int:
        """The place among the owner's own results for a model with the same wish.

        1 is next; POSITION_LIMIT + 1 stands for beyond.
        """
        async with self._database.hot() as connection:
            return int(await connection.fetchval(POSITION, model, rank, id_, owner_id, wish))

    async def cancelling(self) -> list[UUID]:
        """Pending results whose cancel was asked for, whoever runs them."""
        async with self._database.hot() as connection:
            return [row[0] for row in await connection.fetch(CANCELLING)]

    async def sweep(self, limit: int = IDS_PER_NOTIFY // 2) -> int:
        """Settles expired and cancelled results that nobody runs; returns how many."""
        async with self._database.hot() as connection:
            if not await connection.fetchval(ABANDONED):
                return 0
            rows = await connection.fetch(SWEEP, limit)
        count_final(rows)
        return len(rows)

    async def remove(self, older_than: UUID, seconds: float, limit: int) -> int:
        """Removes final results made before the id `older_than` and ended `seconds` ago; returns how many."""
        async with self._database.hot() as connection:
            return len(await connection.fetch(REMOVE, older_than, seconds, limit))

    async def remove_contexts(self, after: UUID, older_than: UUID, limit: int) -> tuple[list[UUID], int]:
        """Removes contexts between these ids that have no results; returns the ids looked at, and how many went."""
        async with self._database.transaction() as connection:
            looked, unused = await connection.fetchrow(LOCK_UNUSED_CONTEXTS, after, older_than, limit)
            if unused:
                await connection.execute(REMOVE_CONTEXTS, unused)
        return looked, len(unused)

    async def remove_comparisons(self, older_than: UUID, limit: int) -> int:
        """Removes comparisons made before the id `older_than` that have no results; returns how many."""
        async with self._database.hot() as connection:
            return len(await connection.fetch(REMOVE_COMPARISONS, older_than, limit))

    async def remove_chats(self, seconds: float, limit: int) -> int:
        """Removes chats of the console that were not used for so long; returns how many."""
        async with self._database.hot() as connection:
            return len(await connection.fetch(REMOVE_CHATS, seconds, limit))

    async def forget_keys(self) -> None:
        """Removes Idempotency-Keys that ran out."""
        async with self._database.hot() as connection:
            await connection.execute(FORGET_KEYS)

    async def compact_usage(self) -> None:
        """Merges the rows of the usage table, whose sums stay what they are, and counts the minutes of the new ones."""
        async with self._database.hot() as connection:
            await connection.execute(COMPACT_USAGE)
            await connection.execute(FORGET_MINUTES)

    async def forget_requests(self) -> None:
        """Removes the counts of requests that no limit looks at any longer."""
        async with self._database.hot() as connection:
            await connection.execute(FORGET_REQUESTS)


def _bounds(
    model: str, server: str, concurrency: int | None, ahead: int = 0, *, kept_share: float
) -> tuple[str, str, int | None, int | None]:
    """How many requests the server may have, and how many of those may be of work that yields.

    That has none ahead where slots are kept from it: it would take in the engine what is kept here.
    """
    if concurrency is None:
        return model, server, None, None
    most, kept = concurrency + ahead, int(concurrency * kept_share)
    return model, server, most, concurrency - kept if kept else most


def _columns(rows: Sequence[Any], fields: Any) -> list[list[Any]]:
    return [list(column) for column in zip(*map(fields, rows), strict=True)]


def _arrays(rows: Sequence[SubmissionRow]) -> list[Sequence[Any]]:
    """The rows as `unnest` takes them, which fills up what is short with nulls: a column without a value is empty."""
    return [() if _is_empty(column) else column for column in zip(*rows, strict=True)]


def _is_empty(column: Sequence[Any]) -> bool:
    # What is not None is not compared: that is slow for ids.
    return column[0] is None and column.count(None) == len(column)


def _keyed(idempotency: Idempotency | None) -> tuple[str | None, bytes | None]:
    return (idempotency.key, idempotency.fingerprint) if idempotency else (None, None)


def context_row(
    id_: UUID, prompt: Prompt, created_at: datetime, idempotency: Idempotency | None, owner_id: int
) -> SubmissionRow:
    """The prompt as the statement takes it."""
    return (id_, owner_id, created_at, *_keyed(idempotency), *PROMPT.values(prompt))


def submission_row(submission: Submission) -> SubmissionRow:
    """The ticket as the statement takes it."""
    prompt = submission.prompt
    return (
        *SUBMITTED.values(submission),
        *_keyed(submission.idempotency),
        prompt is not None,
        *(_NO_PROMPT if prompt is None else PROMPT.values(prompt)),
    )


_SUBMISSION_TEXTS = itemgetter(*SUBMITTED.large, *(place - len(PROMPT.names) for place in PROMPT.large))
_CONTEXT_TEXTS = itemgetter(*(place - len(PROMPT.names) for place in PROMPT.large))


def submission_size(row: SubmissionRow) -> int:
    """Characters of what may be long in a `submission_row`."""
    return sum(map(len, filter(None, _SUBMISSION_TEXTS(row))))


def context_size(row: SubmissionRow) -> int:
    """Characters of what may be long in a `context_row`."""
    return sum(map(len, filter(None, _CONTEXT_TEXTS(row))))


def _claim(row: Any) -> Claim:
    code = row["error_code"]
    columns = {name: row[name] for name in CLAIMED.names}
    # A version that knew no tasks says so by the parameters only.
    if isinstance(row["parameters"], dict):
        columns["task"] = row["parameters"].get("task", row["task"])
    return Claim(
        **columns,
        token=row["attempt_token"],
        server=row["server"],
        prompt=Prompt(**{name: row[name] for name in ASKED.names}),
        attempt=row["attempt_count"],
        expires_in=row["expires_in"],
        cancel_requested=row["cancel_requested"],
        last_error=None if code is None else (code, row["error_message"]),
        prompt_bytes=row["prompt_bytes"],
        answer_bytes=row["answer_bytes"],
        queued_seconds=row["age"] if row["first_claim"] else None,
        slot=row["slot"],
    )


def settlement_row(settlement: Settlement) -> tuple[Any, ...]:
    return (
        settlement.id,
        settlement.token,
        settlement.status.value,
        settlement.outcome.value,
        settlement.server,
        settlement.error_code,
        settlement.error_message,
        settlement.attempt_spent,
        settlement.engine_stopped,
        settlement.gpu_seconds,
        settlement.cost,
        settlement.host_id,
        *SETTLED.values(settlement.answer),
    )
