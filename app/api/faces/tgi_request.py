"""TGI's requests as tickets."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field
from pydantic_core import PydanticCustomError, from_json

from app.db.tables.contexts import Prompt
from app.errors import NoTokenizer, invalid
from app.openai.requests import Prepared, Sources, checked, unsupported
from app.prompts.adapters import SEPARATOR
from app.services.callers import Caller
from app.storable import Storable, StorableText, check_document
from app.tasks.generate import MAX_CHOICES, SamplingParameters

KIND = "tgi"
# As many alternatives as engines return.
MAX_TOP_TOKENS = 20
# Below this the engine takes the likeliest token, as TGI does where nothing asks it to sample.
GREEDY = 0.0
# Our names of the parameters that TGI calls by other names.
NAMES = {"max_tokens": "max_new_tokens", "n": "best_of", "logprobs": "top_n_tokens", "structured_outputs": "grammar"}
SAME = ("temperature", "top_p", "top_k", "repetition_penalty", "frequency_penalty", "seed")


class Grammar(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    type: Literal["json", "regex", "json_schema"]
    value: str | dict[str, Any]


class Parameters(BaseModel):
    """TGI's, with its defaults; null counts as left out. Ranges are checked by `SamplingParameters`."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    adapter_id: StorableText | None = None
    best_of: Annotated[int | None, Field(ge=1, le=MAX_CHOICES)] = None
    decoder_input_details: Literal[False] | None = Field(None, description="engines return no details of the prompt")
    details: bool | None = None
    do_sample: bool | None = None
    frequency_penalty: float | None = None
    grammar: Grammar | None = None
    max_new_tokens: int | None = None
    repetition_penalty: float | None = None
    return_full_text: bool | None = None
    seed: int | None = None
    stop: list[str] | None = None
    temperature: float | None = None
    top_k: int | None = None
    top_n_tokens: Annotated[int | None, Field(ge=0, le=MAX_TOP_TOKENS)] = None
    top_p: float | None = None
    truncate: Annotated[int | None, Field(ge=1)] = Field(None, description="the last tokens of the prompt, this many")
    typical_p: float | None = Field(None, description="no engine knows it; named in the header x-ignored")
    watermark: Literal[False] | None = Field(None, description="no engine knows it")

    @property
    def samples(self) -> bool:
        return bool(self.do_sample) or any(
            value is not None for value in (self.temperature, self.top_k, self.top_p, self.typical_p)
        )


class GenerateRequest(Storable):
    model_config = ConfigDict(extra="forbid", strict=True)

    inputs: Annotated[StorableText, Field(min_length=1, examples=["What is Deep Learning?"])]
    parameters: Parameters | None = None
    model: Annotated[StorableText | None, Field(max_length=255)] = Field(
        None, description="not in TGI: which model answers, where there are several"
    )


class CompatibleRequest(GenerateRequest):
    stream: bool | None = None


async def prepare(services: Sources, caller: Caller, body: GenerateRequest, model: str, *, stream: bool) -> Prepared:
    """A request as a ticket's prompt and parameters.

    Raises:
        AppError: whatever is wrong with it, naming the parameter.
    """
    given = body.parameters or Parameters()
    chosen = await services.adapters.resolve(
        caller, model if given.adapter_id is None else f"{model}{SEPARATOR}{given.adapter_id}"
    )
    longest = services.settings.max_content_chars
    if len(body.inputs) > longest:
        raise invalid("inputs", f"is longer than {longest:,} characters")
    inputs = body.inputs if given.truncate is None else await _end(services, chosen.model, body.inputs, given.truncate)
    best_of = given.best_of or 1
    if best_of > 1 and stream:
        raise unsupported("parameters.best_of", "must be 1 in a stream")
    if best_of > 1 and not given.samples:
        raise invalid(
            "parameters.best_of", "needs do_sample, temperature, top_k or top_p: greedy texts are all the same"
        )
    wanted: dict[str, Any] = {name: getattr(given, name) for name in SAME}
    wanted |= {
        "max_tokens": given.max_new_tokens,
        "n": best_of,
        "stop": given.stop or None,
        # TGI leaves the text that ended the generation in the answer.
        "include_stop_str_in_output": True if given.stop else None,
        "structured_outputs": None if given.grammar is None else _form(given.grammar),
        "lora_name": chosen.adapter,
    }
    if not given.samples:
        wanted["temperature"] = GREEDY
    if given.details or stream or best_of > 1:
        wanted["logprobs"] = given.top_n_tokens or 0
    parameters = checked(
        SamplingParameters,
        {name: value for name, value in wanted.items() if value is not None},
        {name: f"parameters.{NAMES.get(name, name)}" for name in SamplingParameters.model_fields},
    )
    request = given.model_dump(mode="json", exclude_none=True)
    if given.return_full_text:
        request["inputs"] = body.inputs
    ignored = () if given.typical_p in (None, 1.0) else (f"parameters.typical_p={given.typical_p:g}",)
    return Prepared(chosen.model, Prompt(inputs), parameters, KIND, request, ignored=ignored)


async def _end(services: Sources, model: str, text: str, tokens: int) -> str:
    """Raises InvalidRequest where the text may have more tokens, and there is no tokenizer to tell."""
    # A token has a byte at least.
    if len(text.encode()) <= tokens:
        return text
    try:
        ids = await services.tokenizers.encode(model, text, special=False)
        return text if len(ids) <= tokens else await services.tokenizers.decode(model, ids[-tokens:], "inputs")
    except NoTokenizer as error:
        raise invalid("parameters.truncate", f"cannot be kept to. {error.detail}") from None


def _form(grammar: Grammar) -> dict[str, Any]:
    """Raises InvalidRequest where the value does not fit the type."""
    value = grammar.value
    if grammar.type == "regex":
        if not isinstance(value, str):
            raise invalid("parameters.grammar.value", "must be a text where type is regex")
        return {"regex": value}
    if isinstance(value, str):
        try:
            value = check_document(from_json(value, allow_inf_nan=False))
        except (PydanticCustomError, ValueError):
            value = ""
    if grammar.type == "json_schema" and isinstance(value, dict):
        value = value.get("schema", "")
    if not isinstance(value, dict):
        raise invalid("parameters.grammar.value", "must be a JSON schema")
    return {"json": value}
