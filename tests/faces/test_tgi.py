"""/tgi through Hugging Face's own client, and on the wire where that hides something."""

import json
import shutil
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio
from huggingface_hub import AsyncInferenceClient
from huggingface_hub.errors import GenerationError, ValidationError

from app.config import Settings
from tests.faces.conftest import url_of
from tests.servers import TEST_MODELS
from tests.service import Service, eventually, running_api
from tests.tokenizer import trained


@pytest_asyncio.fixture
async def client(service: Service) -> AsyncIterator[AsyncInferenceClient]:
    async with AsyncInferenceClient(model=f"{url_of(service)}/tgi", token="none", timeout=60) as opened:
        yield opened


async def post(service: Service, path: str, inputs: str = "Tell me.", **parameters: Any) -> httpx.Response:
    return await service.client.post(path, json={"inputs": inputs, "parameters": parameters})


async def test_a_text(client: AsyncInferenceClient, service: Service) -> None:
    assert await client.text_generation("[[sim:emit=Good morning.]]") == "Good morning."
    (ticket,) = (await service.client.get("/results/")).json()
    assert (ticket["status"], ticket["model"], ticket["output"]) == ("completed", "chat", "Good morning.")
    # Nothing asks to sample, so TGI takes the likeliest token.
    assert ticket["parameters"]["temperature"] == 0


async def test_parameters_reach_the_engine(client: AsyncInferenceClient, service: Service) -> None:
    await client.text_generation(
        "Tell me.", max_new_tokens=7, temperature=0.7, top_p=0.9, top_k=20, repetition_penalty=1.1,
        frequency_penalty=0.5, seed=11, stop=["zzz"], decoder_input_details=False, watermark=False, do_sample=True,
    )  # fmt: skip
    (ticket,) = (await service.client.get("/results/")).json()
    sent = ticket["parameters"]
    assert sent | {
        "max_tokens": 7, "temperature": 0.7, "top_p": 0.9, "top_k": 20, "repetition_penalty": 1.1,
        "frequency_penalty": 0.5, "seed": 11, "stop": ["zzz"], "include_stop_str_in_output": True,
    } == sent  # fmt: skip


async def test_details_have_the_tokens(client: AsyncInferenceClient) -> None:
    answer = await client.text_generation(
        "Tell me.", details=True, max_new_tokens=6, seed=3, do_sample=True, top_n_tokens=2
    )
    assert answer.details is not None
    assert (answer.details.finish_reason, answer.details.generated_tokens, answer.details.seed) == ("length", 6, 3)
    assert "".join(token.text for token in answer.details.tokens) == answer.generated_text
    assert len(answer.details.tokens) == 6
    assert all(token.logprob <= 0 and token.id >= 0 for token in answer.details.tokens)
    assert answer.details.top_tokens is not None
    assert {len(each) for each in answer.details.top_tokens} <= {2, 3}
    assert answer.details.prefill == []


@pytest.mark.parametrize(
    ("prompt", "asked", "text", "reason"),
    [
        ("[[sim:emit=one two three]]", {}, "one two three", "eos_token"),
        ("[[sim:emit=one two three]]", {"stop": ["two"]}, "one two", "stop_sequence"),
        ("[[sim:emit=one two three]]", {"max_new_tokens": 2}, None, "length"),
    ],
)
async def test_why_it_ended(
    client: AsyncInferenceClient, prompt: str, asked: dict[str, Any], text: str | None, reason: str
) -> None:
    answer = await client.text_generation(prompt, details=True, **asked)
    assert answer.details is not None
    assert answer.details.finish_reason == reason
    assert text is None or answer.generated_text == text
    *_, last = [each async for each in await client.text_generation(prompt, details=True, stream=True, **asked)]
    assert last.details is not None
    assert (last.details.finish_reason, last.generated_text) == (reason, answer.generated_text)
    assert last.details.generated_tokens == answer.details.generated_tokens


async def test_the_prompt_comes_first_where_asked_for(client: AsyncInferenceClient) -> None:
    prompt = "[[sim:emit=Good.]]"
    assert await client.text_generation(prompt, return_full_text=True) == prompt + "Good."


async def test_the_best_of_several(client: AsyncInferenceClient, service: Service) -> None:
    answer = await client.text_generation("Tell me.", best_of=3, do_sample=True, seed=5, max_new_tokens=8, details=True)
    assert answer.details is not None
    assert answer.details.best_of_sequences is not None
    texts = [answer.generated_text, *(each.generated_text for each in answer.details.best_of_sequences)]
    (ticket,) = (await service.client.get("/results/")).json()
    assert sorted(texts) == sorted(output["text"] for output in ticket["outputs"])
    sequences: list[Any] = [answer.details, *answer.details.best_of_sequences]
    means = [sum(token.logprob for token in each.tokens) / len(each.tokens) for each in sequences]
    assert means == sorted(means, reverse=True)


async def test_a_stream_says_what_the_answer_says(client: AsyncInferenceClient) -> None:
    text = "Grüße, 世界! 🙂 one two three."
    prompt = f"[[sim:slow=100]][[sim:emit={text}]]"
    assert "".join([each async for each in await client.text_generation(prompt, stream=True)]) == text
    events = [each async for each in await client.text_generation(prompt, stream=True, details=True)]
    assert [event.index for event in events] == list(range(1, len(events) + 1))
    assert len(events) > 5
    assert "".join(event.token.text for event in events) == text
    assert [event.generated_text for event in events[:-1]] == [None] * (len(events) - 1)
    last = events[-1]
    assert last.token.special
    assert last.generated_text == text
    assert last.details is not None
    assert last.details.input_length > 0


async def serving(service: Service) -> None:
    """An API that has just started may not have heard of all models yet."""

    async def known() -> bool:
        states = {model["name"]: model["state"] for model in (await service.client.get("/models/")).json()}
        return [states.get(name) for name in ("chat", "embed", "tiny")] == ["ready"] * 3

    await eventually(known, "the models are known")


async def test_which_model_answers(make_settings: Callable[..., Settings], service: Service, tmp_path: Path) -> None:
    body = {"inputs": "[[sim:emit=Yes]]"}
    # With no default: the only one with a chat template; where none is known by its folder, it must be named.
    async with running_api(make_settings(default_model=None)) as other:
        await serving(other)
        assert (await other.client.get("/tgi/info")).json()["model_id"] == "chat"
        assert (await other.client.post("/tgi/generate", json=body)).json() == {"generated_text": "Yes"}
    async with running_api(make_settings(default_model=None, model_repository=str(tmp_path))) as other:
        await serving(other)
        for answer in (await other.client.post("/tgi/generate", json=body), await other.client.get("/tgi/info")):
            assert answer.status_code == 422
            assert "chat, embed, tiny" in answer.json()["error"]
        named = await other.client.post("/tgi/generate", json=body | {"model": "tiny"})
        assert named.json() == {"generated_text": "Yes"}
    assert (await service.client.get("/tgi/info")).json()["max_best_of"] == 128


async def test_chats_below_tgis_address(
    client: AsyncInferenceClient, make_settings: Callable[..., Settings], service: Service
) -> None:
    messages = [{"role": "user", "content": "[[sim:emit=Yes]]"}]
    answer = await client.chat_completion(messages)
    assert (answer.choices[0].message.content, answer.model) == ("Yes", "chat")
    named = [
        ("/tgi/v1/completions", {"prompt": "[[sim:emit=Yes]]"}),
        ("/tgi/v1/chat/completions", {"messages": messages}),
    ]
    for path, body in named:
        for model in ({"model": "tgi"}, {}):
            assert (await service.client.post(path, json=body | model)).json()["model"] == "chat"
            assert (await service.client.post(path.removeprefix("/tgi"), json=body)).json()["model"] == "chat"
        missing = await service.client.post(path, json=body | {"model": "none"})
        assert (missing.status_code, missing.json()["error_type"]) == (404, "model_not_found")


async def test_only_the_end_of_a_prompt(
    make_settings: Callable[..., Settings], service: Service, tmp_path: Path
) -> None:
    prompt = "Not this. [[sim:emit=Yes]]"
    # As many tokens as bytes at most: no tokenizer is needed.
    assert (await post(service, "/tgi/generate", prompt, truncate=len(prompt))).status_code == 200
    shutil.copytree(TEST_MODELS / "chat", tmp_path / "chat")
    tokenizer = trained(prompt)
    tokenizer.save(str(tmp_path / "chat" / "1" / "tokenizer.json"))
    kept = len(tokenizer.encode("[[sim:emit=Yes]]", add_special_tokens=False).ids)
    async with running_api(make_settings(model_repository=str(tmp_path))) as other:
        answer = await post(other, "/tgi/generate", prompt, truncate=kept)
        assert answer.json() == {"generated_text": "Yes"}
        ticket = await other.result(answer.headers["x-result-id"])
        context = (await other.client.get(f"/contexts/{ticket['context_id']}")).json()
    assert context["content"].strip() == "[[sim:emit=Yes]]"


@pytest.mark.parametrize(
    ("parameters", "field"),
    [
        ({"decoder_input_details": True}, "decoder_input_details"),
        ({"watermark": True}, "watermark"),
        ({"truncate": 5}, "truncate"),
        ({"max_new_tokens": 0}, "max_new_tokens"),
        ({"temperature": -1.0}, "temperature"),
        ({"top_p": 1.5}, "top_p"),
        ({"best_of": 2}, "best_of"),
        ({"stop": ["x"] * 65}, "stop"),
        ({"grammar": {"type": "json", "value": "no schema"}}, "grammar"),
        ({"grammar": {"type": "regex", "value": {}}}, "grammar"),
        ({"max_tokens": 5}, "max_tokens"),
    ],
)
async def test_what_cannot_be_done_is_refused_in_tgis_form(
    service: Service, parameters: dict[str, Any], field: str
) -> None:
    for path in ("/tgi", "/tgi/", "/tgi/generate", "/tgi/generate_stream"):
        answer = await post(service, path, **parameters)
        assert answer.status_code == 422, answer.text
        assert set(answer.json()) == {"error", "error_type"}
        assert answer.json()["error_type"] == "validation"
        assert field in answer.json()["error"]
    assert (await service.client.get("/results/")).json() == []


async def test_the_client_knows_the_errors(client: AsyncInferenceClient, service: Service) -> None:
    with pytest.raises(ValidationError, match=r"parameters\.temperature"):
        await client.text_generation("x", temperature=-1.0)
    long = "word " * 20_000
    with pytest.raises(GenerationError, match="prompt"):
        await client.text_generation(long)
    # A stream that fails before its first token has a status too.
    failed = await post(service, "/tgi/generate_stream", long)
    assert (failed.status_code, failed.json()["error_type"]) == (424, "generation")
    for path, body, code in (
        ("/tgi/generate", {"inputs": "x", "model": "none"}, "model_not_found"),
        ("/tgi/nothing", {}, "not_found"),
    ):
        missing = await service.client.post(path, json=body)
        assert (missing.status_code, missing.json()["error_type"]) == (404, code)


async def test_what_no_engine_knows_is_named(service: Service) -> None:
    answer = await post(service, "/tgi/generate", typical_p=0.95, max_new_tokens=3)
    assert answer.status_code == 200
    assert answer.headers["x-ignored"] == "parameters.typical_p=0.95"
    assert (await service.result(answer.headers["x-result-id"]))["status"] == "completed"


@pytest.mark.parametrize("kind", ["json", "json_schema", "regex"])
async def test_a_grammar_holds_the_text(service: Service, kind: str) -> None:
    schema = {"type": "object", "properties": {"age": {"type": "integer"}}, "required": ["age"]}
    value: Any = {"json": json.dumps(schema), "json_schema": {"name": "x", "schema": schema}, "regex": "[0-9]{3}"}[kind]
    answer = await post(service, "/tgi/generate", grammar={"type": kind, "value": value})
    made = json.loads(answer.json()["generated_text"])
    assert isinstance(made if kind == "regex" else made["age"], int)


@pytest.mark.parametrize("cancels", [True, False])
async def test_a_dropped_stream_cancels_only_where_asked(service: Service, cancels: bool) -> None:
    headers = {"X-Cancel-On-Disconnect": "true"} if cancels else {}
    body = {"inputs": "[[sim:slow=60]][[sim:tokens=40]]", "parameters": {"max_new_tokens": 40}}
    async with service.client.stream("POST", "/tgi/generate_stream", json=body, headers=headers) as stream:
        id_ = stream.headers["x-result-id"]
        async for line in stream.aiter_lines():
            if line.startswith("data:"):
                break
    result = await service.settled(id_)
    assert result["status"] == ("failed" if cancels else "completed")


async def test_health(service: Service) -> None:
    answer = await service.client.get("/tgi/health")
    assert (answer.status_code, answer.content) == (200, b"")
