"""Images in chats, on their way to the vLLM backend's input `image`."""

import base64
import io
import shutil
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from PIL import Image

from app.config import Settings
from app.engines.triton.vllm import encode
from tests.console.test_entrance import form_of
from tests.faulty_http import Asked, faulty_server, finish, head, text
from tests.fleet.test_server_rows import added
from tests.servers import TEST_MODELS, RunningTriton, start_triton
from tests.service import Service, eventually


@pytest.fixture(scope="module")
def triton(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningTriton]:
    server = start_triton(tmp_path_factory.mktemp("triton"), ("sees", "chat", "echo"))
    yield server
    server.stop()


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`echo` has a template that sees, and no input for images."""
    folder = tmp_path_factory.mktemp("models")
    for name in ("sees", "chat", "echo"):
        shutil.copytree(TEST_MODELS / name, folder / name)
    shutil.copy(TEST_MODELS / "sees" / "1" / "chat_template.jinja", folder / "echo" / "1")
    return folder


@pytest.fixture
def make_settings(make_settings: Callable[..., Settings], repository: Path) -> Callable[..., Settings]:
    def make(**changes: object) -> Settings:
        return make_settings(**({"model_repository": str(repository)} | changes))

    return make


def in_base64(colour: str) -> str:
    file = io.BytesIO()
    Image.new("RGB", (30, 20), colour).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


def image(url: str) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": url, "detail": "low"}}


RED = image(f"data:image/png;base64,{in_base64('red')}")
QUESTION = {"type": "text", "text": "What colour is it?"}


def body(*parts: dict[str, Any], model: str = "sees") -> dict[str, Any]:
    return {"model": model, "messages": [{"role": "user", "content": list(parts)}], "max_tokens": 8}


async def known(service: Service) -> None:
    async def ready() -> bool:
        models = (await service.client.get("/models/")).json()
        return {each["name"] for each in models if each["state"] == "ready"} >= {"sees", "chat", "echo"}

    await eventually(ready, "the models are known")


async def test_images_come_to_the_model_with_their_places(service: Service, client: openai.AsyncOpenAI) -> None:
    one = await client.chat.completions.create(**body(QUESTION, RED))
    assert (one.choices[0].message.content or "").startswith("[simulated, 1 image]")
    asked = body(RED, image(f"data:image/jpeg;base64,{in_base64('blue')}"), QUESTION)
    two = "".join(
        [
            chunk.choices[0].delta.content or ""
            async for chunk in await client.chat.completions.create(**asked, stream=True)
        ]
    )
    assert two.startswith("[simulated, 2 images]")
    (last, _) = (await service.client.get("/results/")).json()
    context = (await service.client.get(f"/contexts/{last['context_id']}")).json()
    assert context["content"].count("<|image_pad|>") == 2
    assert context["content"].index("<|image_pad|>") < context["content"].index("What colour")


async def test_a_response_sees_images_too_and_shows_them_among_its_input(
    service: Service, client: openai.AsyncOpenAI
) -> None:
    picture = {"type": "input_image", "image_url": RED["image_url"]["url"], "detail": "low"}
    content: Any = [{"type": "input_text", "text": QUESTION["text"]}, picture]
    first = await client.responses.create(
        model="sees", input=[{"role": "user", "content": content}], max_output_tokens=16
    )
    assert first.output_text.startswith("[simulated, 1 image]")
    (item,) = (await client.responses.input_items.list(first.id)).data
    assert item.model_dump(exclude_none=True)["content"][1] == picture
    conversation = await client.conversations.create(items=[{"type": "message", "role": "user", "content": content}])
    for before in ({"previous_response_id": first.id}, {"conversation": conversation.id}):
        later = await client.responses.create(model="sees", input="And now?", max_output_tokens=16, **before)
        assert later.output_text.startswith("[simulated, 1 image]")


async def test_texts_alone_are_as_they_were(client: openai.AsyncOpenAI) -> None:
    said = await client.chat.completions.create(**body(QUESTION))
    assert (said.choices[0].message.content or "").startswith("[simulated] ")


REFUSED: tuple[tuple[dict[str, Any], str, str], ...] = (
    (body(QUESTION, RED, model="chat"), "messages", "the model chat takes none: its chat template has no place"),
    (body(QUESTION, RED, model="echo"), "messages", "the model echo takes none: it has no input `image`"),
    (body(image("https://example.org/cat.png")), "messages[0].content[0].image_url", "Nothing is fetched"),
    (body(QUESTION, image("data:image/png;base64,nonsense!")), "messages[0].content[1].image_url", "no image"),
    (body(image("data:,")), "messages[0].content[0].image_url", "data URL"),
    (body({"type": "image_url"}), "messages[0].content[0].image_url", "data URL"),
)


async def test_what_no_model_could_see_is_refused(service: Service) -> None:
    await known(service)
    for asked, param, said in REFUSED:
        answer = await service.client.post("/v1/chat/completions", json=asked)
        assert answer.status_code == 400, answer.text
        error = answer.json()["error"]
        assert (error["code"], error["param"], said in error["message"]) == ("unsupported_parameter", param, True), (
            error
        )
    assert (await service.client.get("/results/")).json() == []


async def test_a_comparison_asks_the_same_of_each_model(service: Service) -> None:
    await known(service)
    for asked, _, said in REFUSED:
        compared = {"messages": asked["messages"], "entries": [{"model": "sees"}, {"model": asked["model"]}]}
        answer = await service.client.post("/comparisons/", json=compared)
        assert (answer.status_code, answer.json()["code"]) == (422, "unsupported_parameter"), answer.text
        assert said in answer.json()["detail"]
    assert answer.json()["errors"][0]["field"].startswith("entries.0.")
    assert (await service.client.get("/results/")).json() == []
    compared = {"messages": body(QUESTION, RED)["messages"], "entries": [{"model": "sees"}]}
    answer = await service.client.post("/comparisons/", json=compared, headers={"Prefer": "wait=30"})
    assert answer.json()["entries"][0]["output"].startswith("[simulated, 1 image]")


async def test_a_model_on_servers_of_two_kinds_gets_the_image_on_either(service: Service) -> None:
    async def looks(asked: Asked) -> AsyncIterator[bytes]:
        yield head() + text("a cat") + finish()

    await known(service)
    asked = body(QUESTION, RED)
    async with faulty_server(looks) as other:
        await added(service, other.url, kind="openai", models={"m": "sees"})

        async def on_both() -> bool:
            listed = (await service.client.get("/models/sees")).json()
            return len(listed["servers"]) == 2

        await eventually(on_both, "both servers have the model")
        for kind, said in (("triton", "[simulated, 1 image]"), ("openai", "a cat")):
            answer = await service.client.post(
                "/v1/chat/completions", json=asked, headers={"X-Server-Kinds": kind}, timeout=60
            )
            assert answer.status_code == 200, answer.text
            assert answer.json()["choices"][0]["message"]["content"].startswith(said)
    assert [each.json["messages"] for each in other.asked] == [asked["messages"]]


@pytest.mark.parametrize(
    ("parts", "said"),
    [
        ((RED, RED, RED), "At most 2 image(s)"),
        ((image("data:image/png;base64,QUJD"),), "cannot read one of the images"),
    ],
)
async def test_what_the_model_cannot_see_fails_at_once(
    service: Service, client: openai.AsyncOpenAI, parts: tuple[dict[str, Any], ...], said: str
) -> None:
    with pytest.raises(openai.BadRequestError) as failed:
        await client.chat.completions.create(**body(*parts))
    assert said in failed.value.message
    (result,) = (await service.client.get("/results/")).json()
    assert (result["attempt_count"], result["error"]["code"]) == (1, "invalid_request")


def test_the_backend_is_sent_base64_without_the_head_of_a_data_url() -> None:
    request = encode("sees", "1", "x", {}, images=["QUJD", "REVG"])
    last = request.inputs[-1]
    assert (last.name, last.datatype, list(last.shape)) == ("image", "BYTES", [2])
    assert request.raw_input_contents[-1] == b"\4\0\0\0QUJD\4\0\0\0REVG"
    assert "image" not in {each.name for each in encode("sees", "1", "x", {}).inputs}


async def test_the_console_sends_images_and_an_edited_message_keeps_them(service: Service) -> None:
    await known(service)
    form = {"form": form_of((await service.client.get("/console/chat")).text), "model": "sees"}
    picture = base64.b64decode(in_base64("red"))
    refused = await service.client.post(
        "/console/chat", data=form | {"message": "What?"}, files={"image": ("a.svg", b"<svg/>", "image/svg+xml")}
    )
    assert (refused.status_code, "is none of image/gif" in refused.text) == (422, True)
    made = await service.client.post(
        "/console/chat", data=form | {"message": "What?"}, files={"image": ("a.png", picture, "image/png")}
    )
    address, first = made.headers["location"].split("#")[0].split("?at=")
    assert (await service.settled(first))["output"].startswith("[simulated, 1 image]")
    assert f'<img src="data:image/png;base64,{in_base64("red")}"' in (await service.client.get(address)).text
    edited = await service.client.post(address, data=form | {"message": "And now?", "images_of": first})
    second = edited.headers["location"].split("#")[0].split("?at=")[1]
    assert (await service.settled(second))["output"].startswith("[simulated, 1 image]")
    on = await service.client.post(address, data=form | {"message": "And then?", "after": second})
    third = on.headers["location"].split("#")[0].split("?at=")[1]
    assert (await service.settled(third))["output"].startswith("[simulated, 1 image]")
    found = await service.client.get("/console/chat", params={"text": "WHAT? simulated"})
    assert ("data:image" in found.text, address in found.text) == (False, True)
