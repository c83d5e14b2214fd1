"""Makes the vectors of the questions asked in chats, by tickets of the lowest priority; see app/services/meaning.py."""

from __future__ import annotations

import asyncio
from contextlib import suppress

import asyncpg
from pydantic_core import to_json

from app.config import Settings
from app.db.engine import Database
from app.db.ids import time_of, uuid7
from app.db.tables.contexts import Prompt
from app.errors import DatabaseUnavailable
from app.queue.question_vectors import (
    CHATS_AT_ONCE,
    MOST_NUMBERS,
    REFERENCE,
    Extension,
    QuestionVectorStore,
    Row,
    create_index,
)
from app.queue.store import QueueStore
from app.queue.ticket import PRIORITY_LOWEST, Status, Submission, rank_of
from app.services.catalog import Catalog
from app.services.meaning import KIND, obstacle, unit
from app.tasks.embed import EMBED, EmbeddingParameters
from app.telemetry import logger

log = logger("question vectors")

# A pass comes so often, in times of `poll_seconds`; one that found much to do is followed by the next one at once.
POLLS = 3.0


class QuestionVectors:
    """One pass notices new questions, makes tickets for them, and keeps what these made.

    Any number of dispatchers may do it, and any may die: a question belongs to one ticket at a time, and what a ticket
    made is kept in the transaction that removes it.
    """

    def __init__(self, database: Database, store: QueueStore, catalog: Catalog, settings: Settings, model: str) -> None:
        self._vectors = QuestionVectorStore(database)
        self._store = store
        self._catalog = catalog
        self._settings = settings
        self._model = model
        self._indexed: set[int] = set()
        self._began = False
        self._said: str | None = None

    async def run(self) -> None:
        """Passes for ever."""
        while True:
            with suppress(DatabaseUnavailable):
                if not self._began:
                    await self._vectors.extension(create=True)
                    await self._vectors.try_again()
                    self._began = True
                while await self.step():
                    pass
            await asyncio.sleep(POLLS * self._settings.poll_seconds)

    async def step(self) -> bool:
        """One pass; whether the next one has something to do by now."""
        extension = await self._vectors.extension()
        why = obstacle(extension)
        if why is None and self._model not in await self._catalog.names(fresh=not self._catalog.knows(self._model)):
            why = f"No server has ever served the model {self._model!r}, which SEARCH_EMBEDDING_MODEL names."
        self._say(why)
        if extension is None or why is not None:
            return False
        more = await self._vectors.renew(self._model) > 0
        for row in await self._vectors.ended():
            await self._collect(row, extension)
            more = True
        more = await self._vectors.notice(self._model) >= CHATS_AT_ONCE or more
        for owner_id in await self._vectors.wanting():
            await self._vectors.sweep(owner_id)
            more = await self._ask(owner_id) or more
        return more

    def _say(self, why: str | None) -> None:
        if why is not None and why != self._said:
            log.warning("chats are not searched by meaning", why=why)
        self._said = why

    async def _collect(self, row: Row, extension: Extension) -> None:
        """What a ticket made, or its questions for another one."""
        id_ = row["ticket_id"]
        if row["status"] != Status.COMPLETED:
            await self._vectors.free(id_, failed=row["stored"])
            return
        choices = sorted(row["outputs"] or (), key=lambda each: each["index"])
        texts = [each["text"] for each in choices] or [row["output"]]
        vectors = [unit(text) for text in texts]
        sizes = {len(each) for each in vectors}
        if len(sizes) != 1 or not 0 < len(vectors[0]) <= MOST_NUMBERS:
            await self._vectors.free(id_, failed=True)
            return
        await self._index(len(vectors[0]), extension)
        await self._vectors.keep(id_, vectors)

    async def _index(self, numbers: int, extension: Extension) -> None:
        """Before the first vectors of their kind are there, so it takes no time; searches are right without it too."""
        if numbers in self._indexed:
            return
        self._indexed.add(numbers)
        try:
            await self._vectors.index(numbers, extension)
        except asyncpg.PostgresError as error:
            log.warning(
                "the index of vectors cannot be made, so searches read all of an owner's: as the owner of the tables, "
                f"run {create_index(numbers, extension)}",
                error=str(error),
            )

    async def _ask(self, owner_id: int) -> bool:
        """Makes a ticket for some questions of an owner, unless there are none."""
        id_ = uuid7()
        texts = await self._vectors.assign(owner_id, id_)
        if not texts:
            return False
        created_at = time_of(id_)
        ticket = Submission(
            id=id_,
            context_id=uuid7(),
            model=self._model,
            parameters=EmbeddingParameters().for_engine(0),
            task=EMBED,
            owner_id=owner_id,
            kind=KIND,
            request={"model": self._model},
            priority=PRIORITY_LOWEST,
            rank=rank_of(created_at, PRIORITY_LOWEST, self._settings.priority_ageing_seconds),
            created_at=created_at,
            client_reference=REFERENCE,
            prompt=Prompt(to_json(texts).decode()),
        )
        await self._store.submit([ticket])
        return True
