"""The lines of a batch whose chats begin alike are run one after the other."""

import json
from itertools import groupby

import asyncpg

from app.db.tables.contexts import Prompt
from app.services.line_checks import beginning_of
from tests.openai.conftest import client_of
from tests.service import Service, eventually

CHATS = "/v1/chat/completions"


def chat(number: int, system: str | None) -> dict[str, object]:
    told = [] if system is None else [{"role": "system", "content": system}]
    messages = [*told, {"role": "user", "content": f"question {number}"}]
    body = {"model": "chat", "messages": messages, "max_tokens": 3}
    return {"custom_id": str(number), "method": "POST", "url": CHATS, "body": body}


async def test_they_are_served_together_and_within_each_kind_in_the_order_of_the_file(
    service: Service, database_url: str
) -> None:
    kinds = ["Be brief.", "Be kind.", None]
    content = "\n".join(json.dumps(chat(number, kinds[number % 3])) for number in range(30))
    async with client_of(service) as client:
        file = await client.files.create(file=("in.jsonl", content.encode()), purpose="batch")
        batch = await client.batches.create(input_file_id=file.id, endpoint=CHATS, completion_window="24h")

        async def loaded() -> bool:
            return (await client.batches.retrieve(batch.id)).status not in ("validating", "failed")

        await eventually(loaded, "the batch is loaded")
    connection = await asyncpg.connect(database_url)
    rows = await connection.fetch("SELECT client_reference AS number FROM results ORDER BY rank, id")
    await connection.close()
    order = [int(row["number"]) for row in rows]
    runs = [list(numbers) for _, numbers in groupby(order, key=lambda number: number % 3)]
    assert sorted(order) == list(range(30))
    # What begins with nothing stands beside the first kind.
    assert [number for number in order if number % 3 == 1] == runs[-1]
    assert all(numbers == sorted(numbers) for numbers in ([n for n in order if n % 3 == kind] for kind in range(3)))


def test_what_a_chat_begins_with_is_what_it_is_told() -> None:
    told = {"role": "system", "content": "Be brief."}
    asked = {"role": "user", "content": "Why?"}
    assert beginning_of(Prompt(messages=[told, asked])) == beginning_of(Prompt(messages=[told, asked, told]))
    assert beginning_of(Prompt(messages=[told, asked])) != beginning_of(Prompt(messages=[told, told, asked]))
    assert beginning_of(Prompt(messages=[asked, told])) == ""
    assert beginning_of(Prompt("Why?")) == ""
