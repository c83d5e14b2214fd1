"""Migrations from empty and back, and the rules the database itself holds."""

import asyncpg
import pytest
from alembic.config import Config
from alembic.script import ScriptDirectory

from app.db.ids import uuid7
from app.db.tables import metadata
from app.services.health import MIGRATIONS, revisions
from tests.conftest import alembic, with_database
from tests.postgres_server import RunningPostgres


@pytest.fixture
async def empty_url(postgres: RunningPostgres) -> str:
    connection = await asyncpg.connect(postgres.url)
    await connection.execute("DROP DATABASE IF EXISTS empty WITH (FORCE)")
    await connection.execute("CREATE DATABASE empty")
    await connection.close()
    return with_database(postgres.url, "empty")


async def objects(url: str) -> set[str]:
    connection = await asyncpg.connect(url)
    rows = await connection.fetch("SELECT relname FROM pg_class WHERE relnamespace = 'public'::regnamespace")
    await connection.close()
    return {row[0] for row in rows} - {"alembic_version", "alembic_version_pkc"}


async def test_up_down_and_up_again_from_empty(empty_url: str) -> None:
    up = alembic(empty_url, "upgrade", "head")
    assert up.returncode == 0, up.stderr
    first = await objects(empty_url)
    assert {"contexts", "results", "attempts", "models", "history", "results_claim"} <= first
    down = alembic(empty_url, "downgrade", "base")
    assert down.returncode == 0, down.stderr
    assert await objects(empty_url) == set()
    assert alembic(empty_url, "upgrade", "head").returncode == 0
    assert await objects(empty_url) == first


async def test_the_tables_are_what_the_migrations_make(empty_url: str) -> None:
    assert alembic(empty_url, "upgrade", "head").returncode == 0
    check = alembic(empty_url, "check")
    assert check.returncode == 0, check.stdout + check.stderr


async def test_the_tables_have_the_storage_that_their_definitions_name(database_url: str) -> None:
    """Which the check of alembic does not compare."""
    connection = await asyncpg.connect(database_url)
    rows = await connection.fetch(
        "SELECT relname, coalesce(reloptions, '{}') AS options FROM pg_class"
        " WHERE relnamespace = 'public'::regnamespace AND relkind = 'r'"
    )
    await connection.close()
    stored = {row["relname"]: dict(option.split("=") for option in row["options"]) for row in rows}
    for name, table in metadata.tables.items():
        options = table.dialect_options["postgresql"]["with"] or {}
        defined = {key: str(value) for key, value in options.items()}
        assert stored[name] == defined, name


@pytest.mark.parametrize(
    ("change", "constraint"),
    [
        ("status = 'done', completed_at = now()", "results_status_known"),
        ("status = 'completed', output = 'x', finish_reason = 'stop'", "results_final_has_an_end"),
        ("completed_at = now()", "results_final_has_an_end"),
        ("status = 'completed', completed_at = now()", "results_completed_has_output"),
        (
            "status = 'completed', completed_at = now(), output = 'x', finish_reason = 'stop', error_code = 'y'",
            "results_completed_has_output",
        ),
        ("status = 'failed', completed_at = now()", "results_failed_has_error"),
        (
            "status = 'failed', completed_at = now(), error_code = 'x', error_message = 'x',"
            " attempt_token = gen_random_uuid(), attempt_started_at = now()",
            "results_final_holds_no_claim",
        ),
        ("attempt_token = gen_random_uuid()", "results_claim_has_a_start"),
        ("attempt_count = -1", "results_attempts_not_negative"),
    ],
)
async def test_the_database_refuses_states_that_cannot_be(database_url: str, change: str, constraint: str) -> None:
    connection = await asyncpg.connect(database_url)
    context, result = uuid7(), uuid7()
    await connection.execute("INSERT INTO contexts (id, content) VALUES ($1, 'x')", context)
    await connection.execute(
        "INSERT INTO results (id, context_id, model, parameters) VALUES ($1, $2, 'm', '{}')", result, context
    )
    with pytest.raises(asyncpg.CheckViolationError) as refused:
        await connection.execute(f"UPDATE results SET {change}")
    assert refused.value.constraint_name == constraint
    await connection.close()


def test_the_names_of_the_files_are_the_revisions_in_their_order() -> None:
    """What the processes read at their start, instead of asking alembic."""
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    scripts = ScriptDirectory.from_config(config)
    order = [script.revision for script in scripts.walk_revisions()]
    assert order == sorted(order, reverse=True)
    assert revisions() == (scripts.get_current_head(), frozenset(order))
