"""/v1/uploads through the official client: a file that comes in parts."""

import asyncio
import hashlib
import json
import random
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import openai
import pytest
from openai.types import Upload

from app.config import Settings
from app.db.engine import Database
from app.db.ids import lowest_at
from app.queue.files import CHUNK_BYTES, FileStore
from app.queue.uploads import UploadStore
from tests.openai.batch_kit import COMPLETIONS, ended, line, lines_of, prompt
from tests.openai.conftest import client_of
from tests.service import Service, running_api


@pytest.fixture
async def alone(api: Service) -> AsyncIterator[openai.AsyncOpenAI]:
    """A client of an API that nothing dispatches for."""
    async with client_of(api) as opened:
        yield opened


async def begin(client: openai.AsyncOpenAI, size: int, **options: Any) -> Upload:
    return await client.uploads.create(
        filename="größe.jsonl", purpose="batch", bytes=size, mime_type="application/jsonl", **options
    )


async def add(client: openai.AsyncOpenAI, upload: Upload, data: bytes) -> str:
    part = await client.uploads.parts.create(upload.id, data=data)
    assert (part.object, part.upload_id) == ("upload.part", upload.id)
    return part.id


async def refused(request: Any, status: int, code: str) -> str:
    with pytest.raises(openai.APIStatusError) as error:
        await request
    assert (error.value.status_code, error.value.code) == (status, code), error.value
    return error.value.message


async def chunks(database: Database) -> int:
    async with database.hot() as connection:
        return int(await connection.fetchval("SELECT count(*) FROM file_chunks"))


async def test_a_file_in_parts_becomes_a_batch(client: openai.AsyncOpenAI) -> None:
    content = "".join(json.dumps(line(f"id {n}", prompt())) + " " * CHUNK_BYTES + "\n" for n in range(3)).encode()
    upload = await client.uploads.upload_file_chunked(
        file=content,
        filename="in.jsonl",
        bytes=len(content),
        mime_type="application/jsonl",
        purpose="batch",
        part_size=600_000,
        md5=hashlib.md5(content, usedforsecurity=False).hexdigest(),
    )
    assert (upload.status, upload.bytes, upload.purpose) == ("completed", len(content), "batch")
    assert upload.expires_at - upload.created_at == 3600
    file = upload.file
    assert file is not None
    assert (file.bytes, file.filename, file.expires_at) == (len(content), "in.jsonl", None)
    assert (await client.files.content(file.id)).content == content
    batch = await client.batches.create(input_file_id=file.id, endpoint=COMPLETIONS, completion_window="24h")
    batch = await ended(client, batch)
    assert [each["custom_id"] for each in await lines_of(client, batch.output_file_id)] == ["id 0", "id 1", "id 2"]


async def test_parts_are_put_in_the_order_that_is_named(alone: openai.AsyncOpenAI, database: Database) -> None:
    content = random.Random(5).randbytes(3 * CHUNK_BYTES)
    pieces = [content[: CHUNK_BYTES + 7], content[CHUNK_BYTES + 7 : -9], content[-9:]]
    upload = await begin(alone, len(content), expires_after={"anchor": "created_at", "seconds": 3600})
    assert (upload.object, upload.status, upload.file) == ("upload", "pending", None)
    # Sent side by side, and one of them again, as a client does that lost an answer.
    ids = await asyncio.gather(*(add(alone, upload, piece) for piece in (*reversed(pieces), pieces[0])))
    assert [each async for each in alone.files.list()] == []
    await refused(alone.files.retrieve(ids[0].replace("part_", "file-")), 404, "file_not_found")
    order = ids[2::-1]
    message = await refused(alone.uploads.complete(upload.id, part_ids=order[:2]), 400, "invalid_request")
    assert f"{len(content):,}" in message
    await refused(alone.uploads.complete(upload.id, part_ids=order, md5="0" * 32), 400, "invalid_request")
    await refused(alone.uploads.complete(upload.id, part_ids=[*order, order[0]]), 400, "invalid_request")
    await refused(alone.uploads.complete(upload.id, part_ids=[]), 400, "invalid_request")
    md5 = hashlib.md5(content, usedforsecurity=False).hexdigest().upper()
    done = await alone.uploads.complete(upload.id, part_ids=order, md5=md5)
    assert done.file is not None
    assert done.file.expires_at == pytest.approx(done.file.created_at + 3600, abs=1)
    assert (await alone.files.content(done.file.id)).content == content
    assert [each.id async for each in alone.files.list()] == [done.file.id]
    # The part that was not named is gone.
    assert await chunks(database) == 5
    assert await alone.uploads.complete(upload.id, part_ids=order) == done
    message = await refused(alone.uploads.parts.create(upload.id, data=b"x"), 400, "upload_ended")
    assert "is completed" in message
    await refused(alone.uploads.cancel(upload.id), 400, "upload_ended")
    await alone.files.delete(done.file.id)
    assert (await alone.uploads.complete(upload.id, part_ids=order)).file is None


async def test_a_cancelled_upload_keeps_nothing(alone: openai.AsyncOpenAI, database: Database) -> None:
    upload = await begin(alone, 4)
    part = await add(alone, upload, b"data")
    assert (await alone.uploads.cancel(upload.id)).status == "cancelled"
    assert (await alone.uploads.cancel(upload.id)).status == "cancelled"
    assert await chunks(database) == 0
    await refused(alone.uploads.parts.create(upload.id, data=b"x"), 400, "upload_ended")
    await refused(alone.uploads.complete(upload.id, part_ids=[part]), 400, "upload_ended")


async def test_an_expired_upload_says_so_for_a_day(alone: openai.AsyncOpenAI, api: Service, database: Database) -> None:
    upload = await begin(alone, 4)
    part = await add(alone, upload, b"data")
    async with database.hot() as connection:
        [(hour,)] = await connection.fetch("SELECT expires_at - now() FROM files")
        assert timedelta(minutes=59) < hour <= timedelta(hours=1)
        for table in ("uploads", "files"):
            await connection.execute(f"UPDATE {table} SET expires_at = now()")
    assert (await api.client.get(f"/v1/uploads/{upload.id}")).json()["status"] == "expired"
    for late in (
        alone.uploads.parts.create(upload.id, data=b"x"),
        alone.uploads.complete(upload.id, part_ids=[part]),
        alone.uploads.cancel(upload.id),
    ):
        assert "is expired" in await refused(late, 400, "upload_ended")
    now = datetime.now(UTC)
    assert await FileStore(database).remove(lowest_at(now - timedelta(days=1)), 10) == 1
    assert await chunks(database) == 0
    store = UploadStore(database)
    assert await store.remove(now - timedelta(days=1), 10) == 0
    assert await store.remove(now + timedelta(days=1), 10) == 1
    await refused(alone.uploads.cancel(upload.id), 404, "upload_not_found")


async def test_parts_of_another_upload_are_not_found(alone: openai.AsyncOpenAI) -> None:
    mine, other = await begin(alone, 4), await begin(alone, 4)
    part = await add(alone, other, b"data")
    for unknown in (part, "part_" + "0" * 32, "part"):
        await refused(alone.uploads.complete(mine.id, part_ids=[unknown]), 404, "part_not_found")
    for id_ in (mine.id[:-1], "upload_" + "0" * 32):
        await refused(alone.uploads.parts.create(id_, data=b"x"), 404, "upload_not_found")


async def test_uploads_have_the_room_that_files_have(make_settings: Callable[..., Settings]) -> None:
    settings = make_settings(max_owner_file_bytes=3000, max_file_bytes=2500)
    async with running_api(settings) as service, client_of(service) as client:
        message = await refused(begin(client, 2501), 413, "body_too_large")
        assert "MAX_FILE_BYTES" in message
        first, second = await begin(client, 2000), await begin(client, 2000)
        part = await add(client, first, b"x" * 2000)
        await refused(client.uploads.parts.create(second.id, data=b"x" * 1001), 413, "storage_quota_reached")
        await refused(begin(client, 1001), 413, "storage_quota_reached")
        # What is complete takes no more room than its parts did.
        assert (await client.uploads.complete(first.id, part_ids=[part])).status == "completed"
        await add(client, second, b"x" * 1000)


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"purpose": "assistants"}, "purpose"),
        ({"bytes": 0}, "bytes"),
        ({"filename": None}, "filename"),
        ({"mime_type": None}, "mime_type"),
        ({"expires_after": {"anchor": "created_at", "seconds": 60}}, "expires_after.seconds"),
    ],
)
async def test_what_is_wrong_with_an_upload_is_named(api: Service, change: dict[str, Any], param: str) -> None:
    body = {"filename": "a.jsonl", "purpose": "batch", "bytes": 1, "mime_type": "text/plain"} | change
    answer = await api.client.post("/v1/uploads", json=body)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param), answer.text


async def test_a_part_has_to_be_there_and_to_hold_something(api: Service, alone: openai.AsyncOpenAI) -> None:
    upload = await begin(alone, 1)
    for sent in ({"data": {"data": "x"}}, {"json": {"data": "x"}}, {"files": {"data": ("a", b"")}}):
        answer = await api.client.post(f"/v1/uploads/{upload.id}/parts", **sent)  # type: ignore[arg-type]
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, "data"), answer.text
