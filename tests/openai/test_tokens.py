"""Token ids: counted, as prompts and as texts to embed, by a tokenizer in the model's folder."""

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from tokenizers import Tokenizer

from tests.openai.conftest import client_of
from tests.openai.test_chat import say, uuid_of
from tests.service import Service
from tests.tokenizer import trained

TEXT = "Once upon a time there was a queue."


@pytest.fixture
def tokenizer(served_models: Path) -> Iterator[Tokenizer]:
    """In the folders of four models."""
    made = trained(TEXT)
    files = [served_models / name / "1" / "tokenizer.json" for name in ("chat", "tiny", "embed", "minilm")]
    for file in files:
        made.save(str(file))
    yield made
    for file in files:
        file.unlink()


async def test_tokens_are_counted_as_vllm_counts_them(service: Service, tokenizer: Tokenizer) -> None:
    async def ask(path: str, **body: Any) -> dict[str, Any]:
        answer = await service.client.post(path, json={"model": "chat"} | body)
        assert answer.status_code == 200, answer.text
        found: dict[str, Any] = answer.json()
        return found

    ids = tokenizer.encode(TEXT).ids
    assert await ask("/tokenize", prompt=TEXT) == {
        "count": len(ids), "max_model_len": 4096, "tokens": ids, "token_strs": None
    }  # fmt: skip
    bare = await ask("/tokenize", prompt=TEXT, add_special_tokens=False, return_token_strs=True)
    assert bare["tokens"] == ids[1:]
    assert bare["token_strs"] == tokenizer.encode(TEXT).tokens[1:]
    assert await ask("/detokenize", tokens=bare["tokens"]) == {"prompt": TEXT}
    chat = await ask("/tokenize", messages=say("Hi."))
    told = (await ask("/detokenize", tokens=chat["tokens"]))["prompt"]
    assert told.endswith("<|im_start|>user\nHi.<|im_end|>\n<|im_start|>assistant\n")


async def test_the_input_of_a_response_is_counted(client: openai.AsyncOpenAI, tokenizer: Tokenizer) -> None:
    counted = await client.responses.input_tokens.count(model="chat", input="Hi.", instructions="Be brief.")
    prompt = "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi.<|im_end|>\n<|im_start|>assistant\n"
    assert counted.input_tokens == len(tokenizer.encode(prompt).ids)
    assert counted.object == "response.input_tokens"


async def test_prompts_may_be_token_ids(client: openai.AsyncOpenAI, service: Service, tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode(TEXT, add_special_tokens=False).ids
    for prompt in (ids, [ids]):
        answer = await client.completions.create(model="tiny", prompt=prompt, max_tokens=2, echo=True)
        assert answer.choices[0].text.startswith(TEXT)
        result = await service.result(uuid_of("chatcmpl-" + answer.id.removeprefix("cmpl-")))
        assert (await service.client.get(f"/contexts/{result['context_id']}")).json()["content"] == TEXT
    with pytest.raises(openai.BadRequestError) as unknown:
        await client.completions.create(model="tiny", prompt=[7, 100_000])
    assert (unknown.value.param, "100000" in unknown.value.message) == ("prompt", True)


async def test_several_prompts_are_answered_together(client: openai.AsyncOpenAI, service: Service) -> None:
    asked: dict[str, Any] = {"model": "tiny", "prompt": ["One.", "Two.", "Three."], "max_tokens": 4, "echo": True}
    answer = await client.completions.create(**asked, n=2, seed=3, temperature=0.9)
    assert [choice.index for choice in answer.choices] == list(range(6))
    assert [choice.text.split(".")[0] for choice in answer.choices] == ["One", "One", "Two", "Two", "Three", "Three"]
    assert len((await service.client.get("/results/")).json()) == 3
    assert answer.usage is not None
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    keyed = {"extra_headers": {"Idempotency-Key": "several"}}
    first, second = [await client.completions.create(**asked, **keyed) for _ in range(2)]
    assert first.to_dict() == second.to_dict()
    assert len((await service.client.get("/results/")).json()) == 6
    with pytest.raises(openai.BadRequestError) as other:
        await client.completions.create(**asked | {"prompt": ["One."]}, **keyed)
    assert other.value.code == "idempotency_mismatch"
    with pytest.raises(openai.BadRequestError) as empty:
        await client.completions.create(**asked | {"prompt": ["One.", ""]})
    assert empty.value.param == "prompt[1]"


async def test_the_blocking_client_sends_several_too(service: Service) -> None:
    def ask() -> int:
        url = f"{str(service.client.base_url).rstrip('/')}/v1"
        with openai.OpenAI(base_url=url, api_key="none", max_retries=0) as blocking:
            return len(blocking.completions.create(model="tiny", prompt=["a", "b"], max_tokens=1).choices)

    assert await asyncio.to_thread(ask) == 2


async def test_texts_to_embed_may_be_token_ids(client: openai.AsyncOpenAI, tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode(TEXT, add_special_tokens=False).ids
    by_text = (await client.embeddings.create(model="embed", input=[TEXT, "b"])).data
    for given in (ids, [ids], [ids, tokenizer.encode("b", add_special_tokens=False).ids]):
        by_ids = (await client.embeddings.create(model="embed", input=given)).data
        assert [each.embedding for each in by_ids] == [each.embedding for each in by_text][: len(by_ids)]


async def test_a_vector_has_the_size_that_is_asked_for(
    client: openai.AsyncOpenAI, served_models: Path, service: Service
) -> None:
    config = served_models / "embed" / "config.pbtxt"
    before = config.read_text()
    whole = (await client.embeddings.create(model="embed", input="a", dimensions=8)).data[0].embedding
    assert len(whole) == 8
    with pytest.raises(openai.BadRequestError) as refused:
        await client.embeddings.create(model="embed", input="a", dimensions=4)
    assert (refused.value.param, "can be 8" in refused.value.message) == ("dimensions", True)
    try:
        config.write_text(before + 'parameters [ { key: "matryoshka_dimensions" value: { string_value: "2, 4" } } ]\n')
        for encoding in ("float", "base64"):
            answer = await client.embeddings.create(
                model="embed",
                input="a",
                dimensions=4,
                encoding_format=encoding,  # type: ignore[arg-type]
            )
            small = answer.data[0].embedding
            if isinstance(small, str):
                continue
            length = sum(number**2 for number in whole[:4]) ** 0.5
            assert small == pytest.approx([number / length for number in whole[:4]], abs=1e-6)
    finally:
        config.write_text(before)


async def test_without_a_tokenizer_ids_are_refused(client: openai.AsyncOpenAI, service: Service) -> None:
    for path, body in (
        ("/tokenize", {"prompt": "a"}),
        ("/detokenize", {"tokens": [1]}),
        ("/v1/completions", {"prompt": [1, 2]}),
        ("/v1/embeddings", {"input": [1, 2]}),
        ("/v1/responses/input_tokens", {"input": "a"}),
    ):
        answer = await service.client.post(path, json={"model": "chat"} | body)
        assert (answer.status_code, answer.json()["error"]["code"]) == (400, "no_tokenizer"), answer.text
        assert "tokenizer.json" in answer.json()["error"]["message"]
    async with client_of(service) as other:
        with pytest.raises(openai.NotFoundError):
            await other.post("/../tokenize", cast_to=object, body={"model": "nothing", "prompt": "a"})
