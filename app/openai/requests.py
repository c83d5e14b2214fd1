"""Bodies of requests in OpenAI's shapes, and what of them the engine is asked for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Protocol, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic.config import JsonDict

from app.config import Settings
from app.db.tables.contexts import Prompt
from app.errors import InvalidRequest, UnsupportedParameter, invalid
from app.openai.answers import StreamUsage
from app.openai.failures import parameter
from app.prompts.adapters import Adapters
from app.prompts.parsers import Parsers
from app.prompts.profiles import Profiles
from app.prompts.templates import Templates
from app.prompts.tokenizers import Tokenizers
from app.queue.ticket import FLEX, FLEX_PRIORITY, PRIORITY_HIGHEST, PRIORITY_LOWEST
from app.services.catalog import ModelCatalog
from app.services.contexts import Contexts
from app.services.conversations import Conversations
from app.services.image_fetching import ImageFetcher
from app.services.inputs import Inputs
from app.services.results import Results
from app.services.submissions import Turn
from app.services.webhooks import Webhook
from app.storable import Storable
from app.tasks.embed import EmbeddingParameters
from app.tasks.generate import UNSUPPORTED_PARAMETER, SamplingParameters
from app.tasks.infer import InferParameters

# Named rather than unknown, so that the answer can say what to do instead.
UNSUPPORTED = {
    "audio": "no model here makes audio",
    "functions": "use tools",
    "function_call": "use tool_choice",
    "moderation": "nothing is moderated here",
    "prediction": "the engine takes no predicted output",
    "reasoning_effort": "is for chats, whose template may know it",
    "style": "say it in the prompt",
    "partial_images": "an image comes as a whole",
    "output_compression": "images are PNGs",
    "suffix": "the engine cannot insert text",
    "web_search_options": "there is no web search; offer a tool of your own",
    "lora_name": "name the adapter as the model; GET /v1/models lists it",
    "prompt_logprobs": "is for completions",
}
_NO_BEAMS = "the engine samples only, without beam search"
_NO_IDS = "engines tell texts, not the ids of their tokens; POST /tokenize tells those of a text"
# What vLLM's clients send by themselves, with the only value that can be given.
ONLY: dict[str, tuple[Any, str]] = {
    "use_beam_search": (False, _NO_BEAMS),
    "early_stopping": (False, _NO_BEAMS),
    "length_penalty": (1, _NO_BEAMS),
    "return_token_ids": (False, _NO_IDS),
    "return_tokens_as_token_ids": (False, _NO_IDS),
    "detokenize": (True, _NO_IDS),
}
# Taken because clients send them, and changing no answer.
WITHOUT_EFFECT = frozenset(
    {
        "cache_salt",
        "client_metadata",
        "h2ogpt_key",
        "max_tool_calls",
        "prompt_cache_key",
        "prompt_cache_options",
        "prompt_cache_retention",
        "safety_identifier",
        "truncation",
        "user",
        "verbosity",
    }
)
GUIDED = ("guided_json", "guided_regex", "guided_choice", "guided_grammar")
# For the OpenAPI document: a parameter that is not listed is refused.
CLOSED: JsonDict = {"additionalProperties": False}
CHOSEN_BY_SAMPLING_RULE = {"n_greedy": "n", "stop_too_many": "stop"}


@dataclass(frozen=True, slots=True)
class Prepared:
    """All that `Results.submit_prompt` needs of a request."""

    model: str
    prompt: Prompt
    parameters: SamplingParameters | EmbeddingParameters | InferParameters
    kind: str
    request: dict[str, Any]
    # As `accepted` gives it.
    webhook: dict[str, Any] | None = None
    # What the request asked for and does not get, as path=value.
    ignored: tuple[str, ...] = ()
    turn: Turn | None = None

    @property
    def kept(self) -> bool:
        """Whether the answer can be read again once it was delivered."""
        return self.request.get("store") is not False

    @property
    def priority(self) -> int:
        """As tickets have it: higher goes first."""
        highest = FLEX_PRIORITY if self.request.get("service_tier") == FLEX else PRIORITY_HIGHEST
        return max(PRIORITY_LOWEST, min(highest, -int(self.request.get("priority") or 0)))


class Sources(Protocol):
    """What a request is prepared from."""

    @property
    def settings(self) -> Settings: ...
    @property
    def adapters(self) -> Adapters: ...
    @property
    def templates(self) -> Templates: ...
    @property
    def parsers(self) -> Parsers: ...
    @property
    def catalog(self) -> ModelCatalog: ...
    @property
    def profiles(self) -> Profiles: ...
    @property
    def tokenizers(self) -> Tokenizers: ...
    @property
    def contexts(self) -> Contexts: ...
    @property
    def results(self) -> Results: ...
    @property
    def conversations(self) -> Conversations: ...
    @property
    def inputs(self) -> Inputs: ...
    @property
    def images(self) -> ImageFetcher | None: ...


def _is(value: Any, only: Any) -> bool:
    return isinstance(value, bool) is isinstance(only, bool) and bool(value == only)


class StreamOptions(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    include_usage: bool | None = None
    include_obfuscation: Literal[False] | None = None
    continuous_usage_stats: bool | None = Field(None, description="with `include_usage`, each chunk tells it")


class OpenAIRequest(Storable):
    """What all requests share. A parameter that is null counts as left out."""

    model_config = ConfigDict(extra="allow", strict=True, allow_inf_nan=False, json_schema_extra=CLOSED)

    model: Annotated[str, Field(min_length=1, max_length=255, examples=["demo"])]
    user: str | None = Field(None, description="stored with the request")
    webhook: Webhook | None = Field(None, description="whom to tell of the end; else whom the API key names")

    @model_validator(mode="after")
    def _nothing_unknown(self) -> Self:
        for name, value in (self.model_extra or {}).items():
            if value is None or (name in ONLY and _is(value, ONLY[name][0])):
                continue
            if name in ONLY:
                only = str(ONLY[name][0]).lower()
                raise unsupported(name, f"can be {only} only: {ONLY[name][1]}")
            reason = UNSUPPORTED.get(name, "there is no such parameter; check its spelling")
            raise unsupported(name, reason)
        return self

    def stored(self, *without: str) -> dict[str, Any]:
        """The request as it came, less what is stored elsewhere or does not change the answer."""
        return self.model_dump(
            mode="json",
            exclude_unset=True,
            exclude_none=True,
            exclude={"metadata", "stream", "stream_options", "webhook", *without},
        )


def documented(schema: dict[str, Any]) -> None:
    """Gives parameters the ranges that `SamplingParameters` holds them to."""
    schema.update(CLOSED)
    for name, field in SamplingParameters.model_json_schema()["properties"].items():
        if name in GenerationRequest.model_fields and "$ref" not in str(field):
            found = {key: value for key, value in field.items() if key != "default"}
            schema["properties"][name] = found if "anyOf" in found else {"anyOf": [found, {"type": "null"}]}


# Of chats and completions, as servers of one model have it.
Unnamed = Annotated[
    str | None,
    Field(min_length=1, max_length=255, examples=["demo"], description="DEFAULT_MODEL, or the only one that chats"),
]


class GenerationRequest(OpenAIRequest):
    """What chats and completions share; ranges are checked by `SamplingParameters`."""

    model_config = ConfigDict(json_schema_extra=documented)

    n: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    max_tokens: int | None = None
    stop: str | list[str] | None = None
    seed: int | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logit_bias: dict[str, float] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    metadata: dict[str, str] | None = Field(None, description="stored with the context")
    store: bool | None = Field(None, description="false removes prompt and answer once delivered; else both are kept")
    service_tier: Literal["auto", "default", "flex"] | None = Field(
        None, description="flex yields to all others, as batches do, and may cost less; the others are the same"
    )
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    prompt_cache_retention: str | None = None
    request_id: str | None = Field(None, description="finds the ticket later, as the header `X-Request-Id` does")
    priority: int | None = Field(None, ge=-(2**31), lt=2**31, description="vLLM's: lower goes first")
    cache_salt: str | None = None
    h2ogpt_key: str | None = Field(None, exclude=True, description="h2oGPT's; keys are sent as bearer tokens here")

    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    min_tokens: int | None = None
    stop_token_ids: list[int] | None = None
    bad_words: list[str] | None = None
    include_stop_str_in_output: bool | None = None
    allowed_token_ids: list[int] | None = None
    ignore_eos: bool | None = None
    skip_special_tokens: bool | None = None
    spaces_between_special_tokens: bool | None = None
    structured_outputs: dict[str, Any] | None = Field(None, description="vLLM's: json, regex, choice, grammar, ...")
    guided_json: dict[str, Any] | str | None = None
    guided_regex: str | None = None
    guided_choice: Annotated[list[str] | None, Field(min_length=1)] = None
    guided_grammar: str | None = None

    @property
    def stream_usage(self) -> StreamUsage:
        options = self.stream_options
        if options is None or not options.include_usage:
            return StreamUsage.NOWHERE
        return StreamUsage.IN_EACH if options.continuous_usage_stats else StreamUsage.AT_END

    def sampling(self, names: Mapping[str, str] | None = None, **derived: Any) -> SamplingParameters:
        """The engine's parameters: those of the same name, and what was `derived` from others, which `names` tells.

        Raises:
            InvalidRequest: one is out of range, or two contradict each other.
        """
        shared = SamplingParameters.model_fields.keys() & type(self).model_fields.keys()
        given = {name: getattr(self, name) for name in self.model_fields_set & shared}
        guided = {name.removeprefix("guided_"): getattr(self, name) for name in GUIDED}
        if any(value is not None for value in guided.values()):
            first = next(name for name in GUIDED if getattr(self, name) is not None)
            if self.structured_outputs is not None or derived.get("structured_outputs") is not None:
                raise invalid(first, "the text is held to another form already; give one of them")
            if isinstance(guided["json"], str):
                raise invalid("guided_json", "give the schema as an object, not as text")
            given["structured_outputs"] = {name: value for name, value in guided.items() if value is not None}
        if given.get("structured_outputs") is not None and derived.get("structured_outputs") is not None:
            raise invalid("structured_outputs", "response_format or tool_choice hold the text to another form already")
        values = given | derived
        return checked(SamplingParameters, {name: value for name, value in values.items() if value is not None}, names)


Model = TypeVar("Model", bound=BaseModel)


def checked(model: type[Model], values: Mapping[str, Any], names: Mapping[str, str] | None = None) -> Model:
    """Validates `values`, of which `names` tells how the request calls them.

    Raises:
        InvalidRequest: naming the first field that is off.
    """
    try:
        return model.model_validate(dict(values))
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        param = parameter(problem["loc"]) or CHOSEN_BY_SAMPLING_RULE.get(problem["type"], "")
        text = str(problem["msg"]).removeprefix("Value error, ")
        if problem["type"] == UNSUPPORTED_PARAMETER:
            raise unsupported(param, text) from None
        if problem["type"] == "missing":
            text = "is required"
        raise invalid((names or {}).get(param, param), text) from None


def checked_at(model: type[Model], values: Mapping[str, Any], where: str) -> Model:
    """As `checked`, for what stands at `where` in the request."""
    try:
        return checked(model, values)
    except InvalidRequest as error:
        raise renamed(error, lambda name: f"{where}.{name}" if name else where) from None


def renamed(error: InvalidRequest, name: Callable[[str], str]) -> InvalidRequest:
    """The same error about a parameter that the client knows by another name."""
    if not error.errors:
        return error
    field, message = name(error.errors[0]["field"]), error.errors[0]["message"]
    return type(error)(f"{field}: {message}" if field else message, errors=[{"field": field, "message": message}])


def unsupported(name: str, reason: str) -> UnsupportedParameter:
    return UnsupportedParameter(f"{name}: {reason}", errors=[{"field": name, "message": reason}])
