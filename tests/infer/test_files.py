"""Tensors that are uploaded files."""

import base64
import io
import struct
from typing import Any
from uuid import uuid4

import asyncpg
import pytest
from PIL import Image

from tests.infer.kit import inferred, outputs, refused, stored, tensor
from tests.service import Service


async def uploaded(service: Service, content: bytes) -> str:
    answer = await service.client.post(
        "/v1/files", data={"purpose": "user_data"}, files={"file": ("tensor.bin", content)}
    )
    assert answer.status_code == 200, answer.text
    assert answer.json()["purpose"] == "user_data"
    return str(answer.json()["id"])


def from_file(name: str, datatype: str, shape: list[int], file: str, **more: Any) -> dict[str, Any]:
    return {"name": name, "datatype": datatype, "shape": shape, "file": file, **more}


async def test_a_picture_is_uploaded_and_looked_at(service: Service) -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (33, 44), "red").save(buffer, "PNG")
    content = buffer.getvalue()
    file = await uploaded(service, content)
    context = await stored(service, from_file("image", "BYTES", [1], file))
    # The context has a copy.
    assert (await service.client.delete(f"/v1/files/{file}")).status_code == 200
    shown = (await service.client.get(f"/contexts/{context}")).json()["inputs"]
    assert base64.b64decode(shown[0]["data"][0]) == content
    result = await service.settled(await service.send(context, "vision-rules"))
    text = base64.b64encode(content).decode()
    inline = await inferred(
        service, "vision-rules", tensor("image", "BYTES", text, parameters={"content_type": "base64"})
    )
    assert result["outputs"] == inline["outputs"]
    assert result["outputs"][0]["data"]


NUMBERS: list[tuple[str, str, str, list[Any]]] = [
    ("flags", "BOOL", "<??", [True, False]),
    ("small", "INT8", "<bb", [-1, 2]),
    ("half", "FP16", "<ee", [0.5, -2.0]),
]


async def test_numbers_are_taken_as_they_lie_in_a_file_or_in_base64(service: Service) -> None:
    files, texts = [], []
    for name, datatype, form, values in NUMBERS:
        content = struct.pack(form, *values)
        files.append(from_file(name, datatype, [1, 2], await uploaded(service, content)))
        text = base64.b64encode(content).decode()
        texts.append(tensor(name, datatype, text, shape=[1, 2], parameters={"content_type": "base64"}))
    for inputs in (files, texts):
        found = outputs(await inferred(service, "echo", *inputs))
        for name, datatype, _, values in NUMBERS:
            assert (found[name]["datatype"], found[name]["data"]) == (datatype, values)


async def test_a_file_that_cannot_be_the_tensor_is_refused_by_name(api: Service) -> None:
    file = await uploaded(api, b"\x00\x01\x02")
    another = await uploaded(api, b"another owner's")
    connection = await asyncpg.connect(api.settings.database_url)
    try:
        owner = await connection.fetchval("INSERT INTO owners (name) VALUES ('another') RETURNING id")
        await connection.execute("UPDATE files SET owner_id = $1 WHERE id = $2", owner, another.removeprefix("file-"))
    finally:
        await connection.close()
    unknown = f"file-{uuid4().hex}"
    for wrong, sentence in [
        (from_file("a", "BYTES", [1], unknown), f"names {unknown}, and there is no such file"),
        (from_file("a", "BYTES", [1], another), f"names {another}, and there is no such file"),
        (from_file("a", "BYTES", [1], "picture.png"), "names picture.png, and there is no such file"),
        (from_file("a", "INT32", [1], file), f"is INT32 of the shape [1], which is 4 bytes, and {file} has 3"),
        (from_file("a", "BYTES", [3], file), "has the shape [3], and a file is the one element of BYTES"),
        (from_file("a", "BOOL", [3], file), "is BOOL, so each of its bytes is 0 or 1"),
    ]:
        good = from_file("good", "UINT8", [3], file)
        answer = await api.client.post("/contexts/", json={"inputs": [good, wrong]})
        assert (answer.status_code, answer.json()["code"]) == (422, "invalid_inputs"), answer.text
        assert answer.json()["errors"][0]["field"] == "inputs.a"
        assert sentence in answer.json()["detail"]
    for wrong in (
        from_file("a", "UINT8", [3], file, data=[1, 2, 3]),
        {"name": "a", "datatype": "UINT8", "shape": [3]},
        from_file("a", "UINT8", [3], file, parameters={"content_type": "base64"}),
    ):
        answer = await api.client.post("/contexts/", json={"inputs": [wrong]})
        assert (answer.status_code, answer.json()["code"]) == (422, "invalid_request"), answer.text
    assert (await api.client.get("/contexts/")).json() == []


async def test_a_file_of_another_type_than_the_models_is_refused_at_the_send(api: Service) -> None:
    problem = await refused(api, "echo", from_file("small", "UINT8", [1, 3], await uploaded(api, b"abc")))
    assert "is UINT8, and the model takes INT8" in problem["detail"]


async def test_files_above_the_limit_are_not_read(api: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.tasks.tensors.MOST_BYTES", 5)
    file = await uploaded(api, b"abc")
    inputs = [from_file(name, "UINT8", [3], file) for name in ("a", "b")]
    answer = await api.client.post("/contexts/", json={"inputs": inputs})
    assert (answer.status_code, answer.json()["errors"][0]["field"]) == (422, "inputs.b")
    assert "all inputs together may come to 5 bytes" in answer.json()["detail"]
