"""What a migration beside live traffic is made of: docs/migrations.md says how to use it."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from uuid import UUID

import sqlalchemy as sa
from alembic import op

# Who waits for a table makes everybody wait who comes after: no longer than this at a time.
LOCK_TIMEOUT = "2s"
FILLED_AT_ONCE = 1000
FIRST_ID = UUID(int=0)
VALID = sa.text("SELECT indisvalid FROM pg_index WHERE indexrelid = to_regclass(:name)")


def add_index(name: str, table: str, columns: Sequence[str], *, where: str | None = None, unique: bool = False) -> None:
    """Builds an index while others write to the table, and commits what the migration did before.

    A migration that fails later begins anew: an index that is there stays, half of one is built again.
    """
    with alone():
        if not op.get_context().as_sql:
            valid = op.get_bind().execute(VALID, {"name": name}).scalar()
            if valid:
                return
            if valid is False:
                op.execute(f'DROP INDEX CONCURRENTLY "{name}"')
        # It waits for every older transaction, and nobody waits behind it.
        op.execute("SET lock_timeout = 0")
        try:
            op.create_index(
                name,
                table,
                list(columns),
                unique=unique,
                postgresql_concurrently=True,
                postgresql_where=None if where is None else sa.text(where),
            )
        finally:
            op.execute(f"SET lock_timeout = '{LOCK_TIMEOUT}'")


def replace_index(name: str, replacement: str) -> None:
    """Gives the name of an index to `replacement`, which `add_index` has built; the one that had it is dropped."""
    with alone():
        op.execute(
            f"""DO $$ BEGIN IF to_regclass('"{replacement}"') IS NOT NULL THEN
            DROP INDEX IF EXISTS "{name}"; ALTER INDEX "{replacement}" RENAME TO "{name}";
            END IF; END $$"""
        )


def replace_check(table: str, name: str, condition: str) -> None:
    """Holds new rows to a check, in place of the one of that name; a later revision validates it for the others."""
    with alone():
        op.execute(
            f'ALTER TABLE "{table}" DROP CONSTRAINT IF EXISTS "{name}", '
            f'ADD CONSTRAINT "{name}" CHECK ({condition}) NOT VALID'
        )


def fill(table: str, assignment: str, where: str) -> None:
    """Changes the rows of a table that has an `id`, few at a time, each few in a transaction of their own."""
    with alone():
        if op.get_context().as_sql:
            op.execute(f"UPDATE {table} SET {assignment} WHERE {where}")
            return
        last: object = FIRST_ID
        while last is not None:
            few = sa.text(
                f"WITH few AS (SELECT id FROM {table} WHERE id > :last ORDER BY id LIMIT {FILLED_AT_ONCE}), filled AS ("
                f"UPDATE {table} SET {assignment} WHERE id = ANY (ARRAY(SELECT id FROM few)) AND {where})"
                " SELECT id FROM few ORDER BY id DESC LIMIT 1"
            )
            last = op.get_bind().execute(few, {"last": last}).scalar()


def alone() -> AbstractContextManager[None]:
    """Each statement within is a transaction of its own, and what was done before is committed.

    For changes of tables that are in use: who holds one while waiting for another deadlocks with the traffic. A
    migration that fails later begins anew, so each has to pass over what is there (`if_not_exists=True`).
    """
    return op.get_context().autocommit_block()
