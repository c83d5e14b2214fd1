"""A stand-in for Triton's vLLM backend on a machine without a GPU: the same wire contract, another engine.

Models with `backend: "vllm"` load it. Where the weights of a model are installed llama.cpp answers, see llama.py.
Else it is a simulation: see sim_engine.py for its timing, sim_text.py for its tokens and text, and sim_faults.py for
its settings and the faults it makes on demand.
"""

import json
import os
import time
import traceback

import installed
import numpy as np
import sim_args
import sim_images
import sim_sampling
import sim_text
import triton_python_backend_utils as pb_utils
from sim_completion import complete
from sim_engine import Engine, Sequences
from sim_faults import Plan, Settings
from sim_metrics import Metrics
from sim_process import EngineProcess

_INPUTS = (
    ("text_input", "TYPE_STRING", 1),
    ("image", "TYPE_STRING", -1),
    ("stream", "TYPE_BOOL", 1),
    ("sampling_parameters", "TYPE_STRING", 1),
    ("exclude_input_in_output", "TYPE_BOOL", 1),
    ("return_finish_reason", "TYPE_BOOL", 1),
    ("return_cumulative_logprob", "TYPE_BOOL", 1),
    ("return_logprobs", "TYPE_BOOL", 1),
    ("return_num_input_tokens", "TYPE_BOOL", 1),
    ("return_num_output_tokens", "TYPE_BOOL", 1),
    ("embedding_request", "TYPE_STRING", 1),
)
_OUTPUTS = (
    ("text_output", "TYPE_STRING", -1),
    ("finish_reason", "TYPE_STRING", -1),
    ("cumulative_logprob", "TYPE_FP32", -1),
    ("logprobs", "TYPE_STRING", -1),
    ("num_input_tokens", "TYPE_UINT32", 1),
    ("num_output_tokens", "TYPE_UINT32", -1),
)
_FINAL = pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL


class TritonPythonModel:
    @staticmethod
    def auto_complete_config(config):
        given = config.as_dict()
        names = {each["name"] for each in [*given["input"], *given["output"]]}
        for name, dtype, size in _INPUTS:
            if name not in names:
                each = {"name": name, "data_type": dtype, "dims": [size], "optional": name != "text_input"}
                config.add_input(each)
        for name, dtype, size in _OUTPUTS:
            if name not in names:
                config.add_output({"name": name, "data_type": dtype, "dims": [size]})
        if _is_simulated(pb_utils.get_model_dir()):
            # Never sent: the one place where a ready model can tell its clients that nothing real answers.
            config.add_output({"name": "simulation", "data_type": "TYPE_STRING", "dims": [1]})
        else:
            # Beyond the real backend, which computes them and keeps them to itself.
            config.add_output({"name": "prompt_logprobs", "data_type": "TYPE_STRING", "dims": [1]})
        config.set_model_transaction_policy({"decoupled": True})
        config.set_max_batch_size(0)
        return config

    def initialize(self, args):
        self._log = pb_utils.Logger
        self._name = args["model_name"]
        config = json.loads(args["model_config"])
        parameters = config["parameters"]
        self._health_check = _flag(parameters, "ENABLE_VLLM_HEALTH_CHECK")
        self._settings = Settings.from_parameters(parameters)

        folder = pb_utils.get_model_dir()
        path = os.path.join(folder, "model.json")
        if not os.path.isfile(path):
            raise AssertionError(f"'model.json' containing vllm engine args must be provided in '{folder}'")
        arguments = _read_json(path)
        self._loras = None
        if str(arguments.get("enable_lora", "")).lower() == "true":
            self._loras = list(_read_json(os.path.join(folder, "multi_lora.json"), "Triton backend cannot find {}."))
        sim_args.check(arguments)
        self._most_images = sim_images.limit(arguments)
        path, reason = installed.weights(arguments)
        self._llama = None
        self._context = int(arguments.get("max_model_len") or 4096)
        self._max_logprobs = int(arguments.get("max_logprobs", 20))
        slots = int(arguments.get("max_num_seqs") or 256)

        labels = {"model": self._name, "version": args["model_version"]}
        reported = _flag(parameters, "REPORT_CUSTOM_METRICS") and not arguments.get("disable_log_stats")
        metrics = Metrics(labels, self._context, reported)
        if path is None:
            self._simulate(slots, metrics)
            self._log.log_warn(
                f"SIMULATION: no model is running. '{self._name}' stands in for {arguments.get('model')} with "
                f"{slots} sequences at once and a context of {self._context} tokens; its text means nothing. "
                f"Why: {reason}."
            )
        else:
            self._load(path, arguments, metrics)

    def _simulate(self, slots: int, metrics: Metrics) -> None:
        time.sleep(self._settings.load_time)
        if self._settings.load_error:
            raise RuntimeError(self._settings.load_error)
        self._engine = Engine(slots, metrics, EngineProcess(self._name) if self._settings.process else None)

    def _load(self, path, arguments: dict, metrics: Metrics) -> None:
        from llama import Llama  # the simulation needs none of its libraries

        slots = min(int(arguments.get("max_num_seqs") or installed.MAX_SLOTS), installed.MAX_SLOTS)
        context = int(arguments.get("max_model_len") or 0)
        self._llama = Llama(path, slots=slots, context=context, metrics=metrics, log=self._log.log_error)
        self._engine, self._context = self._llama.engine, self._llama.context
        self._log.log_info(
            f"llama.cpp runs {arguments['model']} ({path.name}) for '{self._name}' with {slots} sequences at once and "
            f"a context of {self._context} tokens."
        )

    def execute(self, requests):
        if self._health_check and self._engine.dead:
            return self._refuse_all(requests)
        for request in requests:
            inputs = {tensor.name(): tensor for tensor in request.inputs()}
            sampling = inputs.get("sampling_parameters")
            text = request.parameters() if sampling is None else sampling.as_numpy()[0].decode("utf-8")
            # Not inside the try: what this raises leaves execute(), and Triton words the error.
            given = json.loads(text)
            lora = given.pop("lora_name", None)
            if lora is not None and (self._loras is None or lora not in self._loras):
                reason = f"LoRA {lora} is not supported, we currently support {self._loras}"
                _fail(request.get_response_sender(), reason if self._loras else "LoRA feature is not enabled.")
                continue
            try:
                self._engine.submit(self._prepare(request, inputs, given, lora))
            except Exception as error:
                self._log.log_error(f"[vllm] Error generating stream: {traceback.format_exc()}")
                _fail(request.get_response_sender(), f"Error generating stream: {error}")
        return None

    def finalize(self):
        self._engine.close()

    def _prepare(self, request, inputs: dict, given: dict, lora: str | None) -> Sequences:
        if "embedding_request" in inputs:
            raise ValueError(f"Model {self._name} does not support 'embed' request")
        prompt = inputs["text_input"].as_numpy()[0].decode("utf-8")
        images = sim_images.opened(inputs.get("image"), self._most_images)
        stream = bool(_boolean(inputs, "stream"))
        exclude = _boolean(inputs, "exclude_input_in_output")
        prepend = not stream if exclude is None else not exclude
        if prepend and stream:
            raise ValueError("When streaming, `exclude_input_in_output` = False is not allowed.")
        job = _Job(request, inputs, self._log, prompt if prepend else "")
        params = self._sampling(given)
        tokens = None if self._llama is None else self._llama.model.tokenize(prompt)
        input_tokens = self._measure(sim_text.count_tokens(prompt) if tokens is None else len(tokens))
        params.verify_logprobs(self._max_logprobs, sim_text.VOCABULARY_SIZE)
        if tokens is not None:
            request = self._llama.prepare(job, tokens, params, stream)
            job.completions, job.input_tokens, job.alternatives = request.completions, input_tokens, params.logprobs
            if params.prompt_logprobs is not None:
                job.prompt_logprobs = lambda: self._llama.prompt_logprobs(request)
            return request
        params.verify_logit_bias()
        params.verify_tokens(sim_text.VOCABULARY_SIZE)
        params.verify_structured()

        plan = Plan(self._settings, prompt, params.seed)
        room = self._context - input_tokens
        mark = sim_text.mark(lora, images)
        job.completions = [complete(prompt, params, plan, room, index, mark) for index in range(params.n)]
        job.input_tokens = input_tokens
        job.alternatives = params.logprobs
        return Sequences(job, job.completions, plan, stream)

    def _sampling(self, given: dict):
        try:
            return sim_sampling.parse(given)
        except Exception as error:
            self._log.log_error(
                f"[vllm] Was trying to create `TritonSamplingParams`, but got exception: {error}",
            )
            # The real backend goes on without parameters and stumbles over them: its users see only this.
            raise AttributeError("'NoneType' object has no attribute 'lora_name'") from None

    def _measure(self, count: int) -> int:
        """The prompt's number of tokens again; raises the engine's error if there are none or too many."""
        limit = self._context
        if count == 0:
            raise ValueError("The decoder prompt cannot be empty")
        if count > limit:
            # The real tokenizer stops one token beyond the limit, so the true length is never named.
            raise ValueError(
                f"This model's maximum context length is {limit} tokens. However, you requested 0 output "
                f"tokens and your prompt contains at least {limit + 1} input tokens, for a total of at least "
                f"{limit + 1} tokens. Please reduce the length of the input prompt or the number of "
                f"requested output tokens. (parameter=input_tokens, value={limit + 1})"
            )
        if count == limit:
            raise ValueError(
                f"The decoder prompt (length {limit}) plus the number of requested output tokens (at least "
                f"1) is longer than the maximum model length of {limit}. Make sure that `max_model_len` is "
                "no smaller than the number of text tokens (prompt + requested output tokens)."
            )
        return count

    def _refuse_all(self, requests) -> None:
        self._log.log_error("[vllm] Engine is not healthy and model will be unloaded")
        pb_utils.unload_model(self._name)
        for request in requests:
            _fail(
                request.get_response_sender(),
                "Model is unavailable due to unhealthy vLLM engine",
                pb_utils.TritonError.UNAVAILABLE,
            )


class _Job:
    """One request's way back to its client."""

    __slots__ = (
        "_flags",
        "_log",
        "_prepend",
        "_sender",
        "_sent",
        "alternatives",
        "completions",
        "input_tokens",
        "is_cancelled",
        "prompt_logprobs",
    )

    def __init__(self, request, inputs: dict, log, prepend: str) -> None:
        self._log = log
        self._prepend = prepend
        self._sender = request.get_response_sender()
        self.is_cancelled = self._sender.is_cancelled
        self._flags = {name: _boolean(inputs, f"return_{name}") for name in _RETURNED}
        # Of the last message, by position: characters and tokens of the sequence that stood there.
        self._sent: list[tuple[int, int]] | None = None
        # What the first message tells of the prompt's tokens, where it was asked for.
        self.prompt_logprobs = None

    def send(self, before: int, count: int, finished: bool, stream: bool) -> None:
        """Answer with tokens `before` to `count` of the sequences that are in the engine's last message.

        vLLM leaves sequences out once they have ended, and without a stream only its last message is sent.
        """
        present = [
            each
            for each in self.completions
            if (len(each.tokens) > before if stream else len(each.tokens) >= count) or len(self.completions) == 1
        ]
        response = pb_utils.InferenceResponse(self._tensors(present, before, count))
        self._send(response, _FINAL if finished else 0)

    def cancelled(self, before: int, count: int, stream: bool) -> None:
        """End a request nobody waits for any more; the engine has stopped already."""
        if stream:
            error = pb_utils.TritonError("Request was cancelled", pb_utils.TritonError.CANCELLED)
            self._send(pb_utils.InferenceResponse(error=error), _FINAL)
        else:
            self._send(pb_utils.InferenceResponse(self._tensors(self.completions, before, count)), _FINAL)

    def fail(self, reason: str) -> None:
        self._log.log_error(f"[vllm] Error generating stream: {reason}")
        _fail(self._sender, f"Error generating stream: {reason}")

    def _send(self, response, flags: int) -> None:
        try:
            self._sender.send(response, flags)
        except Exception:
            self._log.log_error(f"An error occurred while sending a response: {traceback.format_exc()}")

    def _tensors(self, done: list, before: int, count: int) -> list:
        wanted = self._flags
        prepend = "" if before else self._prepend
        reached = [(each.visible(count), min(count, len(each.tokens))) for each in done]
        # The real backend goes on where the sequence at the same position stood, whichever that was.
        sent = self._sent or [(0, 0)] * len(done)
        self._sent = reached
        parts = list(zip(done, sent, reached, strict=False))
        texts = [(prepend + each.text[old[0] : new[0]]).encode() for each, old, new in parts]
        tensors = [pb_utils.Tensor("text_output", np.array(texts, dtype=np.object_))]
        if wanted["finish_reason"]:
            reasons = [each.finish if count >= len(each.tokens) else "None" for each in done]
            tensors.append(pb_utils.Tensor("finish_reason", np.array(reasons, dtype=np.object_)))
        if wanted["cumulative_logprob"]:
            asked = self.alternatives is not None
            sums = [each.cumulative_logprob(count) if asked else np.nan for each in done]
            tensors.append(pb_utils.Tensor("cumulative_logprob", np.array(sums, dtype=np.float32)))
        if wanted["logprobs"]:
            rows = [
                b"null" if self.alternatives is None else _json(each.logprobs(old[1], new[1], self.alternatives))
                for each, old, new in parts
            ]
            tensors.append(pb_utils.Tensor("logprobs", np.array(rows, dtype=np.object_)))
        if self.prompt_logprobs is not None and not before:
            rows = [_json(self.prompt_logprobs())]
            tensors.append(pb_utils.Tensor("prompt_logprobs", np.array(rows, dtype=np.object_)))
        if wanted["num_input_tokens"]:
            # 0-d, as the real backend sends it, whatever the configuration declares.
            tensors.append(pb_utils.Tensor("num_input_tokens", np.array(self.input_tokens, dtype=np.uint32)))
        if wanted["num_output_tokens"]:
            counts = [new[1] - old[1] for _, old, new in parts]
            tensors.append(pb_utils.Tensor("num_output_tokens", np.array(counts, dtype=np.uint32)))
        return tensors


_RETURNED = ("finish_reason", "cumulative_logprob", "logprobs", "num_input_tokens", "num_output_tokens")


def _fail(sender, message: str, code: int | None = None) -> None:
    error = pb_utils.TritonError(message) if code is None else pb_utils.TritonError(message, code)
    sender.send(pb_utils.InferenceResponse(error=error), _FINAL)


def _boolean(inputs: dict, name: str) -> bool | None:
    tensor = inputs.get(name)
    return None if tensor is None else bool(tensor.as_numpy()[0])


def _flag(parameters: dict, name: str) -> bool:
    return parameters.get(name, {}).get("string_value", "").lower() == "true"


def _is_simulated(folder: str) -> bool:
    try:
        return installed.weights(_read_json(os.path.join(folder, "model.json")))[0] is None
    except (OSError, ValueError):
        return False  # which keeps the model from loading, and there it is worded


def _json(value) -> bytes:
    return json.dumps(value).encode()


def _read_json(path: str, missing: str = "{}"):
    try:
        with open(path, encoding="utf-8") as file:
            return json.load(file)
    except FileNotFoundError:
        raise FileNotFoundError(missing.format(path)) from None
