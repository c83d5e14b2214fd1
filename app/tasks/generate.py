"""vLLM's sampling parameters, checked before anything is stored.

Triton's backend answers every bad parameter with the same misleading sentence (`IN_STREAM_RULES` of its faults.py), so
each rule of vLLM's `SamplingParams` that can be checked without the model is checked here.
"""

from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from app.storable import StorableObject, StorableText

INT64 = 2**63
MAX_STOP_STRINGS = 64
MAX_STOP_TOKENS = 1024
MAX_BAD_WORDS = 1024
MAX_ALLOWED_TOKENS = 100_000
MAX_CHOICE_TEXTS = 10_000
MAX_CHOICES = 128
# What a token of an answer takes, and each alternative that is told with it: about what engines were seen to send.
TEXT_BYTES = 4
LOGPROB_BYTES = 80
GENERATE = "generate"

StopString = Annotated[StorableText, Field(min_length=1, max_length=1000)]
LoraName = Annotated[StorableText, Field(min_length=1, max_length=255)]
TokenId = Annotated[int, Field(ge=0, lt=2**31)]
# The kind of the error that a parameter causes which no engine takes.
UNSUPPORTED_PARAMETER = "unsupported_parameter"


def _refuse_bias(bias: dict[str, float]) -> None:
    """Triton's vLLM backend hands vLLM the ids as JSON has them, as text, and vLLM fails on each of them."""
    if bias:
        raise PydanticCustomError(
            UNSUPPORTED_PARAMETER,
            "the engines cannot take a bias of tokens, because their parameters are JSON, where token ids would be "
            "text; use allowed_token_ids, bad_words or structured_outputs",
        )


NoBias = Annotated[dict[str, float], AfterValidator(_refuse_bias), Field(json_schema_extra={"maxProperties": 0})]


class StructuredOutputs(BaseModel):
    """Exactly one constraint on the form of the text, as vLLM's `StructuredOutputsParams`."""

    model_config = ConfigDict(extra="forbid", strict=True)

    json_schema: StorableObject | None = Field(None, alias="json", description="a JSON schema")
    regex: StorableText | None = None
    choice: Annotated[list[StorableText], Field(min_length=1, max_length=MAX_CHOICE_TEXTS)] | None = None
    grammar: StorableText | None = None
    json_object: Literal[True] | None = None

    @model_validator(mode="after")
    def _one_constraint(self) -> Self:
        given = [name for name in type(self).model_fields if getattr(self, name) is not None]
        if len(given) != 1:
            raise PydanticCustomError(
                "structured_outputs", "give exactly one of json, regex, choice, grammar, json_object"
            )
        return self


class SamplingParameters(BaseModel):
    """What a request may ask of the engine; names and ranges are vLLM's."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    n: int = Field(1, ge=1, le=MAX_CHOICES, description="how many texts to generate; each is a generation of its own")
    temperature: float = Field(1.0, ge=0, le=2, description="0 is greedy")
    top_p: float = Field(1.0, gt=0, le=1)
    top_k: int | None = Field(None, ge=-1, lt=2**31, description="-1 or 0 considers all tokens")
    min_p: float | None = Field(None, ge=0, le=1)
    max_tokens: int | None = Field(
        None, ge=1, lt=2**31, description="tokens to generate; the default is a setting of the service"
    )
    min_tokens: int | None = Field(None, ge=0, lt=2**31)
    stop: StopString | list[StopString] | None = Field(
        None, description="texts that end the generation; not part of the output"
    )
    stop_token_ids: Annotated[list[TokenId], Field(max_length=MAX_STOP_TOKENS)] | None = None
    bad_words: Annotated[list[StopString], Field(max_length=MAX_BAD_WORDS)] | None = None
    include_stop_str_in_output: bool | None = None
    seed: int | None = Field(None, ge=-INT64, lt=INT64)
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    repetition_penalty: float | None = Field(None, gt=0, le=2)
    logprobs: int | None = Field(None, ge=0, le=1000, description="alternatives per token; engines allow 20")
    prompt_logprobs: int | None = Field(
        None, ge=0, le=1000, description="the same for the tokens of the prompt, told before those of the text"
    )
    logit_bias: NoBias | None = Field(None, description="refused unless it is empty: the engines cannot take it")
    allowed_token_ids: Annotated[list[TokenId], Field(min_length=1, max_length=MAX_ALLOWED_TOKENS)] | None = None
    ignore_eos: bool | None = None
    skip_special_tokens: bool | None = None
    spaces_between_special_tokens: bool | None = None
    structured_outputs: StructuredOutputs | None = None
    lora_name: LoraName | None = Field(None, description="an adapter of the model; without it the model itself answers")

    @model_validator(mode="after")
    def _rules_between_fields(self) -> Self:
        if self.temperature < 1e-5 and self.n > 1:
            raise PydanticCustomError(
                "n_greedy", "n must be 1 when temperature is 0: greedy choices would all be the same"
            )
        if isinstance(self.stop, list) and len(self.stop) > MAX_STOP_STRINGS:
            raise PydanticCustomError("stop_too_many", f"stop takes at most {MAX_STOP_STRINGS} texts")
        return self

    def for_engine(self, default_max_tokens: int) -> dict[str, Any]:
        """What is stored and sent, defaults filled in.

        Raises:
            PydanticCustomError: min_tokens exceeds max_tokens once the default is in.
        """
        parameters = self.model_dump(exclude_none=True, by_alias=True)
        parameters.setdefault("max_tokens", default_max_tokens)
        if self.min_tokens is not None and self.min_tokens > parameters["max_tokens"]:
            raise PydanticCustomError(
                "min_tokens",
                f"min_tokens must not exceed max_tokens, which is {parameters['max_tokens']}",
            )
        return parameters


def largest_answer(parameters: dict[str, Any]) -> int:
    """Bytes that the answer to these parameters of an engine may come to, where it takes all the tokens it may.

    0 for an answer that no parameter makes larger, as vectors are.
    """
    logprobs = parameters.get("logprobs")
    token = TEXT_BYTES + (0 if logprobs is None else (logprobs + 1) * LOGPROB_BYTES)
    return int(parameters.get("n") or 1) * int(parameters.get("max_tokens") or 0) * token
