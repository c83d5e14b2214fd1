"""What the tests of batches share."""

import json
from typing import Any

import openai
from openai.types import Batch

from tests.service import eventually

COMPLETIONS = "/v1/completions"
CHATS = "/v1/chat/completions"
RESPONSES = "/v1/responses"
FINAL = ("completed", "failed", "expired", "cancelled")
TOO_LONG = "far too long " * 2000


def line(custom_id: str, body: dict[str, Any], url: str = COMPLETIONS) -> dict[str, Any]:
    return {"custom_id": custom_id, "method": "POST", "url": url, "body": body}


def prompt(text: str = "Tell me.", **parameters: Any) -> dict[str, Any]:
    return {"model": "tiny", "prompt": text, "max_tokens": 3, "seed": 1} | parameters


async def start(client: openai.AsyncOpenAI, lines: list[Any], endpoint: Any = COMPLETIONS, **options: Any) -> Batch:
    content = "\n".join(each if isinstance(each, str) else json.dumps(each) for each in lines)
    file = await client.files.create(file=("in.jsonl", content.encode()), purpose="batch")
    return await client.batches.create(input_file_id=file.id, endpoint=endpoint, completion_window="24h", **options)


async def ended(client: openai.AsyncOpenAI, batch: Batch, seconds: float = 40) -> Batch:
    async def final() -> Batch | None:
        found = await client.batches.retrieve(batch.id)
        return found if found.status in FINAL else None

    found: Batch = await eventually(final, f"the end of {batch.id}", seconds, 0.1)
    return found


async def lines_of(client: openai.AsyncOpenAI, file_id: str | None) -> list[dict[str, Any]]:
    if file_id is None:
        return []
    return [json.loads(text) for text in (await client.files.content(file_id)).text.splitlines()]


async def in_progress(client: openai.AsyncOpenAI, batch: Batch) -> Batch:
    async def begun() -> Batch | None:
        found = await client.batches.retrieve(batch.id)
        return found if found.status != "validating" else None

    found: Batch = await eventually(begun, "the batch is loaded")
    assert found.status == "in_progress", found.errors
    return found
