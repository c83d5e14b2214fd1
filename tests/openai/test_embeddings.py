"""POST /v1/embeddings through the official client."""

import math
from typing import Any

import openai
import pytest

from tests.service import Service


async def test_a_text_becomes_a_vector(client: openai.AsyncOpenAI, service: Service) -> None:
    answer = await client.embeddings.create(model="embed", input="three small words")
    vector = answer.data[0].embedding
    assert len(vector) == 8
    assert math.isclose(sum(number * number for number in vector), 1, rel_tol=1e-5)
    assert answer.usage.prompt_tokens == answer.usage.total_tokens == 3
    (result,) = (await service.client.get("/results/")).json()
    assert (result["status"], result["parameters"], result["usage"]["prompt_tokens"]) == (
        "completed",
        {"task": "embed"},
        3,
    )


async def test_many_texts_keep_their_order(client: openai.AsyncOpenAI) -> None:
    texts = [f"text {number}" for number in range(11)]
    together = await client.embeddings.create(model="embed", input=texts)
    assert [each.index for each in together.data] == list(range(11))
    assert together.usage.prompt_tokens == 22
    for place in (0, 4, 10):
        alone = await client.embeddings.create(model="embed", input=texts[place])
        assert alone.data[0].embedding == together.data[place].embedding


async def test_floats_and_base64_are_the_same_numbers(client: openai.AsyncOpenAI) -> None:
    # Without a format the client asks for base64 and decodes it.
    decoded = (await client.embeddings.create(model="embed", input="x")).data[0].embedding
    floats = (await client.embeddings.create(model="embed", input="x", encoding_format="float")).data[0].embedding
    assert decoded == floats
    encoded = (await client.embeddings.create(model="embed", input="x", encoding_format="base64")).data[0].embedding
    assert isinstance(encoded, str)


async def test_an_embedding_model_of_the_vllm_backend(client: openai.AsyncOpenAI) -> None:
    answer = await client.embeddings.create(model="embed-vllm", input=["one", "and two"])
    assert [each.embedding for each in answer.data] == [[3, 0.5, -1.25], [7, 0.5, -1.25]]
    assert answer.usage.prompt_tokens == 3


async def test_a_model_that_only_writes_refuses(client: openai.AsyncOpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        await client.embeddings.create(model="tiny", input="x")
    assert refused.value.code == "not_supported_by_model"
    with pytest.raises(openai.BadRequestError) as refused:
        await client.completions.create(model="embed", prompt="x")
    assert refused.value.code == "model_contract"


@pytest.mark.parametrize(
    ("changes", "param"),
    [
        ({"input": ""}, "input"),
        ({"input": []}, "input"),
        ({"input": ["a", ""]}, "input"),
        ({"input": [1, 2]}, "input"),
        ({"input": ["x"] * 2049}, "input"),
        ({"dimensions": 4}, "dimensions"),
        ({"encoding_format": "int8"}, "encoding_format"),
        ({"temperature": 1}, "temperature"),
    ],
)
async def test_what_cannot_be_embedded_is_refused(client: openai.AsyncOpenAI, changes: Any, param: str) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        await client.post("/embeddings", cast_to=object, body={"model": "embed", "input": "x"} | changes)
    assert refused.value.param == param


async def test_the_same_key_gives_the_same_ticket(client: openai.AsyncOpenAI, service: Service) -> None:
    for _ in range(2):
        await client.embeddings.create(model="embed", input="x", extra_headers={"Idempotency-Key": "k"})
    assert len((await service.client.get("/results/")).json()) == 1
