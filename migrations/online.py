"""What a migration beside live traffic is made of: docs/migrations.md says how to use it."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager

import sqlalchemy as sa
from alembic import op

# Who waits for a table makes everybody wait who comes after: no longer than this at a time.
LOCK_TIMEOUT = "2s"
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


def alone() -> AbstractContextManager[None]:
    """Each statement within is a transaction of its own, and what was done before is committed.

    For changes of tables that are in use: who holds one while waiting for another deadlocks with the traffic. A
    migration that fails later begins anew, so each has to pass over what is there (`if_not_exists=True`).
    """
    return op.get_context().autocommit_block()
