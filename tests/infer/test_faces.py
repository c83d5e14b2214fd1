"""Models that make and read images, and find names, asked through /v1/images/generations and SEMOSS's /api/generate."""

import asyncio
import base64
import io
import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import openai
import pytest
import pytest_asyncio
from PIL import Image

from app.config import Settings
from tests.service import Service, eventually, running_api, running_dispatcher

DRAWN = {"model": "image-rules", "prompt": "a red house by the sea", "size": "64x48"}
PICTURE = {"prompt": "a red house by the sea", "width": 64, "height": 48}


@pytest.fixture
def make_settings(make_settings: Callable[..., Settings], repository: Path) -> Callable[..., Settings]:
    def make(**changes: object) -> Settings:
        return make_settings(**({"model_repository": str(repository)} | changes))

    return make


async def listed(api: Service) -> None:
    async def ready() -> bool:
        models = (await api.client.get("/models/")).json()
        return any(each["name"] == "image-rules" and each["state"] == "ready" for each in models)

    await eventually(ready, "the models are known")


@pytest_asyncio.fixture
async def service(service: Service) -> Service:
    await listed(service)
    return service


@pytest_asyncio.fixture
async def client(service: Service) -> AsyncIterator[openai.AsyncOpenAI]:
    url = f"{str(service.client.base_url).rstrip('/')}/v1"
    async with openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0, timeout=60) as opened:
        yield opened


def opened(image: str | None) -> Image.Image:
    assert image is not None
    return Image.open(io.BytesIO(base64.b64decode(image, validate=True)))


async def complete(service: Service, **body: Any) -> dict[str, Any]:
    answer = await service.client.post("/api/generate", json=body, timeout=60)
    assert answer.status_code == 200, answer.text
    last: dict[str, Any] = json.loads(answer.text.strip().splitlines()[-1].removeprefix("data: "))
    assert last["status"] == "complete", last
    return last


async def test_openais_client_has_images_made(service: Service, client: openai.AsyncOpenAI) -> None:
    more = {"seed": 7, "negative_prompt": "trees", "guidance_scale": 9, "num_inference_steps": 12}
    made = await client.images.generate(**DRAWN, n=2, extra_body=more)  # type: ignore[call-overload]
    first, second = [opened(image.b64_json) for image in made.data]
    assert (first.format, first.size, made.size, made.output_format) == ("PNG", (64, 48), "64x48", "png")
    assert first.info["parameters"] != second.info["parameters"]
    tickets = (await service.client.get("/results/")).json()
    seeds = {each["data"][0] for ticket in tickets for each in ticket["outputs"] if each["name"] == "seed_used"}
    assert seeds == {7, 8}
    again = await client.images.generate(**DRAWN, extra_body=more)  # type: ignore[call-overload]
    assert again.data[0].b64_json == made.data[0].b64_json


async def test_the_only_model_that_makes_images_need_not_be_named(client: openai.AsyncOpenAI) -> None:
    made = await client.images.generate(prompt="a lamp", response_format="b64_json", quality="auto")
    assert made.data is not None
    assert opened(made.data[0].b64_json).size == (512, 512)


IMPOSSIBLE: tuple[tuple[dict[str, Any], str, str], ...] = (
    ({"model": "chat"}, "model", "chat is no model that makes images; those that do are image-rules"),
    ({"model": "vision-rules"}, "model", "vision-rules is no model that makes images"),
    ({"n": 11}, "n", "10"),
    ({"size": "big"}, "size", "match"),
    ({"response_format": "url"}, "response_format", "b64_json"),
    ({"style": "vivid"}, "style", "say it in the prompt"),
    ({"seed": 2**63}, "seed", "INT64"),
    ({"colour": "red"}, "colour", "no such parameter"),
    ({"prompt": ""}, "prompt", "at least 1"),
)


async def test_what_is_not_possible_is_refused(service: Service, client: openai.AsyncOpenAI) -> None:
    for changed, param, said in IMPOSSIBLE:
        with pytest.raises(openai.BadRequestError) as refused:
            await client.post("/images/generations", body=DRAWN | changed, cast_to=object)
        body: Any = refused.value.body
        assert (body["param"], said in body["message"]) == (param, True), body
    assert (await service.client.get("/results/")).json() == []


async def test_an_image_that_the_model_refuses_is_the_requests_fault(client: openai.AsyncOpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="width is 4 and must be from 16 to 2048") as refused:
        await client.images.generate(**DRAWN | {"size": "4x48"})
    assert refused.value.code == "model_refused"
    with pytest.raises(openai.NotFoundError, match="ever served a model"):
        await client.images.generate(**DRAWN | {"model": "nobody"})


async def test_the_same_key_is_the_same_image(service: Service) -> None:
    headers = {"Idempotency-Key": "once"}
    first, second = [
        await service.client.post("/v1/images/generations", json=DRAWN | {"n": 2}, headers=headers) for _ in range(2)
    ]
    assert first.json()["data"] == second.json()["data"]
    assert "Idempotent-Replayed" not in first.headers
    assert second.headers["Idempotent-Replayed"] == "true"
    assert len((await service.client.get("/results/")).json()) == 2


async def test_while_no_server_has_the_model_nothing_is_stored(make_settings: Callable[..., Settings]) -> None:
    async with running_api(make_settings()) as known:
        await listed(known)
    async with running_api(make_settings(triton_urls=("127.0.0.1:9",))) as alone:
        answer = await alone.client.post("/v1/images/generations", json=DRAWN)
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "model_not_ready")
        assert int(answer.headers["Retry-After"]) > 0
        assert (await alone.client.get("/results/")).json() == []


async def test_semoss_draws(service: Service) -> None:
    told = {"negative_prompt": "trees", "guidance_scale": 5.5, "num_inference_steps": 4, "seed": 11}
    ignored = {"consistency_decoder": False, "file_name": "client_x.jpg"}
    said = await complete(service, **PICTURE, **told, **ignored)
    image = opened(said.pop("image"))
    assert (image.format, image.size) == ("PNG", (64, 48))
    assert 0 <= said.pop("generation_time") < 60
    assert said == {
        "status": "complete", "message": "Generation complete.", "model_name": "image-rules",
        "vae_model_name": "default", **PICTURE, **told, "seed": "11",
    }  # fmt: skip
    seeded = await complete(service, prompt="a lamp", model="image-rules")
    assert int(seeded["seed"]) >= 0
    assert opened(seeded["image"]).size == (512, 512)


async def test_semoss_finds_and_masks_entities(service: Service) -> None:
    text = "Ada Lovelace wrote from London."
    said = await complete(service, text=text, entities=["person", "city"], mask_entities=["person"])
    assert said["output"] == "[PERSON_1] wrote from London."
    assert [(each["label"], text[each["start"] : each["end"]]) for each in said["raw_output"]] == [
        ("person", "Ada Lovelace"),
        ("city", "London"),
    ]
    assert said["mask_values"] == {"[PERSON_1]": "Ada Lovelace", "Ada Lovelace": "[PERSON_1]"}
    assert (said["input"], said["entities"], said["model"]) == (text, ["person", "city"], "ner-rules")
    unmasked = await complete(service, text=text, entities=["person"])
    assert (unmasked["output"], unmasked["mask_values"]) == (text, {})
    long = await complete(service, text=text * 3000, entities=["person"], mask_entities=["person"])
    assert long["output"].startswith("[PERSON_1] wrote from London.[PERSON_1]")


async def test_semoss_looks_at_an_image(service: Service) -> None:
    file = io.BytesIO()
    Image.new("RGB", (30, 20), "red").save(file, "PNG")
    text = base64.b64encode(file.getvalue()).decode()
    for image in (text, f"data:image/png;base64,{text}"):
        said = await complete(service, image=image, prompt="What size is it?")
        assert "30" in said["output"]
        assert "20" in said["output"]
        assert (said["input"], said["model"]) == ("What size is it?", "vision-rules")


async def test_semoss_prompt_alone_goes_to_the_model_that_chats(service: Service) -> None:
    said = await complete(service, prompt="[[sim:emit=Hi.]]")
    assert (said["output"], said["model"]) == ("Hi.", "chat")


REFUSED: tuple[tuple[dict[str, Any], str, str], ...] = (
    ({**PICTURE, "model": "chat"}, "model", "no model that makes images"),
    ({**PICTURE, "temperature": 1.0}, "temperature", "is not for a model that makes images"),
    ({"width": 64}, "prompt", "is required"),
    ({**PICTURE, "width": 2**31}, "width", "outside the range of INT32"),
    ({"entities": ["person"]}, "text", "is required"),
    ({"text": "Ada", "prompt": "x"}, "prompt", "is not for a model that finds entities"),
    ({"image": "not base64!"}, "image", "no base64"),
    ({"prompt": "x", "model": "ner-rules"}, "prompt", "is not for a model that finds entities"),
    ({"model": "chat"}, "prompt", "is required"),
)


async def test_semoss_refuses(service: Service) -> None:
    for body, field, said in REFUSED:
        answer = await service.client.post("/api/generate", json=body)
        assert answer.status_code == 422, answer.text
        (error,) = answer.json()["errors"]
        assert (error["field"], said in error["message"]) == (field, True), error
    assert (await service.client.get("/results/")).json() == []


async def test_semoss_tells_the_position_of_an_image(api: Service) -> None:
    """Nothing runs until the dispatcher starts."""
    await listed(api)
    first = asyncio.create_task(complete(api, **PICTURE))

    async def waits() -> bool:
        return bool((await api.client.get("/results/")).json())

    await eventually(waits, "the first is stored")
    async with api.client.stream("POST", "/api/generate", json=PICTURE, timeout=60) as stream:
        events = [json.loads(line[6:]) async for line in until_running(api, stream) if line.startswith("data: ")]
    assert events[0] == {"status": "waiting", "message": "Your position in the queue is: 2"}
    assert events[-1]["status"] == "complete"
    opened((await first)["image"])


async def until_running(api: Service, stream: Any) -> AsyncIterator[str]:
    """The lines of a stream; after the first event a dispatcher runs."""
    lines = stream.aiter_lines()
    async for line in lines:
        yield line
        if line.startswith("data: "):
            break
    async with running_dispatcher(api.settings):
        async for line in lines:
            yield line
