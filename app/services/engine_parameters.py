"""What a request asks of the engine, bounded as the settings have it."""

from __future__ import annotations

from typing import Any

from pydantic_core import PydanticCustomError

from app.config import Settings
from app.errors import InvalidParameters
from app.tasks.embed import EmbeddingParameters
from app.tasks.generate import SamplingParameters, largest_answer
from app.tasks.infer import InferParameters


def engine_parameters(
    parameters: SamplingParameters | EmbeddingParameters | InferParameters, settings: Settings, *, nested: bool = True
) -> dict[str, Any]:
    """The parameters as the engine gets them; raises InvalidParameters."""
    try:
        wanted = parameters.for_engine(settings.default_max_tokens)
        require_bounded(wanted, settings)
    except PydanticCustomError as error:
        raise InvalidParameters(
            error.message(), errors=[{"field": "parameters" if nested else error.type, "message": error.message()}]
        ) from None
    return wanted


def require_bounded(parameters: dict[str, Any], settings: Settings) -> None:
    """Raises PydanticCustomError where the answer to these parameters of an engine may come to too much."""
    most, size = settings.max_answer_bytes, largest_answer(parameters)
    if size > most:
        factors = [f"{name} {parameters[name]}" for name in ("n", "max_tokens", "logprobs") if name in parameters]
        raise PydanticCustomError(
            "max_tokens",
            "the answer may come to {size} bytes ({factors}), and MAX_ANSWER_BYTES allows {most}: ask for less of "
            "one of them",
            {"size": f"{size:,}", "factors": ", ".join(factors), "most": f"{most:,}"},
        )
