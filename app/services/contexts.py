"""Stored prompts."""

from collections.abc import Mapping
from typing import Any
from uuid import UUID

from sqlalchemy import insert, select

from app.db.engine import Database, translated_errors
from app.db.ids import time_of, uuid7
from app.db.tables import contexts
from app.errors import ContextNotFound
from app.services.pages import Page, Window, fetch_page


class Contexts:
    def __init__(self, database: Database) -> None:
        self._database = database

    async def create(self, content: str, metadata: dict[str, Any] | None) -> Mapping[str, Any]:
        """Stores a prompt; committed when this returns."""
        id_ = uuid7()
        row = {"id": id_, "content": content, "metadata": metadata, "created_at": time_of(id_)}
        with translated_errors():
            async with self._database.engine.begin() as connection:
                await connection.execute(insert(contexts).values(row))
        return row

    async def get(self, id_: UUID) -> Mapping[str, Any]:
        """Raises ContextNotFound."""
        async with self._database.reading() as connection:
            found = await connection.execute(select(contexts).where(contexts.c.id == id_))
            row = found.mappings().one_or_none()
        if row is None:
            raise context_not_found(id_)
        return dict(row)

    async def page(self, window: Window) -> Page:
        return await fetch_page(self._database, select(contexts), contexts, window)


def context_not_found(id_: UUID) -> ContextNotFound:
    return ContextNotFound(f"No context has the id {id_}. POST /contexts/ stores one and returns its id.")
