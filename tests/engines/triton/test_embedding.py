"""Which models embed, by their configuration."""

from typing import Any

import pytest

from app.engines.triton.embedding import EmbeddingContract, embedding_contract


def _text(name: str = "text", **more: Any) -> dict[str, Any]:
    return {"name": name, "data_type": "TYPE_STRING", "dims": ["1"]} | more


VECTOR = {"name": "vector", "data_type": "TYPE_FP16", "dims": ["3"]}


@pytest.mark.parametrize(
    ("config", "contract"),
    [
        ({"input": [_text()], "output": [VECTOR]}, EmbeddingContract("text", "vector", 1)),
        ({"input": [_text()], "output": [VECTOR], "max_batch_size": 8}, EmbeddingContract("text", "vector", 8, True)),
        (
            {"input": [_text(dims=["-1"])], "output": [VECTOR | {"dims": ["-1", "3"]}]},
            EmbeddingContract("text", "vector", 64),
        ),
        (
            {"input": [_text(), _text("extra", optional=True)], "output": [VECTOR]},
            EmbeddingContract("text", "vector", 1),
        ),
        ({"input": [_text(), _text("extra")], "output": [VECTOR]}, None),
        ({"input": [_text(data_type="TYPE_INT64")], "output": [VECTOR]}, None),
        ({"input": [_text()], "output": [VECTOR, VECTOR]}, None),
        ({"input": [_text()]}, None),
    ],
)
def test_the_configuration_tells_whether_a_model_embeds(
    config: dict[str, Any], contract: EmbeddingContract | None
) -> None:
    if contract is None:
        with pytest.raises(ValueError, match="text input"):
            embedding_contract(config)
    else:
        assert embedding_contract(config) == contract
