"""A result's row as OpenAI's `response`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from uuid import UUID

from app.openai import logprobs as shapes
from app.openai.answers import Face, Row, choices_of, model_of
from app.openai.failures import OF_THE_REQUEST, CallsUnreadable
from app.openai.ids import object_id
from app.openai.responses_request import KIND, as_chat, wants_logprobs
from app.openai.written import Segment, read
from app.prompts.toolcalls import call_id
from app.queue.ticket import CANCELLED, FLEX, Phase, Status
from app.services.results import phase

# Those of the request that the answer repeats, where they were given.
ECHOED = (
    "instructions",
    "max_output_tokens",
    "previous_response_id",
    "prompt_cache_key",
    "safety_identifier",
    "temperature",
    "top_p",
    "user",
)
CUT_OFF = "length"


def render_response(row: Row, request: Mapping[str, Any]) -> dict[str, Any]:
    """The response as it stands; `request` as `Prepared` has it."""
    status = status_of(row, request)
    shown = head_of(row["id"], int(row["created_at"].timestamp()), model_of(row, request), request, status)
    if not Status(row["status"]).final:
        return shown
    shown["output"] = output_of(row, request)
    shown["usage"] = usage_of(row)
    if status == "completed":
        shown["completed_at"] = int(row["completed_at"].timestamp())
    if status == "incomplete":
        shown["incomplete_details"] = {"reason": "max_output_tokens"}
    if status == "failed":
        shown["error"] = error_of(row)
    return shown


def head_of(id_: UUID, created: int, model: str, request: Mapping[str, Any], status: str) -> dict[str, Any]:
    """A response without output."""
    return {
        "id": object_id(KIND, id_),
        "object": KIND,
        "created_at": created,
        "completed_at": None,
        "status": status,
        "background": bool(request.get("background")),
        "conversation": {"id": request["conversation"]} if "conversation" in request else None,
        "error": None,
        "incomplete_details": None,
        "model": model,
        "output": [],
        "usage": None,
        "metadata": request.get("metadata", {}),
        "parallel_tool_calls": request.get("parallel_tool_calls", True),
        "reasoning": {"effort": None, "summary": None, **request.get("reasoning", {})},
        "service_tier": FLEX if request.get("service_tier") == FLEX else "default",
        "store": request.get("store", True),
        "text": {"format": {"type": "text"}, **request.get("text", {})},
        "tool_choice": request.get("tool_choice", "auto"),
        "tools": [
            {"description": None, "parameters": None, "strict": None, **tool} for tool in request.get("tools", ())
        ],
        "top_logprobs": request.get("top_logprobs", 0),
        "truncation": request.get("truncation", "disabled"),
        **{name: request.get(name) for name in ECHOED},
    }


def status_of(row: Row, request: Mapping[str, Any]) -> str:
    match Status(row["status"]):
        case Status.PENDING:
            return "queued" if phase(row) == Phase.QUEUED else "in_progress"
        case Status.COMPLETED:
            if row["finish_reason"] == CUT_OFF:
                return "incomplete"
            return "failed" if lacks_calls(row, request) else "completed"
    return "cancelled" if row["error_code"] == CANCELLED else "failed"


def lacks_calls(row: Row, request: Mapping[str, Any]) -> bool:
    """Whether a call was required, and what the model wrote is none."""
    return required(request) and not read(choices_of(row)[0]["text"], as_chat(request)).calls


def error_of(row: Row) -> dict[str, Any]:
    """`code` is one that OpenAI's clients know, `type` is our own."""
    if row["status"] == Status.COMPLETED:
        failure = CallsUnreadable(object_id(KIND, row["id"]), row["finish_reason"])
        return {"code": "server_error", "message": failure.detail, "type": failure.code, "param": None}
    of_the_request = row["error_code"] in OF_THE_REQUEST
    return {
        "code": "invalid_prompt" if of_the_request else "server_error",
        "message": row["error_message"],
        "type": row["error_code"],
        "param": "input" if row["error_code"].startswith("prompt_") else None,
    }


def usage_of(row: Row) -> dict[str, Any] | None:
    if row["prompt_tokens"] is None:
        return None
    prompt, completion = row["prompt_tokens"], row["completion_tokens"] or 0
    return {
        "input_tokens": prompt,
        "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
        "output_tokens": completion,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": prompt + completion,
    }


def output_of(row: Row, request: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The items of a final result in the order they were written; one that failed shows what it said until then."""
    if row["status"] == Status.FAILED and not row["output"]:
        return []
    choice = choices_of(row)[0]
    segments = read(choice["text"], as_chat(request)).segments
    if not segments and not required(request):
        segments = [Segment("content")]
    naming = Naming(row["id"])
    items = [naming.item(each.kind, each.name, each.text) for each in segments]
    if items:
        # Only of the last one it is known that it was cut.
        items[-1]["status"] = "completed" if status_of(row, request) == "completed" else "incomplete"
        if items[-1]["type"] == "message" and not any(each.kind == "call" for each in segments):
            items[-1]["content"][0]["logprobs"] = logprobs_of(choice["logprobs"], request)
    return items


def required(request: Mapping[str, Any]) -> bool:
    return request.get("tool_choice") == "required"


class Naming:
    """Makes the items of a response one after the other, each with its id."""

    def __init__(self, id_: UUID) -> None:
        self._hex = id_.hex
        self._count = {"reasoning": 0, "content": 0, "call": 0}

    def item(self, kind: str, name: str, text: str, status: str = "completed") -> dict[str, Any]:
        number = self._count[kind]
        self._count[kind] += 1
        if kind == "call":
            return {
                "id": f"fc_{self._hex}_{number}",
                "type": "function_call",
                "status": status,
                "call_id": call_id(self._hex, 0, number),
                "name": name,
                "arguments": text,
            }
        suffix = f"_{number}" if number else ""
        if kind == "reasoning":
            return {
                "id": f"rs_{self._hex}{suffix}",
                "type": "reasoning",
                "summary": [],
                "content": [reasoning_part(text)],
                "encrypted_content": None,
                "status": status,
            }
        return {
            "id": f"msg_{self._hex}{suffix}",
            "type": "message",
            "status": status,
            "role": "assistant",
            "content": [part_of(text, [])],
        }


def reasoning_part(text: str) -> dict[str, Any]:
    return {"type": "reasoning_text", "text": text}


def part_of(text: str, logprobs: list[dict[str, Any]]) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": logprobs}


def logprobs_of(tokens: list[dict[str, Any]] | None, request: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Those of the text, where they were asked for; the bytes of half a character are not known."""
    shaped = shapes.of_chat(tokens, request.get("top_logprobs") or 0) if wants_logprobs(request) else None
    found: list[dict[str, Any]] = shaped["content"] if shaped else []
    for token in found:
        for each in (token, *token["top_logprobs"]):
            each["bytes"] = each["bytes"] or []
    return found


FACE = Face(KIND, "/v1/responses", render_response)
