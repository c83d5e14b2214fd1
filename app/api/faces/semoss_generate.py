"""POST /api/generate of SEMOSS's remote client server: what it does is up to the model."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import Any

from fastapi import APIRouter, Request, Response
from pydantic_core import from_json, to_json

from app.api.dependencies import IdempotencyKey, caller_of, services_of
from app.api.faces.semoss_request import GenerateBody, prepare_generate
from app.api.faces.tickets import ERRORS, mark
from app.api.holding import DATABASE_RETRY_SECONDS, failure, make_ticket, stopping, stream_until_final
from app.api.security import WORK, GuardedRoute
from app.api.sse import event_bytes
from app.errors import AppError, DatabaseUnavailable
from app.openai import chat_render
from app.openai.answers import Row, model_of, usage_of
from app.openai.images import in_base64
from app.openai.requests import Prepared
from app.queue.ticket import Status
from app.services.results import Waiting, never_gone
from app.tasks.purposes import ENTITIES, IMAGE, Purpose, output_of

# How often a waiting client is told its position, in seconds.
POSITION_SECONDS = 1.0
COMPLETE = {"status": "complete", "message": "Generation complete."}
# Of errors that SEMOSS has a word of its own for.
STATUSES = {"cancelled": "cancelled"} | dict.fromkeys(("expired", "idle_timeout", "run_timeout"), "timeout")

router = APIRouter(prefix="/api", tags=["semoss"], route_class=GuardedRoute)
EVENTS: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "`waiting` with the position, `processing`, then `complete` or `error`, as server-sent events",
        "content": {"text/event-stream": {}},
    }
}


@router.post("/generate", dependencies=[WORK], response_class=Response, responses=ERRORS | EVENTS)
async def generate(body: GenerateBody, request: Request, key: IdempotencyKey = None) -> Response:
    """A prompt, a text or an image to a model; the position in the queue while it waits, and the answer at the end."""
    prepared, purpose = await prepare_generate(request, body)
    row, replayed = await make_ticket(request, prepared, key)
    events = _events(request, row, prepared, purpose, body)
    return mark(await stream_until_final(request, row["id"], events, _error_event), row, prepared, replayed)


async def _events(
    request: Request, row: Row, prepared: Prepared, purpose: Purpose | None, body: GenerateBody
) -> AsyncGenerator[bytes]:
    results, caller = services_of(request).results, caller_of(request)
    said: dict[str, Any] = {}
    while True:
        try:
            # At once the first time, then when it ends or after a while.
            row = await results.wait(caller, row["id"], POSITION_SECONDS if said else 0, never_gone)
            if Status(row["status"]).final:
                break
            state = _state(await results.waiting(row))
        except DatabaseUnavailable:
            await asyncio.sleep(DATABASE_RETRY_SECONDS)
            state = said
        if results.stopping:
            raise stopping(row)
        if state != said:
            said = state
            yield event_bytes(to_json(state))
    if row["status"] == Status.FAILED:
        raise failure(row)
    if purpose is None:
        answer = _text(row, prepared, body)
    else:
        answer = await _tensors(request, row, purpose, body)
    yield event_bytes(to_json(COMPLETE | answer))


def _text(row: Row, prepared: Prepared, body: GenerateBody) -> dict[str, Any]:
    message = chat_render.render_chat(row, prepared.request)["choices"][0]["message"]
    return {
        "output": message["content"] or "",
        "input": body.prompt,
        "model": model_of(row, prepared.request),
        "usage": usage_of(row),
    }


async def _tensors(request: Request, row: Row, purpose: Purpose, body: GenerateBody) -> dict[str, Any]:
    said: dict[str, bytes] = {}
    for field in purpose.answers:
        if (output := output_of(purpose, row["answer"], field)) is not None:
            elements = await services_of(request).outputs.elements(caller_of(request), row["id"], output)
            said |= {field: elements[0]} if elements else {}
    if purpose is IMAGE:
        return _image(row, body, said.get("image", b""))
    if purpose is not ENTITIES:
        return {"output": said.get("text", b"").decode(), "input": body.prompt, "model": row["model"]}
    masks = _parsed(said.get("mask_map", b"{}"))
    return {
        "output": said.get("masked_text", b"").decode(),
        "raw_output": _parsed(said.get("spans", b"[]")),
        # As SEMOSS has it, in both directions.
        "mask_values": masks | {text: mask for mask, text in masks.items()} if isinstance(masks, dict) else masks,
        "input": body.text,
        "entities": body.entities or [],
        "model": row["model"],
    }


def _image(row: Row, body: GenerateBody, image: bytes) -> dict[str, Any]:
    used = output_of(IMAGE, row["answer"], "seed")
    seed = used["data"][0] if used is not None and used.get("data") else body.seed
    return {
        "image": in_base64(image),
        "generation_time": round((row["completed_at"] - row["started_at"]).total_seconds(), 2),
        "seed": None if seed is None else str(seed),
        "prompt": body.prompt,
        "negative_prompt": body.negative_prompt,
        "guidance_scale": body.guidance_scale,
        "num_inference_steps": body.num_inference_steps,
        "height": body.height,
        "width": body.width,
        "model_name": row["model"],
        "vae_model_name": "default",
    }


def _parsed(text: bytes) -> Any:
    """What a model wrote as JSON, or its text where it is none."""
    try:
        return from_json(text)
    except ValueError:
        return text.decode(errors="replace")


def _state(waiting: Waiting | None) -> dict[str, Any]:
    if waiting is None:
        return {"status": "processing", "message": "Generating..."}
    return {"status": "waiting", "message": f"Your position in the queue is: {waiting.position}"}


def _error_event(error: AppError) -> bytes:
    status = STATUSES.get(error.code, "error")
    return event_bytes(to_json({"status": status, "message": error.detail, "code": error.code}))
