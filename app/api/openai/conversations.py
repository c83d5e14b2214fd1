"""/v1/conversations: what responses begin with, and add to."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request
from pydantic import ConfigDict, Field

from app.api.dependencies import caller_of, services_of
from app.api.openai.batches import Metadata
from app.api.openai.documents import openai_errors
from app.api.openai.files import listed
from app.api.security import READ, SUBMIT, GuardedRoute
from app.errors import invalid
from app.openai.conversation_items import stored_items
from app.openai.ids import object_id, uuid_of
from app.storable import Storable

KIND = "conversation"
Items = Annotated[list[dict[str, Any]], Field(max_length=20)]


class Body(Storable):
    model_config = ConfigDict(extra="forbid", strict=True)


class NewConversation(Body):
    items: Items | None = Field(None, description="what it begins with, as the `input` of a response")
    metadata: Metadata | None = None


class ChangedConversation(Body):
    metadata: Metadata | None = Field(None, description="takes the place of what was there; kept where it is left out")


class NewItems(Body):
    items: Items = Field(default_factory=list, description="at least one")


router = APIRouter(prefix="/v1/conversations", tags=["openai"], route_class=GuardedRoute)


@router.post("", dependencies=[SUBMIT], responses=openai_errors(413, 415))
async def create_conversation(body: NewConversation, request: Request) -> dict[str, Any]:
    """Begins a conversation; `conversation` of POST /v1/responses goes on with it."""
    items = stored_items(body.items or [])
    return _rendered(await services_of(request).conversations.create(caller_of(request), body.metadata, items))


@router.get("/{conversation_id}", dependencies=[READ], responses=openai_errors(410))
async def get_conversation(conversation_id: str, request: Request) -> dict[str, Any]:
    """A conversation, without its items."""
    return _rendered(await services_of(request).conversations.get(caller_of(request), uuid_of(KIND, conversation_id)))


@router.post("/{conversation_id}", dependencies=[SUBMIT], responses=openai_errors(410, 413, 415))
async def update_conversation(conversation_id: str, body: ChangedConversation, request: Request) -> dict[str, Any]:
    """Gives it other metadata."""
    id_ = uuid_of(KIND, conversation_id)
    conversations, caller = services_of(request).conversations, caller_of(request)
    if "metadata" not in body.model_fields_set:
        return _rendered(await conversations.get(caller, id_))
    return _rendered(await conversations.update(caller, id_, body.metadata))


@router.delete("/{conversation_id}", dependencies=[SUBMIT], responses=openai_errors(410))
async def delete_conversation(conversation_id: str, request: Request) -> dict[str, Any]:
    """Removes a conversation with its items; its responses stay."""
    id_ = uuid_of(KIND, conversation_id)
    await services_of(request).conversations.delete(caller_of(request), id_)
    return {"id": object_id(KIND, id_), "object": "conversation.deleted", "deleted": True}


@router.post("/{conversation_id}/items", dependencies=[SUBMIT], responses=openai_errors(410, 413, 415))
async def create_items(conversation_id: str, body: NewItems, request: Request) -> dict[str, Any]:
    """Adds items at the end."""
    conversations, caller, id_ = services_of(request).conversations, caller_of(request), uuid_of(KIND, conversation_id)
    await conversations.get(caller, id_)
    if not body.items:
        raise invalid("items", "is required")
    items = stored_items(body.items)
    await conversations.add(caller, id_, items)
    return listed(items, False)


@router.get("/{conversation_id}/items", dependencies=[READ], responses=openai_errors(410))
async def list_items(
    conversation_id: str,
    request: Request,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
    order: Literal["asc", "desc"] = "desc",
    after: Annotated[str | None, Query(description="the last id of the page before")] = None,
) -> dict[str, Any]:
    """Its items, newest first; those of a response are there once it has ended."""
    page = await services_of(request).conversations.page(
        caller_of(request), uuid_of(KIND, conversation_id), after, limit, newest_first=order == "desc"
    )
    return listed(page.items, page.more)


@router.get("/{conversation_id}/items/{item_id}", dependencies=[READ], responses=openai_errors(410))
async def get_item(conversation_id: str, item_id: str, request: Request) -> dict[str, Any]:
    """One item."""
    return await services_of(request).conversations.item(caller_of(request), uuid_of(KIND, conversation_id), item_id)


@router.delete("/{conversation_id}/items/{item_id}", dependencies=[SUBMIT], responses=openai_errors(410))
async def delete_item(conversation_id: str, item_id: str, request: Request) -> dict[str, Any]:
    """Removes an item; the answer is the conversation."""
    id_ = uuid_of(KIND, conversation_id)
    return _rendered(await services_of(request).conversations.remove_item(caller_of(request), id_, item_id))


def _rendered(row: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "id": object_id(KIND, row["id"]),
        "object": KIND,
        "created_at": int(row["created_at"].timestamp()),
        "metadata": row["metadata"] or {},
    }
