"""Requests to SEMOSS's remote client server, and which model one is for."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from fastapi import Request
from pydantic import ConfigDict, Field

from app.api.dependencies import caller_of, services_of
from app.db.tables.contexts import Prompt
from app.errors import invalid
from app.openai.chat_request import prepare_chat
from app.openai.default_model import model_or_default
from app.openai.requests import Prepared
from app.services.inputs import inputs_of
from app.storable import Storable, StorableText
from app.tasks.infer import InferParameters
from app.tasks.purposes import ENTITIES, IMAGE, VISION, Purpose, purpose_of

SAMPLING = {"temperature": 0.2, "top_p": 0.2}
# Of a request, what goes to a model that chats, and what has no effect.
OF_CHATS = frozenset({"prompt", "max_new_tokens", "temperature", "top_p", "seed", "stop"})
OF_IMAGES_ALONE = frozenset(IMAGE.fields) - {"prompt", "seed"}
WITHOUT_EFFECT = frozenset({"model", "consistency_decoder", "file_name"})


class Body(Storable):
    model_config = ConfigDict(extra="allow", strict=True)

    model: Annotated[StorableText | None, Field(max_length=255)] = None

    def given(self) -> dict[str, Any]:
        return {name: value for name, value in self.model_dump().items() if value is not None}


class ChatBody(Body):
    """A chat as on /v1/chat/completions, with `temperature` and `top_p` 0.2 where they are not given."""

    messages: Annotated[list[dict[str, Any]], Field(min_length=1, examples=[[{"role": "user", "content": "Hello."}]])]
    max_new_tokens: int | None = Field(None, description="the same as max_tokens")
    stream: bool | None = None


class EmbeddingBody(Body):
    """As on /v1/embeddings."""

    input: str | list[Any] = Field(examples=["A small lamp."])


class GenerateBody(Body):
    """What is given goes to a model that takes it: a `text`, an `image`, or a `prompt` to one that chats or draws."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    prompt: Annotated[str | None, Field(min_length=1, examples=["Hello."])] = None
    max_new_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    text: Annotated[str | None, Field(min_length=1)] = Field(None, description="to find entities in")
    entities: list[str] | None = Field(None, description="which; the default is all that the model knows")
    mask_entities: list[str] | None = Field(None, description="which of them are masked; the default is none")
    image: Annotated[str | None, Field(min_length=1)] = Field(
        None, description="to look at, with `prompt` as the question: a file in base64, or a data URL"
    )
    negative_prompt: str | None = None
    guidance_scale: float | None = None
    num_inference_steps: int | None = None
    width: int | None = None
    height: int | None = None
    consistency_decoder: Literal[False] | None = None
    file_name: str | None = Field(None, description="has no effect")

    def purpose(self) -> Purpose | None:
        """What the model has to be for; None where only a prompt is given, with which several do something."""
        given = self.given().keys()
        if given & {"text", "entities", "mask_entities"}:
            return ENTITIES
        if "image" in given:
            return VISION
        return IMAGE if given & OF_IMAGES_ALONE else None


async def prepare_body_chat(request: Request, body: Body, **more: Any) -> Prepared:
    """Raises AppError for whatever is wrong with it, naming the parameter."""
    given = SAMPLING | body.given() | more
    if (limit := given.pop("max_new_tokens", None)) is not None and given.setdefault("max_tokens", limit) != limit:
        raise invalid("max_new_tokens", "differs from max_tokens; give one of them")
    return await prepare_chat(services_of(request), caller_of(request), given)


async def prepare_generate(request: Request, body: GenerateBody) -> tuple[Prepared, Purpose | None]:
    """The ticket, and what its model is for: None where it chats.

    Raises:
        AppError: whatever is wrong with it, naming the parameter.
    """
    purpose, named = body.purpose(), body.model
    services, caller = services_of(request), caller_of(request)
    inputs = services.inputs
    if purpose is None:
        named = await model_or_default(services, caller, named)
        described = await inputs.look(named)
        purpose = None if described is None else purpose_of(described)
        if purpose is None:
            _require_fields(body, OF_CHATS, {"prompt"}, "chats")
            content = [{"role": "user", "content": body.prompt}]
            more = body.model_copy(update={"prompt": None})
            return await prepare_body_chat(request, more, model=named, messages=content), None
    elif named is None and (default := services.settings.default_model):
        named = default if default in await inputs.models_for(caller, purpose) else None
    _require_fields(body, purpose.fields.keys(), purpose.needed - {"entities"}, purpose.does)
    model, described = await inputs.model_for(caller, purpose, named)
    return _tensors(body, purpose, model, described), purpose


def _tensors(body: GenerateBody, purpose: Purpose, model: str, described: Mapping[str, Any]) -> Prepared:
    given = body.given()
    values = {field: given[field] for field in purpose.fields if field in given}
    if purpose is ENTITIES:
        values.setdefault("mask_entities", [])
    if purpose is VISION:
        values["image"] = decoded(values["image"])
    tensors = inputs_of(purpose, described, values)
    request = {name: value for name, value in given.items() if name not in ("text", "prompt", "image")}
    return Prepared(model, Prompt(inputs=tensors), InferParameters(), purpose.name, request | {"model": model})


def _require_fields(body: GenerateBody, known: Any, needed: Any, does: str) -> None:
    given = body.given().keys()
    for field in sorted(given - known - WITHOUT_EFFECT):
        raise invalid(field, f"is not for a model that {does}: leave it out")
    for field in sorted(needed - given):
        raise invalid(field, f"is required: it goes to a model that {does}")


def decoded(image: str) -> bytes:
    """The file that a base64 text or a data URL holds.

    Raises:
        InvalidRequest: it is neither.
    """
    head, comma, rest = image.partition(",")
    try:
        return base64.b64decode(rest if comma and head.startswith("data:") else image, validate=True)
    except (binascii.Error, ValueError):
        raise invalid("image", "is no base64: send the file in base64, or a data URL") from None
