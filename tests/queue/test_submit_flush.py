"""A ticket is stored without waiting for the disk, and acknowledged only once it is there."""

from pathlib import Path

import asyncpg

from app.config import Settings
from app.db.engine import open_database
from app.db.ids import time_of, uuid7
from app.queue.store import QueueStore
from app.queue.ticket import Submission
from tests.conftest import alembic
from tests.postgres_server import start_postgres


async def test_an_acknowledged_ticket_survives_a_killed_postgres(tmp_path: Path) -> None:
    postgres = start_postgres(tmp_path / "postgres")
    try:
        assert alembic(postgres.url, "upgrade", "head").returncode == 0
        context, id_ = uuid7(), uuid7()
        async with open_database(Settings(database_url=postgres.url)) as database:
            async with database.hot() as connection:
                await connection.execute("INSERT INTO contexts (id, content) VALUES ($1, 'x')", context)
            ticket = Submission(
                id=id_,
                context_id=context,
                model="tiny",
                parameters={},
                priority=0,
                rank=time_of(id_),
                created_at=time_of(id_),
            )
            assert await QueueStore(database).submit([ticket]) == {id_}
            postgres.kill()
        postgres.start()
        connection = await asyncpg.connect(postgres.url)
        try:
            assert [row["id"] for row in await connection.fetch("SELECT id FROM results")] == [id_]
        finally:
            await connection.close()
    finally:
        postgres.stop()
