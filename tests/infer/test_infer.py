"""Tensors in, tensors out, through the service and a real tritonserver."""

import asyncio
import base64
import io
import json
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import asyncpg
import numpy as np
import pytest
from PIL import Image

from app.config import Settings
from app.tasks.tensors import MOST_BYTES, InputTensor, TensorRefused, checked
from nvidia_triton.local.settings import ROOT
from tests.infer.kit import file_of, inferred, outputs, refused, sent, stored, tensor
from tests.service import Process, Service, eventually, running_api, running_dispatcher

PROMPT = tensor("prompt", "BYTES", "a red house by the sea")
SIZE = (tensor("width", "INT32", 64), tensor("height", "INT32", 48))


async def test_a_picture_comes_back_as_a_png(service: Service) -> None:
    result = await inferred(service, "image-rules", PROMPT, *SIZE, tensor("seed", "INT64", 2**40))
    assert (result["output"], result["finish_reason"], result["attempt_count"]) == (None, None, 1)
    assert result["parameters"] == {"task": "infer"}
    found = outputs(result)
    assert found["seed_used"]["data"] == [2**40]
    (described,) = found["image"]["files"]
    assert described["path"] == f"/results/{result['id']}/outputs/image"
    file = await file_of(service, found["image"])
    assert file.headers["Content-Type"] == described["media_type"] == "image/png"
    assert file.headers["X-Content-Type-Options"] == "nosniff"
    assert file.headers["Content-Disposition"].startswith("inline")
    assert len(file.content) == described["bytes"] == int(file.headers["Content-Length"])
    image = Image.open(io.BytesIO(file.content))
    assert (image.format, image.size) == ("PNG", (64, 48))
    head = await service.client.head(described["path"])
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["Content-Length"] == file.headers["Content-Length"]


async def test_names_are_found_with_entities(service: Service) -> None:
    text = tensor("text", "BYTES", "Ada Lovelace wrote from London.")
    labels = tensor("entities", "BYTES", "person", "city")
    found = outputs(await inferred(service, "ner-rules", text, labels, tensor("mask_entities", "BYTES", "person")))
    assert found["masked_text"] == {
        "name": "masked_text",
        "datatype": "BYTES",
        "shape": [1],
        "response": 0,
        "data": ["[PERSON_1] wrote from London."],
        "files": None,
    }
    assert [each["label"] for each in json.loads(found["spans"]["data"][0])] == ["person", "city"]
    unmasked = await inferred(service, "ner-rules", text, {**tensor("mask_entities", "BYTES"), "shape": [0]})
    assert outputs(unmasked)["masked_text"]["data"] == ["Ada Lovelace wrote from London."]


async def test_a_binary_input_comes_in_base64(service: Service) -> None:
    drawn = outputs(await inferred(service, "image-rules", PROMPT, *SIZE))["image"]
    encoded = base64.b64encode((await file_of(service, drawn)).content).decode()
    image = tensor("image", "BYTES", encoded, parameters={"content_type": "base64"})
    said = await inferred(service, "vision-rules", image, tensor("question", "BYTES", "What size is it?"))
    assert outputs(said)["text"]["data"] == ["The picture is a PNG of 64 x 48 pixels."]


async def test_every_type_arrives_as_it_was_sent(service: Service) -> None:
    tensors = [
        tensor("texts", "BYTES", ["ä", "b"], ["", "d"], shape=[2, 2]),
        tensor("flags", "BOOL", True, False, False, True, shape=[2, 2]),
        tensor("small", "INT8", -128, 127, shape=[2, 1]),
        tensor("large", "UINT64", 2**64 - 1, 0, shape=[2, 1]),
        tensor("half", "FP16", 0.5, -65504, shape=[2, 1]),
        tensor("single", "FP32", [[1, 2.5]], [[3, 4]], shape=[2, 1, 2]),
        tensor("double", "FP64", 0.1, 1e300, shape=[2, 1]),
    ]
    found = outputs(await inferred(service, "echo", *tensors))
    for each in tensors:
        got = found[each["name"]]
        assert (got["datatype"], got["shape"]) == (each["datatype"], each["shape"])
        assert got["data"] == np.array(each["data"], dtype=object).reshape(-1).tolist(), each["name"]


async def test_a_large_output_is_a_file(service: Service) -> None:
    numbers = [float(n) for n in range(20_000)]
    found = outputs(await inferred(service, "echo", tensor("single", "FP32", *numbers, shape=[1, 1, 20_000])))["single"]
    assert (found["data"], found["shape"]) == (None, [1, 1, 20_000])
    file = await file_of(service, found)
    assert np.frombuffer(file.content, "<f4").tolist() == numbers
    assert file.headers["Content-Type"] == "application/octet-stream"
    assert file.headers["Content-Disposition"].startswith("attachment")


async def test_a_text_with_nul_is_no_json(service: Service) -> None:
    html = "<html>\x00<script>alert(1)</script>"
    found = outputs(await inferred(service, "echo", tensor("texts", "BYTES", html, "plain", shape=[1, 2])))["texts"]
    assert found["data"] is None
    page, plain = [await file_of(service, found, element) for element in (0, 1)]
    assert (page.text, plain.text) == (html, "plain")
    assert page.headers["Content-Type"] == "application/octet-stream"
    assert page.headers["Content-Disposition"].startswith("attachment")
    assert page.headers["X-Content-Type-Options"] == "nosniff"


async def test_each_response_of_a_decoupled_model_is_kept(service: Service) -> None:
    result = await inferred(service, "count", tensor("n", "INT32", 3))
    numbers = [each for each in result["outputs"] if each["name"] == "i"]
    assert [(each["response"], each["data"]) for each in numbers] == [(0, [0]), (1, [1]), (2, [2])]
    last = [each for each in result["outputs"] if each["name"] == "blob"][2]
    assert last["files"][1]["path"].endswith("/outputs/blob?response=2&element=1")
    assert [(await file_of(service, last, n)).content for n in (0, 1)] == [b"\x89PNG\r\n\x1a\n2", b"\xff2"]
    assert (await inferred(service, "count", tensor("n", "INT32", 0)))["outputs"] == []


UNFIT: list[tuple[str, list[dict[str, Any]], str, str]] = [
    ("image-rules", [tensor("promt", "BYTES", "a")], "promt", "is no input of the model, whose inputs are: prompt"),
    ("image-rules", [SIZE[0]], "prompt", "is missing: the model needs it, BYTES [1]"),
    ("image-rules", [PROMPT, tensor("width", "INT64", 64)], "width", "is INT64, and the model takes INT32"),
    ("image-rules", [PROMPT, tensor("width", "INT32", 64, 64)], "width", "has the shape [2], and the model takes"),
    ("image-rules", [tensor("prompt", "BYTES", "a", shape=[1, 1])], "prompt", "has the shape [1, 1], and the"),
    ("echo", [tensor("flags", "BOOL", *[True] * 10, shape=[5, 2])], "flags", "has a batch of 5"),
    (
        "echo",
        [tensor("small", "INT8", 1, shape=[1, 1]), tensor("half", "FP16", 1, 1, shape=[2, 1])],
        "half",
        "has a batch of 2, and small one of another size",
    ),
]


async def test_what_the_model_does_not_take_is_refused_before_it_is_stored(api: Service) -> None:
    for model, inputs, field, sentence in UNFIT:
        problem = await refused(api, model, *inputs)
        assert problem["code"] == "invalid_inputs"
        assert problem["errors"][0]["field"] == f"inputs.{field}"
        assert problem["detail"].startswith(f"The input '{field}'")
        assert sentence in problem["detail"]
    assert (await api.client.get("/results/")).json() == []


CONTRADICTIONS: list[tuple[list[dict[str, Any]], str]] = [
    ([tensor("a", "INT32", 1, shape=[2])], "has 1 elements, and its shape [2] stands for 2"),
    ([tensor("a", "INT8", 128)], "holds a number outside the range of INT8"),
    ([tensor("a", "UINT8", -1)], "holds a number outside the range of UINT8"),
    ([tensor("a", "FP16", 1e6)], "holds a number outside the range of FP16"),
    ([tensor("a", "INT32", 1.5)], "is INT32, so its data is a list of integers"),
    ([tensor("a", "INT32", True)], "is INT32, so its data is a list of integers"),
    ([tensor("a", "BOOL", 1)], "is BOOL, so its data is a list of true and false"),
    ([tensor("a", "BYTES", 1)], "is BYTES, so its data is a list of texts"),
    ([tensor("a", "FP32", "1")], "is FP32, so its data is a list of numbers"),
    ([tensor("a", "FP32", [1], 2)], "mixes lists and elements"),
    ([tensor("a", "BYTES", "??", parameters={"content_type": "base64"})], "is not base64, number 0"),
    ([tensor("a", "INT32", 1, parameters={"content_type": "base64"})], "is INT32 in base64, so its data is one text"),
    ([tensor("a", "INT32", 1), tensor("a", "INT32", 1)], "is there twice"),
]


async def test_a_tensor_that_contradicts_itself_is_no_context(api: Service) -> None:
    for inputs, sentence in CONTRADICTIONS:
        answer = await api.client.post("/contexts/", json={"inputs": inputs})
        assert (answer.status_code, answer.json()["code"]) == (422, "invalid_inputs"), sentence
        assert answer.json()["errors"][0]["field"] == "inputs.a"
        assert sentence in answer.json()["detail"]


def test_too_much_is_refused_by_name() -> None:
    half = InputTensor(name="a", datatype="BYTES", shape=[1], data=["x" * (MOST_BYTES // 2)])
    with pytest.raises(TensorRefused, match="is too large") as refusal:
        checked([half, half.model_copy(update={"name": "b"})])
    assert refusal.value.tensor == "b"


async def test_texts_and_tensors_are_not_mixed_up(service: Service) -> None:
    both = await service.client.post("/contexts/", json={"content": "a", "inputs": [PROMPT]})
    neither = await service.client.post("/contexts/", json={"metadata": {}})
    assert both.status_code == neither.status_code == 422
    problem = await refused(service, "tiny", PROMPT)
    assert "The model tiny takes texts" in problem["detail"]
    context = await stored(service, PROMPT)
    answer = await service.client.post(f"/models/send/image-rules/{context}", json={"parameters": {"max_tokens": 3}})
    assert (answer.status_code, answer.json()["errors"][0]["field"]) == (422, "parameters")
    failed = await service.settled(await service.send(prompt="a text", model="image-rules"))
    assert (failed["status"], failed["error"]["code"]) == ("failed", "model_contract")


async def test_a_context_shows_its_tensors_and_a_key_makes_one(api: Service) -> None:
    nested = {**tensor("single", "FP32", shape=[2, 2]), "data": [[1, 2], [3, 4]]}
    answers = [
        await api.client.post("/contexts/", json={"inputs": [nested]}, headers={"Idempotency-Key": "k"})
        for _ in range(2)
    ]
    assert answers[0].json() == answers[1].json()
    shown = (await api.client.get(f"/contexts/{answers[0].json()['id']}")).json()
    assert shown["content"] is None
    assert shown["inputs"][0]["data"] == [1, 2, 3, 4]


async def test_what_the_model_refuses_is_final_in_its_own_words(service: Service) -> None:
    wrong = await service.settled(await sent(service, "image-rules", PROMPT, tensor("width", "INT32", 100_000)))
    assert (wrong["status"], wrong["attempt_count"], wrong["error"]["code"]) == ("failed", 1, "model_refused")
    assert "width is 100000 and must be from 16 to 2048" in wrong["error"]["message"]
    negative = await service.settled(await sent(service, "count", tensor("n", "INT32", -1)))
    assert (negative["attempt_count"], negative["error"]["code"]) == (1, "model_refused")


async def test_a_defect_of_the_model_is_tried_again(make_settings: Callable[..., Settings]) -> None:
    settings = make_settings(max_attempts=2)
    async with running_api(settings) as service, running_dispatcher(settings):
        failed = await service.settled(await sent(service, "count", tensor("n", "INT32", -2)))
        assert (failed["status"], failed["attempt_count"]) == ("failed", 2)
        assert "a defect of the model" in failed["error"]["message"]
        assert "/" not in failed["error"]["message"]


async def test_files_go_with_their_result(service: Service) -> None:
    result = await inferred(service, "image-rules", PROMPT, *SIZE)
    path = outputs(result)["image"]["files"][0]["path"]
    connection = await asyncpg.connect(service.settings.database_url)
    try:
        assert await connection.fetchval("SELECT count(*) FROM output_files") == 1
        assert (await service.client.get(path.replace("image", "images"))).json()["code"] == "output_not_found"
        assert (await service.client.get(path + "?element=1")).json()["code"] == "output_not_found"
        assert (await service.client.delete(f"/contexts/{result['context_id']}")).status_code == 204
        assert await connection.fetchval("SELECT count(*) FROM output_files") == 0
        assert (await service.client.get(path)).json()["code"] == "result_not_found"
    finally:
        await connection.close()


async def test_a_cancel_stops_the_model_and_keeps_what_came(service: Service) -> None:
    id_ = await sent(service, "count", tensor("n", "INT32", 2000), tensor("pause_ms", "INT32", 50))
    await eventually(lambda: _phase(service, id_, "running"), "it runs")
    await service.client.post(f"/results/{id_}/cancel")
    result = await service.settled(id_)
    assert (result["status"], result["error"]["code"]) == ("failed", "cancelled")
    assert result["cancellation"]["engine_stopped_at"] is not None
    # The next one gets its turn, so the first is over.
    assert (await inferred(service, "count", tensor("n", "INT32", 1)))["outputs"][0]["data"] == [0]


async def test_a_killed_dispatchers_run_is_run_again(make_settings: Callable[..., Settings], tmp_path: Path) -> None:
    settings = make_settings()
    async with running_api(settings) as service:
        id_ = await sent(service, "count", tensor("n", "INT32", 60), tensor("pause_ms", "INT32", 50))
        async with Process("app.worker", settings, tmp_path / "worker.log") as worker:
            await eventually(lambda: _phase(service, id_, "running"), "it runs")
            worker.kill()
        async with running_dispatcher(settings):
            result = await service.settled(id_)
        assert (result["status"], result["attempt_count"]) == ("completed", 2)
        assert [each["data"] for each in result["outputs"] if each["name"] == "i"] == [[n] for n in range(60)]
        assert [each["outcome"] for each in await service.attempts(id_)] == ["lease_lost", "completed"]


async def _phase(service: Service, id_: str, phase: str) -> bool:
    return bool((await service.result(id_))["phase"] == phase)


async def test_another_owners_files_are_not_there(make_settings: Callable[..., Settings]) -> None:
    settings = make_settings()
    async with running_api(settings) as service, running_dispatcher(settings):
        result = await inferred(service, "image-rules", PROMPT, *SIZE)
        path = outputs(result)["image"]["files"][0]["path"]
        connection = await asyncpg.connect(settings.database_url)
        try:
            owner = await connection.fetchval("INSERT INTO owners (name) VALUES ('another') RETURNING id")
            await connection.execute("UPDATE results SET owner_id = $1", owner)
        finally:
            await connection.close()
        assert (await service.client.get(path)).json()["code"] == "result_not_found"


async def test_an_answer_above_the_limit_is_final(make_settings: Callable[..., Settings]) -> None:
    settings = make_settings(max_answer_bytes=2048)
    async with running_api(settings) as service, running_dispatcher(settings):
        failed = await service.settled(await sent(service, "image-rules", PROMPT))
        assert (failed["status"], failed["error"]["code"]) == ("failed", "answer_too_large")
        assert "a smaller output" in failed["error"]["message"]


async def test_a_retry_asks_the_same_again(service: Service) -> None:
    first = await inferred(service, "ner-rules", tensor("text", "BYTES", "Ada Lovelace"))
    answer = await service.client.post(f"/results/{first['id']}/retry")
    assert answer.status_code == 202, answer.text
    second = await service.settled(answer.json()["result_id"])
    assert second["outputs"] == first["outputs"]


async def test_the_documents_commands_work_as_they_stand(service: Service, tmp_path: Path) -> None:
    """Only the address differs."""
    section = (ROOT / "docs" / "models.md").read_text().split("## Tensors through the service")[1]
    scripts = re.findall(r"^```sh\n(.*?)^```", section.split("\n## ")[0], re.DOTALL | re.MULTILINE)
    script = "".join(scripts).replace("http://127.0.0.1:8887", str(service.client.base_url).rstrip("/"))
    done = await asyncio.to_thread(
        subprocess.run,
        ["bash", "-eu", "-o", "pipefail", "-c", script],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=90,
        check=True,
    )
    drawn, seen = json.loads("[" + done.stdout.replace("]\n[", "],[") + "]")
    assert [each["name"] for each in drawn] == ["image", "seed_used"]
    assert Image.open(tmp_path / "picture.png").size == (320, 512)
    assert "PNG of 320 x 512 pixels" in seen[0]["data"][0]
