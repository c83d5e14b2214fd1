"""What the tests of responses share."""

import base64
import json
from typing import Any

import openai
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import TypeAdapter

from tests.service import Service, eventually

EVENT: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)
WEATHER: dict[str, Any] = {
    "type": "function",
    "name": "weather",
    "description": "The weather of a place",
    "parameters": {"type": "object", "properties": {"place": {"type": "string"}}, "required": ["place"]},
}
CALL = '<tool_call>{"name": "weather", "arguments": {"place": "Paris"}}</tool_call>'
LONG = "Some words, and then some more of them. " * 5


def emit(text: str, *marks: str) -> str:
    encoded = base64.b64encode(text.encode()).decode()
    return f"[[sim:emit64={encoded}]]" + "".join(f"[[sim:{mark}]]" for mark in marks)


def uuid_of(id_: str) -> str:
    digits = id_.removeprefix("resp_")
    return f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}"


def valid(response: Response) -> Response:
    """The answer again, held to the client's own types; its constructor takes anything."""
    return Response.model_validate(response.to_dict(), strict=False)


async def prompt_of(service: Service, id_: str) -> str:
    result = await service.result(uuid_of(id_))
    return str((await service.client.get(f"/contexts/{result['context_id']}")).json()["content"])


async def ended(client: openai.AsyncOpenAI, id_: str) -> Response:
    async def final() -> Response | None:
        found = await client.responses.retrieve(id_)
        return None if found.status in ("queued", "in_progress") else found

    found: Response = await eventually(final, "the end of the response")
    return found


def events_of(text: str) -> list[dict[str, Any]]:
    """The events of a stream as it is on the wire, checked against their names and numbers."""
    found = []
    for block in text.split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.splitlines() if not line.startswith(":"))
        if fields:
            document = json.loads(fields["data"])
            assert (fields["event"], int(fields["id"])) == (document["type"], document["sequence_number"])
            EVENT.validate_python(document)
            found.append(document)
    return found
