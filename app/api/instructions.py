"""Named instructions: texts that chats are begun with, the owner's own and those that others share."""

from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, Any, Self
from uuid import UUID

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, Field

from app.api.dependencies import caller_of, problems, root_of, services_of
from app.api.schemas import RequestBody
from app.api.security import READ, SUBMIT, GuardedRoute
from app.services.callers import Caller
from app.services.instructions import MOST_NAME_CHARS, MOST_TEXT_CHARS, Wanted
from app.storable import StorableText

router = APIRouter(prefix="/instructions", tags=["instructions"], route_class=GuardedRoute)

NOT_BLANK = r"\S"


class InstructionsPut(RequestBody):
    name: Annotated[StorableText, Field(max_length=MOST_NAME_CHARS, pattern=NOT_BLANK)] = Field(
        description="no two of an owner have the same"
    )
    text: Annotated[StorableText, Field(max_length=MOST_TEXT_CHARS, pattern=NOT_BLANK)]
    parent_id: UUID | None = Field(None, strict=False, description="whose text goes before this one")
    shared: bool = Field(False, description="all owners may use them; for the scope `admin`")

    @property
    def wanted(self) -> Wanted:
        return Wanted(self.name.strip(), self.text, self.parent_id, self.shared)


class InstructionsSummary(BaseModel):
    id: UUID
    name: str
    text: str
    parent_id: UUID | None
    shared: bool
    own: bool = Field(description="false for those that another owner shares, who alone can change them")
    changed_at: datetime

    @classmethod
    def of(cls, row: Mapping[str, Any], caller: Caller) -> Self:
        return cls(**dict(row) | {"own": row["owner_id"] == caller.owner_id})


class Instructions(InstructionsSummary):
    whole: str = Field(description="what a chat begins with: the texts of the parents, then this one")


async def _whole(request: Request, id_: UUID) -> Instructions:
    service, caller = services_of(request).instructions, caller_of(request)
    row, whole = await service.get(caller, id_), await service.text(caller, id_)
    return Instructions.of(dict(row) | {"whole": whole}, caller)


@router.get("/", dependencies=[READ], response_model=list[InstructionsSummary], responses=problems())
async def list_instructions(request: Request) -> object:
    """The owner's own by name, then those that others share: 500 at most."""
    caller = caller_of(request)
    return [InstructionsSummary.of(row, caller) for row in await services_of(request).instructions.visible(caller)]


@router.post(
    "/",
    dependencies=[SUBMIT],
    status_code=201,
    response_model=Instructions,
    responses=problems(400, 413, 415, 422),
)
async def create_instructions(body: InstructionsPut, request: Request, response: Response) -> object:
    """Stores a text under a name."""
    id_ = await services_of(request).instructions.create(caller_of(request), body.wanted)
    response.headers["Location"] = f"{root_of(request)}/instructions/{id_}"
    return await _whole(request, id_)


@router.get("/{instructions_id}", dependencies=[READ], response_model=Instructions, responses=problems(404, 422))
async def get_instructions(instructions_id: UUID, request: Request) -> object:
    """One text, and what it comes to with those of its parents."""
    return await _whole(request, instructions_id)


@router.put(
    "/{instructions_id}",
    dependencies=[SUBMIT],
    response_model=Instructions,
    responses=problems(400, 404, 409, 413, 415, 422),
)
async def change_instructions(instructions_id: UUID, body: InstructionsPut, request: Request) -> object:
    """Replaces all fields; 409 where others follow what would no longer be shared."""
    await services_of(request).instructions.change(caller_of(request), instructions_id, body.wanted)
    return await _whole(request, instructions_id)


@router.delete("/{instructions_id}", dependencies=[SUBMIT], status_code=204, responses=problems(404, 409, 422))
async def delete_instructions(instructions_id: UUID, request: Request) -> None:
    """Removes them; 409 while others have them as their parent. Chats that began with them stay as they are."""
    await services_of(request).instructions.delete(caller_of(request), instructions_id)
