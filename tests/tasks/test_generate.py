"""Parameters as they are stored and sent; what is refused is tested over HTTP."""

import pytest
from pydantic_core import PydanticCustomError

from app.tasks.generate import SamplingParameters


def test_defaults_are_filled_in_and_nothing_else() -> None:
    assert SamplingParameters().for_engine(77) == {"n": 1, "temperature": 1.0, "top_p": 1.0, "max_tokens": 77}


def test_what_was_given_is_kept() -> None:
    given = {
        "n": 2,
        "temperature": 0.5,
        "top_p": 0.9,
        "top_k": -1,
        "min_p": 0.1,
        "max_tokens": 9,
        "min_tokens": 3,
        "stop": ["a", "b"],
        "stop_token_ids": [1],
        "bad_words": ["c"],
        "include_stop_str_in_output": True,
        "seed": -5,
        "presence_penalty": -2,
        "frequency_penalty": 2,
        "repetition_penalty": 1.1,
        "logprobs": 3,
        "allowed_token_ids": [15, 16],
        "ignore_eos": False,
        "skip_special_tokens": False,
        "spaces_between_special_tokens": False,
        "structured_outputs": {"json": {"type": "object"}},
    }
    assert SamplingParameters.model_validate(given).for_engine(1) == given


def test_min_tokens_is_held_against_the_default_of_max_tokens() -> None:
    with pytest.raises(PydanticCustomError, match="which is 5"):
        SamplingParameters(min_tokens=6).for_engine(5)
