"""POST /v1/images/generations, for models that make an image from a prompt: each image is a ticket."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import Field

from app.db.tables.contexts import Prompt
from app.errors import invalid
from app.openai.requests import OpenAIRequest, Prepared, Sources
from app.services.callers import Caller
from app.services.inputs import inputs_of
from app.services.webhooks import accepted
from app.storable import StorableText
from app.tasks.infer import InferParameters
from app.tasks.outputs import media_type_of
from app.tasks.purposes import IMAGE

KIND = "image"
MAX_IMAGES = 10
# What OpenAI's clients send where a caller leaves the choice to the model.
Chosen = Literal["auto"]


class ImageRequest(OpenAIRequest):
    """`negative_prompt` and what follows it are not OpenAI's."""

    model: Annotated[str | None, Field(min_length=1, max_length=255)] = Field(  # type: ignore[assignment]
        None, description="may be left out where one model makes images", examples=["image-rules"]
    )
    prompt: Annotated[StorableText, Field(min_length=1, examples=["A red sunset over the sea."])]
    n: Annotated[int | None, Field(ge=1, le=MAX_IMAGES)] = Field(None, description="one ticket each")
    size: Annotated[str | None, Field(pattern=r"^(auto|[1-9]\d{0,4}x[1-9]\d{0,4})$", examples=["512x512"])] = None
    response_format: Literal["b64_json"] | None = None
    output_format: Literal["png"] | None = None
    quality: Chosen | None = None
    background: Chosen | None = None
    safety_identifier: str | None = None
    stream: Literal[False] | None = None
    negative_prompt: StorableText | None = None
    guidance_scale: float | None = None
    num_inference_steps: int | None = None
    seed: int | None = Field(None, description="of the first image; the others have the numbers after it")

    def values(self, place: int) -> dict[str, Any]:
        """What the model is told for one of the images."""
        told = {name: getattr(self, name) for name in IMAGE.fields if name in type(self).model_fields}
        if self.size not in (None, "auto"):
            told["width"], told["height"] = map(int, str(self.size).split("x"))
        if self.seed is not None:
            told["seed"] = self.seed + place
        return {name: value for name, value in told.items() if value is not None}


async def prepare_images(services: Sources, caller: Caller, wanted: ImageRequest) -> list[Prepared]:
    """One ticket for each image.

    Raises:
        AppError: whatever is wrong with it, naming the parameter.
    """
    longest = services.settings.max_content_chars
    if len(wanted.prompt) > longest:
        raise invalid("prompt", f"is longer than {longest:,} characters")
    model, described = await services.inputs.model_for(caller, IMAGE, wanted.model)
    request = wanted.stored("prompt") | {"model": model}
    webhook = accepted(wanted.webhook, services.settings)
    return [
        Prepared(
            model,
            Prompt(inputs=inputs_of(IMAGE, described, wanted.values(place))),
            InferParameters(),
            KIND,
            request,
            webhook,
        )
        for place in range(wanted.n or 1)
    ]


def in_base64(image: bytes) -> str:
    """A model answers with the file, or with its base64 as a text."""
    return base64.b64encode(image).decode() if media_type_of(image).startswith("image/") else image.decode("latin-1")


def render_images(created: int, images: Sequence[bytes], size: str | None) -> dict[str, Any]:
    """OpenAI's object; `created` in Unix seconds."""
    return {
        "created": created,
        "data": [{"b64_json": in_base64(image)} for image in images],
        "output_format": "png",
        "size": size,
    }
