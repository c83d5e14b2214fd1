"""/protollm: the routes of ProtoLLM's queue API, on the same tickets; the caller's `job_id` names the ticket."""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, ConfigDict, Field

from app.api.dependencies import caller_of, services_of
from app.api.faces.tickets import ERRORS, mark
from app.api.holding import CLIENT_CLOSED_REQUEST, completed, make_ticket
from app.api.security import WORK, GuardedRoute
from app.api.tickets import JsonBytes
from app.errors import InvalidRequest
from app.openai.chat_render import render_chat
from app.openai.chat_request import prepare_chat
from app.openai.requests import renamed
from app.storable import Storable, StorableText

NAMES = {"max_tokens": "meta.tokens_limit", "stop": "meta.stop_words", "temperature": "meta.temperature"}
NAMES |= {"model": "meta.model"}
# Priorities of tickets go up to 100.
PRIORITY_STEP = 20


class Meta(BaseModel):
    model_config = ConfigDict(strict=True, allow_inf_nan=False)

    temperature: float | None = 0.2
    tokens_limit: int | None = Field(None, description="the default is DEFAULT_MAX_TOKENS")
    stop_words: list[str] | None = None
    model: Annotated[StorableText | None, Field(max_length=255)] = None


class Job(Storable):
    model_config = ConfigDict(strict=True)

    job_id: Annotated[
        str,
        Field(
            pattern=r"^[\x21-\x7e]{1,200}$",
            description="names the ticket of its route: for 24 hours the same job gets the same answer, another a 422",
        ),
    ]
    meta: Meta
    priority: Annotated[int | None, Field(ge=0, le=5)] = Field(None, description="5 is served first")


class Prompt(Job):
    content: Annotated[str, Field(min_length=1, examples=["What is AI?"])]


class Message(BaseModel):
    model_config = ConfigDict(strict=True)

    role: Literal["system", "user", "assistant"]
    content: str


class Chat(Job):
    messages: Annotated[list[Message], Field(min_length=1, examples=[[{"role": "user", "content": "What is AI?"}]])]


class Answer(BaseModel):
    content: str


router = APIRouter(prefix="/protollm", tags=["protollm"], route_class=GuardedRoute, dependencies=[WORK])


@router.post("/generate", response_model=Answer, responses=ERRORS)
async def generate(body: Prompt, request: Request) -> object:
    """One message to the model, and its answer."""
    return await _answered(request, "generate", body, [{"role": "user", "content": body.content}])


@router.post("/chat_completion", response_model=Answer, responses=ERRORS)
async def chat_completion(body: Chat, request: Request) -> object:
    """A conversation, and the model's next message."""
    return await _answered(request, "chat_completion", body, [message.model_dump() for message in body.messages])


async def _answered(request: Request, route: str, job: Job, messages: list[dict[str, str]]) -> Response:
    meta = job.meta
    chat = {
        "model": meta.model,
        "messages": messages,
        "temperature": meta.temperature,
        "max_tokens": meta.tokens_limit,
        "stop": meta.stop_words or None,
    }
    try:
        prepared = await prepare_chat(services_of(request), caller_of(request), chat)
    except InvalidRequest as error:
        raise renamed(error, lambda name: NAMES.get(name, name)) from None
    row, replayed = await make_ticket(
        request,
        prepared,
        # Apart from those that clients send themselves, and, as ProtoLLM's own examples do, one id for both routes.
        f"protollm:{route}:{job.job_id}",
        priority=(job.priority or 0) * PRIORITY_STEP,
        client_reference=job.job_id,
    )
    final = await completed(request, row)
    if final is None:
        return Response(status_code=CLIENT_CLOSED_REQUEST)
    message = render_chat(final, prepared.request)["choices"][0]["message"]
    return mark(JsonBytes(Answer(content=message["content"] or "")), row, prepared, replayed)
