"""Questions of chats found by what they mean: a model makes vectors of them, which pgvector compares."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from enum import StrEnum
from uuid import UUID

import numpy as np
from pydantic_core import to_json

from app.config import Settings
from app.db.engine import Database
from app.db.tables.contexts import Prompt
from app.errors import SearchUnavailable
from app.queue.question_vectors import QUESTION_CHARS, REFERENCE, Extension, QuestionVectorStore
from app.queue.ticket import Status
from app.services.callers import Caller
from app.services.catalog import Catalog
from app.services.chats import chat_of
from app.services.contexts import Contexts
from app.services.results import Results
from app.services.submissions import Submissions
from app.tasks.embed import EmbeddingParameters, vector

KIND = "embedding"
# What is less alike is not shown.
LEAST_LIKENESS = 0.35
# A chat is found once, by the question that is nearest: so many are looked at for those shown.
LOOKED_AT = 40
MOST_SHOWN = 10
WAIT_SECONDS = 30.0

NO_EXTENSION = (
    "Postgres has no extension `vector` in this database. Install pgvector 0.8 or later where Postgres runs (the "
    "package `postgresql-18-pgvector`, or the image `pgvector/pgvector:pg18-trixie`), and as a superuser run in this "
    "database: CREATE EXTENSION vector"
)
OLD_EXTENSION = (
    "The extension `vector` of this database is older than 0.8. Install a later pgvector where Postgres runs, and as a "
    "superuser run in this database: ALTER EXTENSION vector UPDATE"
)


@dataclass(frozen=True, slots=True)
class Question:
    """One that was asked before; `likeness` is 1 for the same meaning, and about 0 for another subject."""

    result_id: UUID
    chat_id: UUID
    # Null where the chat was removed.
    title: str | None
    question: str
    model: str
    created_at: datetime
    likeness: float


class SimilarStatus(StrEnum):
    """`pending` while the question's own vector is being made; `off` where no questions are searched by meaning."""

    READY = "ready"
    PENDING = "pending"
    OFF = "off"


@dataclass(frozen=True, slots=True)
class Similar:
    status: SimilarStatus
    questions: Sequence[Question] = ()


def obstacle(extension: Extension | None) -> str | None:
    """Why nothing can be searched by meaning, and what to do."""
    if extension is None:
        return NO_EXTENSION
    return None if extension.usable else OLD_EXTENSION


class Meaning:
    def __init__(
        self,
        database: Database,
        submissions: Submissions,
        results: Results,
        contexts: Contexts,
        catalog: Catalog,
        settings: Settings,
    ) -> None:
        self._store = QuestionVectorStore(database)
        self._submissions = submissions
        self._results = results
        self._contexts = contexts
        self._catalog = catalog
        self._model = settings.search_embedding_model

    @property
    def on(self) -> bool:
        """Whether it was asked for; asks nobody."""
        return self._model is not None

    async def state(self) -> str:
        """How it stands, in a sentence for whoever runs the service."""
        if self._model is None:
            return "off: SEARCH_EMBEDDING_MODEL names no model"
        if (why := obstacle(await self._store.extension())) is not None:
            return why
        if self._model not in await self._catalog.names():
            return f"No server has ever served the model {self._model!r}, which SEARCH_EMBEDDING_MODEL names."
        done, questions = await self._store.progress(self._model)
        return f"on: {done:,} of {questions:,} questions have their vector, as far as they were noticed"

    async def similar(self, caller: Caller, result_id: UUID, limit: int) -> Similar:
        """Earlier questions of the owner, from other chats, that are like what a ticket asked; the most alike first.

        A ticket that belongs to no chat has none. Raises ResultNotFound.
        """
        ticket = await self._results.get(caller, result_id)
        try:
            model, extension = await self._ready()
        except SearchUnavailable:
            return Similar(SimilarStatus.OFF)
        if chat_of(ticket["client_reference"]) is None:
            return Similar(SimilarStatus.READY)
        row = await self._store.vector_of(caller.owner_id, result_id, model)
        if row is None or row["pending"]:
            return Similar(SimilarStatus.PENDING)
        found = await self._near(caller, model, row["vector"] or (), extension, without=row["chat_id"])
        return Similar(SimilarStatus.READY, [each for each in found if each.result_id < result_id][:limit])

    async def search(
        self, caller: Caller, text: str, gone: Callable[[], Awaitable[bool]], limit: int = MOST_SHOWN
    ) -> list[Question]:
        """Questions of the owner that mean what `text` says, one of each chat; the most alike first.

        Raises:
            SearchUnavailable: there is no search by meaning, or the model did not answer in time.
        """
        model, extension = await self._ready()
        numbers = await self._vector(caller, model, text[:QUESTION_CHARS], gone)
        return (await self._near(caller, model, numbers, extension))[:limit]

    async def _ready(self) -> tuple[str, Extension]:
        if self._model is None:
            raise SearchUnavailable("Search by meaning is off: SEARCH_EMBEDDING_MODEL names no model.")
        extension = await self._store.extension()
        if extension is None or not extension.usable:
            raise SearchUnavailable(f"Search by meaning is off. {obstacle(extension)}")
        return self._model, extension

    async def _vector(
        self, caller: Caller, model: str, text: str, gone: Callable[[], Awaitable[bool]]
    ) -> Sequence[float]:
        """That of a text, made by a ticket that is removed once it was read."""
        # Whoever runs the service chose the model, and nobody is told of the ticket.
        asking = replace(caller, models=None, webhook=None)
        prompt = Prompt(to_json([text]).decode())
        row, _ = await self._submissions.submit_prompt(
            asking,
            model,
            prompt,
            EmbeddingParameters(),
            kind=KIND,
            request={"model": model},
            client_reference=REFERENCE,
        )
        id_ = row["id"]
        row = await self._results.wait(caller, id_, WAIT_SECONDS, gone)
        if not Status(row["status"]).final:
            # Its end may take a moment: the pass that makes vectors removes it then.
            await self._results.cancel(caller, id_)
            raise SearchUnavailable(f"{model} did not answer within {WAIT_SECONDS:.0f} s. Try again.")
        await self._contexts.delete_result(caller, id_)
        if row["status"] != Status.COMPLETED:
            raise SearchUnavailable(f"{model} made no vector: {row['error_message']}")
        return unit(row["output"])

    async def _near(
        self, caller: Caller, model: str, numbers: Sequence[float], extension: Extension, without: UUID | None = None
    ) -> list[Question]:
        if not numbers:
            return []
        near = await self._store.near(caller.owner_id, model, numbers, LOOKED_AT, extension)
        alike = {id_: (chat_id, likeness) for id_, chat_id, likeness in near if likeness >= LEAST_LIKENESS}
        rows = await self._store.shown(caller.owner_id, list(alike))
        chats = {without}
        found = []
        for id_, (chat_id, likeness) in alike.items():
            if chat_id not in chats and id_ in rows:
                chats.add(chat_id)
                found.append(Question(**{**rows[id_], "question": rows[id_]["question"] or ""}, likeness=likeness))
        return found


def unit(encoded: str) -> list[float]:
    """A stored vector scaled to the length 1; empty where it has none."""
    numbers = np.array(vector(encoded), dtype=np.float32)
    length = float(np.linalg.norm(numbers))
    scaled: list[float] = (numbers / length).tolist() if length and np.isfinite(length) else []
    return scaled
