"""The audit log, as admins read it."""

from __future__ import annotations

import getpass
import os
from typing import Any

from sqlalchemy import select
from sqlalchemy.sql.elements import Label

from app.db.engine import Database
from app.db.tables import api_keys, audit, owners
from app.queue.audit import KEYLESS, Action, Actor
from app.services.callers import Caller
from app.services.pages import Listed, Page, Window, fetch_bounded_page

Named = Label[Any]


def _of_actor(name: str) -> Named:
    found = select(api_keys.c[name]).where(api_keys.c.id == audit.c.actor_key_id)
    return found.scalar_subquery().label(f"actor_key_{name}")


LISTED = Listed(
    audit,
    columns=(
        *audit.c,
        _of_actor("name"),
        _of_actor("person"),
        select(owners.c.name).where(owners.c.id == audit.c.owner_id).scalar_subquery().label("owner"),
    ),
    large=(audit.c.details,),
)


def actor_of(caller: Caller) -> Actor:
    return KEYLESS if caller.key_id is None else Actor(caller.key_id, "api")


def command_actor() -> Actor:
    """Who runs a command of this service."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):
        # In a container, a user may have a number only.
        user = f"uid {os.getuid()}"
    return Actor(None, f"command, {user}")


class Audit:
    def __init__(self, database: Database) -> None:
        self._database = database

    async def page(self, action: Action | None, window: Window) -> Page:
        """Entries of all owners, newest first."""
        where = [] if action is None else [audit.c.action == action.value]
        return await fetch_bounded_page(self._database, LISTED, where, window)
