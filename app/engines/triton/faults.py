"""What goes wrong on a Triton server, in one table: its texts and gRPC statuses, and what each means for a ticket."""

from __future__ import annotations

import re
from dataclasses import dataclass

import grpc
from tritonclient.utils import InferenceServerException

from app.engines.base import FINAL, RETRY, UNKNOWN, WAIT, Disposition, EngineError, presentable, sentence

MAX_MESSAGE_BYTES = 64 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Rule:
    """One row of the table; `{detail}` in the message is what the pattern's group `detail` matched."""

    pattern: re.Pattern[str]
    code: str
    disposition: Disposition
    message: str
    server_fault: bool = False


def _rule(pattern: str, code: str, disposition: Disposition, message: str, *, fault: bool = False) -> Rule:
    return Rule(re.compile(pattern, re.DOTALL), code, disposition, message, fault)


# In-stream errors carry no code, so their text decides. First match wins.
IN_STREAM_RULES: tuple[Rule, ...] = (
    _rule(
        r"This model's (?P<detail>maximum context length is \d+ tokens)",
        "prompt_too_long",
        FINAL,
        "The prompt is too long for the model, whose {detail}: shorten it or lower max_tokens.",
    ),
    _rule(
        r"longer than the maximum model length of (?P<detail>\d+)",
        "prompt_too_long",
        FINAL,
        "The prompt leaves no room for output in the model's context of {detail} tokens: shorten it.",
    ),
    _rule(
        r"decoder prompt cannot be empty",
        "prompt_empty",
        FINAL,
        "The model's tokenizer makes no token of this prompt: send a prompt that has text.",
    ),
    _rule(
        r"codec can't decode byte",
        "prompt_not_text",
        FINAL,
        "The engine could not read the prompt as UTF-8 text.",
    ),
    _rule(
        r"Requested (?P<detail>(?:sample|prompt) logprobs of \d+, which is greater than max allowed: \d+)",
        "invalid_parameters",
        FINAL,
        "The engine refused the sampling parameters: requested {detail}.",
    ),
    _rule(
        r"LoRA feature is not enabled",
        "lora_not_enabled",
        FINAL,
        "This model was deployed without LoRA: send the request without lora_name.",
    ),
    _rule(
        r"(?P<detail>LoRA .+ is not supported, we currently support \[.*\])",
        "lora_not_found",
        FINAL,
        "The model does not have this adapter: {detail}.",
    ),
    _rule(
        r"does not support '(?P<detail>\w+)' request",
        "not_supported_by_model",
        FINAL,
        "This model cannot serve a request of the kind '{detail}'.",
    ),
    _rule(
        r"(?P<detail>At most \d+ image\(s\) may be provided in one prompt)",
        "invalid_request",
        FINAL,
        "The model takes fewer images: {detail}.",
    ),
    _rule(
        r"cannot identify image file",
        "invalid_request",
        FINAL,
        "The engine cannot read one of the images: send a PNG or a JPEG.",
    ),
    _rule(
        r"'NoneType' object has no attribute 'lora_name'|JSONDecodeError",
        "invalid_parameters",
        FINAL,
        "The engine refused the sampling parameters; its reason is only in Triton's own log.",
    ),
    _rule(
        r"(?P<detail>(?:Grammar error|Invalid (?:JSON )?grammar specification|Failed to (?:transform|convert)\b).*)",
        "invalid_parameters",
        FINAL,
        "The engine cannot use the grammar, regex or schema of structured_outputs: {detail}.",
    ),
    _rule(
        r"JSON schema contains features not supported by (?P<detail>\w+)",
        "invalid_parameters",
        FINAL,
        "The JSON schema uses features that the engine's {detail} does not support.",
    ),
    _rule(
        r"(?P<detail>\w+) contains? out-of-vocab token id",
        "invalid_parameters",
        FINAL,
        "{detail} has token ids that are not in the model's vocabulary.",
    ),
    _rule(
        r"(?P<detail>The local engine, llama\.cpp, does not support [^\n]*)",
        "invalid_parameters",
        FINAL,
        "{detail}.",
    ),
    _rule(
        # What vLLM appends to its own checks of a request.
        r"(?P<detail>[^\n]+?) \(parameter=\w+, value=",
        "invalid_parameters",
        FINAL,
        "The engine refused the parameters: {detail}.",
    ),
    _rule(
        r"'<' not supported between instances of 'str' and 'int'",
        "invalid_parameters",
        FINAL,
        "The engine cannot take logit_bias: send the request without it.",
    ),
    _rule(
        r"Request for unknown model: '[^']*' (?:has no available versions)",
        "model_unavailable",
        WAIT,
        "The model is not loaded on the server at the moment.",
    ),
    _rule(
        r"Request for unknown model: '[^']*'.*is not found",
        "model_unavailable",
        WAIT,
        "The server does not have this model.",
    ),
    _rule(
        r"Stub process '[^']*' is not healthy",
        "model_process_died",
        WAIT,
        "The model's process on the server has died.",
        fault=True,
    ),
    _rule(
        r"EngineCore encountered an issue|EngineDeadError|unhealthy vLLM engine",
        "engine_died",
        RETRY,
        "The engine behind the model has died.",
        fault=True,
    ),
    _rule(
        r"unexpected inference input|data-type is|unexpected shape for input|inference request batch-size"
        r"|expected \d+ inputs but got|missing required input",
        "model_contract",
        FINAL,
        'The model does not take the inputs of the vLLM backend; deploy it with backend: "vllm".',
    ),
    _rule(
        r"exceeds maximum queue size|Exceeds maximum queue size",
        "server_full",
        WAIT,
        "The server's queue is full.",
    ),
)

# Failures of the call itself. UNAVAILABLE is told apart by its text, see classify_rpc.
RPC_RULES: dict[grpc.StatusCode, tuple[str, Disposition, str, bool]] = {
    grpc.StatusCode.DEADLINE_EXCEEDED: (
        "run_timeout",
        RETRY,
        "The generation took longer than one attempt may.",
        False,
    ),
    grpc.StatusCode.RESOURCE_EXHAUSTED: ("server_full", WAIT, "The server is overloaded.", True),
    grpc.StatusCode.CANCELLED: ("stream_cancelled", RETRY, "The server cancelled the generation.", False),
    grpc.StatusCode.ABORTED: ("stream_aborted", RETRY, "The server aborted the generation.", False),
    grpc.StatusCode.UNKNOWN: ("server_error", RETRY, "The server failed without saying why.", True),
    grpc.StatusCode.INTERNAL: ("server_error", RETRY, "The server failed internally.", True),
    grpc.StatusCode.DATA_LOSS: ("server_error", RETRY, "The answer arrived damaged.", True),
    grpc.StatusCode.NOT_FOUND: ("model_unavailable", WAIT, "The server does not have this model.", False),
    grpc.StatusCode.FAILED_PRECONDITION: ("model_unavailable", WAIT, "The model is not ready.", False),
    grpc.StatusCode.INVALID_ARGUMENT: ("invalid_request", FINAL, "The server refused the request.", False),
    grpc.StatusCode.OUT_OF_RANGE: ("invalid_request", FINAL, "The server refused the request.", False),
    grpc.StatusCode.ALREADY_EXISTS: ("server_error", RETRY, "The server failed internally.", True),
    grpc.StatusCode.UNIMPLEMENTED: (
        "not_supported_by_model",
        FINAL,
        'The server cannot stream this model; deploy it with backend: "vllm".',
        False,
    ),
    grpc.StatusCode.UNAUTHENTICATED: ("server_refused", WAIT, "The server asks for credentials.", True),
    grpc.StatusCode.PERMISSION_DENIED: ("server_refused", WAIT, "The server denies access.", True),
}

_MESSAGE_TOO_LARGE = re.compile(r"message larger than max", re.IGNORECASE)
_NEVER_CONNECTED = re.compile(r"failed to connect|connection refused|errors resolving|lookup failed|resolution", re.I)
# What gRPC makes of a connection that breaks while the request is on its way.
_CUT_WHILE_SENDING = re.compile(r"Internal error from Core")
_EXITING = re.compile(r"Server exiting", re.I)


def classify_text(text: str) -> EngineError:
    """The error of an in-stream message."""
    for rule in IN_STREAM_RULES:
        if match := rule.pattern.search(text):
            detail = presentable(match.groupdict().get("detail") or "").rstrip(".")
            return EngineError(
                rule.code,
                rule.message.replace("{detail}", detail),
                rule.disposition,
                server_fault=rule.server_fault,
                raw=text,
            )
    return EngineError(UNKNOWN, sentence(f"The engine failed: {presentable(text)}"), RETRY, raw=text)


_OF_THE_CALL = re.compile(r"^\[request id: [^\]]*\] ")
# What the Python backend puts before an exception that a model did not catch.
_EXCEPTION = re.compile(r"Failed to process the request\(s\) for model '[^']*', message: ")


def classify_tensors(text: str) -> EngineError:
    """As classify_text, where tensors were sent: a model's own words are no words of the vLLM backend.

    A Python model that answers with an error has refused the request (`model_refused`); of other backends nobody can
    say that.
    """
    for rule in IN_STREAM_RULES:
        if (rule.disposition is FINAL and rule.code != "model_contract") or not rule.pattern.search(text):
            continue
        if rule.code == "model_contract":
            said = sentence(presentable(_OF_THE_CALL.sub("", text)))
            return EngineError("inputs_refused", f"The server refused the tensors: {said}", FINAL, raw=text)
        return classify_text(text)
    if exception := _EXCEPTION.search(text):
        said = presentable(text[exception.end() :])
        return EngineError(UNKNOWN, sentence(f"The model failed: {said}"), RETRY, raw=text)
    return EngineError("model_refused", sentence(f"The model refused the inputs: {presentable(text)}"), FINAL, raw=text)


def classify_rpc(status: grpc.StatusCode, details: str) -> EngineError:
    """The error of a call that failed as a whole."""
    if status is grpc.StatusCode.INTERNAL and _CUT_WHILE_SENDING.search(details):
        status = grpc.StatusCode.UNAVAILABLE
    if status is grpc.StatusCode.UNAVAILABLE:
        if _EXITING.search(details):
            return EngineError("server_draining", "The server is shutting down.", WAIT, server_fault=True)
        if _NEVER_CONNECTED.search(details):
            return EngineError(
                "server_unreachable", "The server cannot be reached.", WAIT, server_fault=True, raw=details
            )
        return EngineError(
            "server_died",
            "The connection to the server broke while the generation ran.",
            RETRY,
            server_fault=True,
            raw=details,
        )
    if _MESSAGE_TOO_LARGE.search(details):
        limit = MAX_MESSAGE_BYTES // 1024 // 1024
        return EngineError(
            "message_too_large", f"The request or its answer is larger than {limit} MiB.", FINAL, raw=details
        )
    code, disposition, message, fault = RPC_RULES.get(status, ("server_error", RETRY, "The server failed.", True))
    return EngineError(code, message, disposition, server_fault=fault, raw=details)


def classify_unary(error: InferenceServerException) -> EngineError:
    """The error of a question about the server's state: no generation is in flight on such a call."""
    name = (error.status() or "").removeprefix("StatusCode.")
    status = getattr(grpc.StatusCode, name, grpc.StatusCode.UNKNOWN)
    details = error.message() or ""
    if status is grpc.StatusCode.DEADLINE_EXCEEDED:
        return EngineError("server_unreachable", "The server does not answer.", WAIT, server_fault=True, raw=details)
    if status is grpc.StatusCode.UNAVAILABLE and not _EXITING.search(details):
        return EngineError("server_unreachable", "The server cannot be reached.", WAIT, server_fault=True, raw=details)
    return classify_rpc(status, details)
