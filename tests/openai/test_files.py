"""/v1/files through the official client."""

import asyncio
import random
from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx
import openai
import pytest

from app.config import Settings
from app.db.engine import Database
from app.db.ids import lowest_at
from app.dispatch.janitor import oldest_kept
from app.queue.audit import KEYLESS
from app.queue.files import CHUNK_BYTES, FileStore
from app.services.callers import Scope
from app.services.keys import Keys, NewKey
from tests.openai.conftest import client_of
from tests.service import Service, running_api


@pytest.fixture
async def client(api: Service) -> AsyncIterator[openai.AsyncOpenAI]:
    async with client_of(api) as opened:
        yield opened


async def test_a_file_comes_back_as_it_went(client: openai.AsyncOpenAI) -> None:
    content = random.Random(5).randbytes(2 * CHUNK_BYTES + 17)
    file = await client.files.create(file=("größe.jsonl", content), purpose="batch")
    assert (file.object, file.bytes, file.filename, file.purpose) == ("file", len(content), "größe.jsonl", "batch")
    assert file.expires_at is None
    assert await client.files.retrieve(file.id) == file
    answer = await client.files.content(file.id)
    assert answer.content == content
    assert answer.response.headers["content-length"] == str(len(content))


async def test_head_of_a_file_reads_none_of_it(client: openai.AsyncOpenAI, api: Service, database: Database) -> None:
    content = random.Random(7).randbytes(2 * CHUNK_BYTES)
    file = await client.files.create(file=("a.jsonl", content), purpose="batch")
    got = await api.client.get(f"/v1/files/{file.id}/content")
    async with database.hot() as connection:
        await connection.execute("DELETE FROM file_chunks")
    head = await api.client.head(f"/v1/files/{file.id}/content")
    assert (head.status_code, head.content) == (200, b"")
    for name in ("content-length", "content-type", "content-disposition"):
        assert head.headers[name] == got.headers[name]


async def test_the_same_key_makes_one_file(client: openai.AsyncOpenAI, database: Database) -> None:
    content = random.Random(6).randbytes(3 * CHUNK_BYTES)

    async def upload(key: str = "k", name: str = "a.jsonl", data: bytes = content, **options: Any) -> Any:
        return await client.files.with_raw_response.create(
            file=(name, data), purpose="batch", extra_headers={"Idempotency-Key": key}, **options
        )

    answers = await asyncio.gather(*(upload() for _ in range(5)))
    assert len({answer.parse().id for answer in answers}) == 1
    assert sum("idempotent-replayed" in answer.headers for answer in answers) == 4
    file = (await upload()).parse()
    assert (await client.files.content(file.id)).content == content
    others: list[dict[str, Any]] = [
        {"data": content[:-1] + b"x"},
        {"data": b"y"},
        {"name": "b.jsonl"},
        {"expires_after": {"anchor": "created_at", "seconds": 3600}},
    ]
    for other in others:
        with pytest.raises(openai.BadRequestError) as refused:
            await upload(**other)
        assert refused.value.code == "idempotency_mismatch"
    assert (await upload("another")).parse().id != file.id
    assert len([each async for each in client.files.list()]) == 2
    # One that left nothing leaves the key free.
    with pytest.raises(openai.BadRequestError):
        await upload("free", data=b"")
    assert "idempotent-replayed" not in (await upload("free")).headers
    await client.files.delete(file.id)
    with pytest.raises(openai.NotFoundError):
        await upload()


async def test_a_key_stands_for_a_file_or_for_something_else(client: openai.AsyncOpenAI, api: Service) -> None:
    headers = {"Idempotency-Key": "k"}
    assert (await api.client.post("/contexts/", json={"content": "x"}, headers=headers)).status_code == 201
    with pytest.raises(openai.BadRequestError) as refused:
        await client.files.create(file=("a.jsonl", b"x"), purpose="batch", extra_headers=headers)
    assert refused.value.code == "idempotency_mismatch"
    for key in ("", "ä", "x" * 256):
        answer = await api.client.post(
            "/v1/files",
            data={"purpose": "batch"},
            files={"file": ("a.jsonl", b"x")},
            headers={"Idempotency-Key": key.encode()},  # type: ignore[dict-item]
        )
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, "Idempotency-Key"), key


async def test_files_are_listed_by_page_and_purpose(client: openai.AsyncOpenAI) -> None:
    made = [(await client.files.create(file=(f"{n}.jsonl", b"x"), purpose="batch")).id for n in range(5)]
    assert [file.id async for file in client.files.list(limit=2)] == made[::-1]
    assert [file.id async for file in client.files.list(limit=2, order="asc")] == made
    assert [file.id async for file in client.files.list(purpose="batch_output")] == []
    page = await client.files.list(limit=4, after=made[3])
    assert [file.id for file in page.data] == made[2::-1]
    assert page.has_more is False


async def test_a_deleted_file_is_gone_with_its_content(client: openai.AsyncOpenAI, database: Database) -> None:
    file = await client.files.create(file=("a.jsonl", b"x"), purpose="batch")
    deleted = await client.files.delete(file.id)
    assert (deleted.id, deleted.deleted, deleted.object) == (file.id, True, "file")
    for gone in (client.files.retrieve, client.files.content, client.files.delete):
        with pytest.raises(openai.NotFoundError) as refused:
            await gone(file.id)
        assert refused.value.code == "file_not_found"
    async with database.hot() as connection:
        assert await connection.fetchval("SELECT count(*) FROM file_chunks") == 0


async def test_an_expired_file_is_not_there_and_is_removed(client: openai.AsyncOpenAI, database: Database) -> None:
    kept = await client.files.create(file=("a.jsonl", b"x"), purpose="batch")
    file = await client.files.create(
        file=("a.jsonl", b"x"), purpose="batch", expires_after={"anchor": "created_at", "seconds": 3600}
    )
    assert file.expires_at is not None
    assert abs(file.expires_at - file.created_at - 3600) <= 1
    async with database.hot() as connection:
        await connection.execute("UPDATE files SET expires_at = now() WHERE expires_at IS NOT NULL")
    with pytest.raises(openai.NotFoundError):
        await client.files.retrieve(file.id)
    assert [each.id async for each in client.files.list()] == [kept.id]
    store = FileStore(database)
    assert await store.remove(oldest_kept(1), 10) == 1
    async with database.hot() as connection:
        assert await connection.fetchval("SELECT count(*) FROM file_chunks") == 1
        tomorrow = await connection.fetchval("SELECT now() + interval '1 day'")
    assert await store.remove(lowest_at(tomorrow), 10) == 1


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"purpose": "fine-tune"}, "purpose"),
        ({"purpose": "batch_output"}, "purpose"),
        ({}, "purpose"),
        (
            {"purpose": "batch", "expires_after[anchor]": "now", "expires_after[seconds]": "3600"},
            "expires_after.anchor",
        ),
        ({"purpose": "batch", "expires_after[anchor]": "created_at"}, "expires_after.seconds"),
        (
            {"purpose": "batch", "expires_after[anchor]": "created_at", "expires_after[seconds]": "60"},
            "expires_after.seconds",
        ),
    ],
)
async def test_what_is_wrong_with_a_form_is_named(api: Service, fields: dict[str, str], param: str) -> None:
    answer = await api.client.post("/v1/files", data=fields, files={"file": ("a.jsonl", b"x")})
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["param"] == param


async def test_a_file_has_to_be_there_and_to_hold_something(api: Service) -> None:
    for sent in ({"data": {"purpose": "batch"}}, {"json": {"purpose": "batch"}}):
        answer = await api.client.post("/v1/files", **sent)  # type: ignore[arg-type]
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, "file")
    answer = await api.client.post("/v1/files", data={"purpose": "batch"}, files={"file": ("a.jsonl", b"")})
    assert (answer.status_code, answer.json()["error"]["message"]) == (400, "file: is empty")


async def test_a_file_over_the_limit_is_refused_and_one_at_the_limit_is_not(
    make_settings: Callable[..., Settings], database: Database
) -> None:
    """The limit of other bodies does not count here."""
    most = 300_000
    async with running_api(make_settings(max_file_bytes=most, max_body_bytes=2048)) as service:
        async with client_of(service) as client:
            file = await client.files.create(file=("a.jsonl", b"x" * most), purpose="batch")
            assert file.bytes == most
            for size in (most + 1, most + 200_000):
                with pytest.raises(openai.APIStatusError) as refused:
                    await client.files.create(file=("a.jsonl", b"x" * size), purpose="batch")
                assert (refused.value.status_code, refused.value.code) == (413, "body_too_large")

        async def chunked() -> AsyncIterator[bytes]:
            yield b'--b\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n'
            for _ in range(100):
                yield b"x" * 10_000

        answer = await service.client.post(
            "/v1/files", content=chunked(), headers={"Content-Type": "multipart/form-data; boundary=b"}
        )
        assert (answer.status_code, answer.json()["error"]["code"]) == (413, "body_too_large")
    async with database.hot() as connection:
        assert await connection.fetchval("SELECT count(*) FROM files") == 1


async def test_a_cut_upload_leaves_nothing(api: Service, database: Database) -> None:
    class Cut(Exception):
        pass

    async def some() -> AsyncIterator[bytes]:
        yield b'--b\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n' + b"x" * 3_000_000
        raise Cut

    async with httpx.AsyncClient(base_url=str(api.client.base_url), trust_env=False) as other:
        with pytest.raises(Cut):
            await other.post("/v1/files", content=some(), headers={"Content-Type": "multipart/form-data; boundary=b"})
    assert (await api.client.get("/v1/files")).json()["data"] == []
    async with database.hot() as connection:
        assert await connection.fetchval("SELECT count(*) FROM file_chunks") == 0


async def test_a_strangers_file_is_not_there(make_settings: Callable[..., Settings], database: Database) -> None:
    keys = Keys(database)
    _, alice = await keys.create(NewKey("alice"), KEYLESS)
    _, bob = await keys.create(NewKey("bob", scopes=(Scope.READ, Scope.SUBMIT)), KEYLESS)
    async with (
        running_api(make_settings(auth_required=True)) as service,
        client_of(service, api_key=alice) as hers,
        client_of(service, api_key=bob) as his,
    ):
        file = await hers.files.create(file=("a.jsonl", b"x"), purpose="batch")
        for look in (his.files.retrieve, his.files.content, his.files.delete):
            with pytest.raises(openai.NotFoundError):
                await look(file.id)
        with pytest.raises(openai.NotFoundError):
            await his.batches.create(input_file_id=file.id, endpoint="/v1/completions", completion_window="24h")
        assert [each.id async for each in his.files.list()] == []
        assert (await hers.files.retrieve(file.id)).id == file.id
