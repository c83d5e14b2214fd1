"""The example models on a real tritonserver, spoken to with KServe v2 over HTTP as docs/models.md shows it."""

import base64
import io
import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from PIL import Image

from nvidia_triton.local.settings import ROOT
from tests.servers import RunningTriton, start_triton

MODELS = ("image-rules", "ner-rules", "vision-rules")


@pytest.fixture(scope="module")
def triton(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningTriton]:
    server = start_triton(tmp_path_factory.mktemp("triton"), MODELS, ROOT / "models")
    yield server
    server.stop()


def tensor(name: str, datatype: str, *values: object) -> dict[str, Any]:
    return {"name": name, "datatype": datatype, "shape": [len(values)], "data": list(values)}


def post(triton: RunningTriton, model: str, *inputs: dict[str, Any], binary: bool = False) -> httpx.Response:
    body = {"inputs": inputs} | ({"parameters": {"binary_data_output": True}} if binary else {})
    return httpx.post(f"{triton.http_url}/v2/models/{model}/infer", json=body, timeout=30, trust_env=False)


def texts(answer: httpx.Response) -> dict[str, str]:
    assert answer.status_code == 200, answer.text
    return {each["name"]: each["data"][0] for each in answer.json()["outputs"]}


def drawn(answer: httpx.Response) -> tuple[bytes, int]:
    """The file and the seed, out of KServe's binary tensors: an element of BYTES has its length before it."""
    assert answer.status_code == 200, answer.text
    header = int(answer.headers["Inference-Header-Content-Length"])
    rest = answer.content[header:]
    parts = {}
    for each in json.loads(answer.content[:header])["outputs"]:
        size = each["parameters"]["binary_data_size"]
        parts[each["name"]], rest = rest[:size], rest[size:]
    return parts["image"][4:], int.from_bytes(parts["seed_used"], "little", signed=True)


def test_all_load(triton: RunningTriton) -> None:
    assert all(triton.is_model_ready(name) for name in MODELS), triton.log()


def test_a_picture_for_every_input(triton: RunningTriton) -> None:
    inputs = [
        tensor("prompt", "BYTES", "a red house by the sea"),
        tensor("negative_prompt", "BYTES", "trees"),
        tensor("guidance", "FP32", 5.0),
        tensor("steps", "INT32", 3),
        tensor("width", "INT32", 80),
        tensor("height", "INT32", 48),
        tensor("seed", "INT64", 2**40),
    ]
    first, seed = drawn(post(triton, "image-rules", *inputs, binary=True))
    assert seed == 2**40
    image = Image.open(io.BytesIO(first))
    assert (image.format, image.size) == ("PNG", (80, 48))
    assert "not by a trained model" in image.text["Software"]  # type: ignore[attr-defined]
    assert drawn(post(triton, "image-rules", *inputs, binary=True))[0] == first


def test_without_a_seed_it_tells_which_one_it_took(triton: RunningTriton) -> None:
    prompt = tensor("prompt", "BYTES", "night")
    first, seed = drawn(post(triton, "image-rules", prompt, binary=True))
    other, _ = drawn(post(triton, "image-rules", prompt, binary=True))
    assert other != first
    again, _ = drawn(post(triton, "image-rules", prompt, tensor("seed", "INT64", seed), binary=True))
    assert again == first


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        (tensor("width", "INT32", 100_000), "width is 100000 and must be from 16 to 2048"),
        (tensor("steps", "INT32", 0), "steps is 0 and must be from 1 to 150"),
        (tensor("guidance", "FP32", -1.0), "guidance is -1 and must be from 0 to 30"),
    ],
)
def test_an_input_out_of_its_limits_is_refused_by_name(
    triton: RunningTriton, wrong: dict[str, Any], sentence: str
) -> None:
    answer = post(triton, "image-rules", tensor("prompt", "BYTES", "a"), wrong)
    assert answer.status_code == 500
    assert sentence in answer.json()["error"]


def test_names_are_found_and_masked(triton: RunningTriton) -> None:
    text = tensor("text", "BYTES", "Ada Lovelace wrote from London to Zoë.")
    entities = tensor("entities", "BYTES", "person", "city")
    found = texts(post(triton, "ner-rules", text, entities, tensor("mask_entities", "BYTES", "person")))
    assert [(each["text"], each["label"]) for each in json.loads(found["spans"])] == [
        ("Ada Lovelace", "person"),
        ("London", "city"),
    ]
    assert found["masked_text"] == "[PERSON_1] wrote from London to Zoë."
    assert json.loads(found["mask_map"]) == {"[PERSON_1]": "Ada Lovelace"}


def test_left_out_all_is_found_and_masked_and_empty_nothing_is(triton: RunningTriton) -> None:
    text = tensor("text", "BYTES", "Ada Lovelace wrote from London.")
    assert texts(post(triton, "ner-rules", text))["masked_text"] == "[PERSON_1] wrote from [LOCATION_1]."
    found = texts(post(triton, "ner-rules", text, tensor("mask_entities", "BYTES")))
    assert found["masked_text"] == "Ada Lovelace wrote from London."
    assert len(json.loads(found["spans"])) == 2


def test_a_question_on_a_picture(triton: RunningTriton) -> None:
    file, _ = drawn(post(triton, "image-rules", tensor("prompt", "BYTES", "a red sea"), binary=True))
    image = tensor("image", "BYTES", base64.b64encode(file).decode())
    said = texts(post(triton, "vision-rules", image, tensor("question", "BYTES", "What size is it?")))
    assert said == {"text": "The picture is a PNG of 512 x 512 pixels."}
    assert "no trained model" in texts(post(triton, "vision-rules", image))["text"]


def test_what_is_no_picture_is_refused_in_a_sentence(triton: RunningTriton) -> None:
    answer = post(triton, "vision-rules", tensor("image", "BYTES", "no picture"))
    assert answer.status_code == 500
    assert "image is not a PNG, JPEG" in answer.json()["error"]
    assert "Traceback" not in answer.text
