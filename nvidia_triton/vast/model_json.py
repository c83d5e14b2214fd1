"""`1/model.json` and `1/multi_lora.json` of a vLLM model, checked as far as that goes without a GPU."""

import json
import math
import re
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any

from nvidia_triton.engine_arguments import CHECKED, LIFETIMES, is_known, lifetime_of, nearest

# Where the model repository lies on the server.
SERVED_AT = PurePosixPath("/opt/models")
LORA_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
DEFAULT_LORA_RANK = 16
DTYPES = ("auto", "half", "float16", "bfloat16", "float", "float32")
HUGGING_FACE_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")

Report = Callable[[str], None]
Rule = tuple[Callable[[Any], bool], str]


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return _is_int(value) or isinstance(value, float)


POSITIVE: Rule = (lambda value: _is_int(value) and value > 0, "a whole number of at least 1")
INTEGER: Rule = (_is_int, "a whole number")
AMOUNT: Rule = (lambda value: _is_number(value) and value >= 0, "a number of at least 0")
BOOLEAN: Rule = (lambda value: isinstance(value, bool), "true or false, without quotes")
TEXT: Rule = (lambda value: isinstance(value, str) and value != "", "a text that is not empty")
OBJECT: Rule = (lambda value: isinstance(value, dict), "a JSON object")

_KEYS_OF_RULES: tuple[tuple[Rule, str], ...] = (
    (
        POSITIVE,
        "tensor_parallel_size pipeline_parallel_size data_parallel_size max_num_seqs max_num_batched_tokens "
        "max_loras max_cpu_loras block_size",
    ),
    (INTEGER, "seed max_logprobs"),
    (AMOUNT, "cpu_offload_gb swap_space"),
    (
        BOOLEAN,
        "enable_lora enforce_eager trust_remote_code enable_prefix_caching enable_chunked_prefill "
        "enable_expert_parallel enable_sleep_mode enable_log_requests disable_log_requests disable_log_stats "
        "disable_custom_all_reduce disable_sliding_window fully_sharded_loras skip_tokenizer_init async_scheduling",
    ),
    (
        TEXT,
        "model tokenizer revision code_revision tokenizer_revision tokenizer_mode quantization kv_cache_dtype "
        "load_format download_dir runner convert reasoning_parser",
    ),
    (OBJECT, "hf_overrides override_generation_config limit_mm_per_prompt mm_processor_kwargs speculative_config"),
)
RULES: dict[str, Rule] = {key: rule for rule, keys in _KEYS_OF_RULES for key in keys.split()} | {
    "gpu_memory_utilization": (
        lambda value: _is_number(value) and 0 < value <= 1,
        "a number above 0 and up to 1, the share of each GPU's memory",
    ),
    "max_model_len": (
        lambda value: _is_int(value) and (value > 0 or value == -1),
        "a whole number of tokens of at least 1",
    ),
    "max_lora_rank": (lambda value: value in LORA_RANKS, f"one of {', '.join(map(str, LORA_RANKS))}"),
    "dtype": (lambda value: value in DTYPES, f"one of {', '.join(DTYPES)}"),
}


class ModelJson:
    """The files of one version folder; what is wrong goes to `problem`, what may be wrong to `warn`.

    `downloaded` are paths in that folder which the server fetches from a hub.
    """

    def __init__(
        self, version: Path, name: str, problem: Report, warn: Report, downloaded: frozenset[str] = frozenset()
    ) -> None:
        self._version = version
        self._served_at = SERVED_AT / name / version.name
        self._report = problem
        self._warn = warn
        self._downloaded = downloaded
        self.arguments: dict[str, Any] = {}

    @property
    def gpus(self) -> int:
        """How many GPUs one instance of the model takes."""
        sizes = [self.arguments.get(key) for key in ("tensor_parallel_size", "pipeline_parallel_size")]
        return math.prod(int(size) for size in sizes if size is not None and POSITIVE[0](size))

    @property
    def memory_share(self) -> float:
        share = self.arguments.get("gpu_memory_utilization", 0.9)
        return float(share) if RULES["gpu_memory_utilization"][0](share) else 0.0

    def check(self, vllm: str | None) -> None:
        """Checks everything; `vllm` is the release that will read it, None if unknown."""
        arguments = self._read("model.json")
        if arguments is None:
            return
        self.arguments = arguments
        if "model" not in arguments:
            self._problem('model: is missing; name the weights, e.g. "model": "Qwen/Qwen2.5-7B-Instruct"')
        for key, value in arguments.items():
            self._check_key(key, vllm)
            self._check_value(key, value)
        if TEXT[0](arguments.get("model")):
            self._check_weights("model.json: model", arguments["model"], "config.json")
            weights = str(self._served_at / "weights")
            if self._downloaded and arguments["model"] != weights:
                self._warn(
                    f"{self._version.name}/model.json: model: is not {weights}, so the files of source.json are unused"
                )
        self._check_adapters()

    def _problem(self, text: str, file: str = "model.json") -> None:
        self._report(f"{self._version.name}/{file}: {text}")

    def _read(self, file: str) -> dict[str, Any] | None:
        try:
            text = (self._version / file).read_text(encoding="utf-8")
            content = json.loads(text, object_pairs_hook=_refuse_duplicates)
        except FileNotFoundError:
            self._problem("is missing", file)
        except UnicodeDecodeError:
            self._problem("is not UTF-8", file)
        except OSError as error:
            self._problem(f"cannot be read: {error.strerror}", file)
        except json.JSONDecodeError as error:
            self._problem(f"is not JSON: {error.msg}, line {error.lineno} column {error.colno}", file)
        except ValueError as error:
            self._problem(str(error), file)
        else:
            if not isinstance(content, dict):
                self._problem("must be a JSON object, {...}", file)
                return None
            if not text.isascii():
                self._warn(
                    f"{self._version.name}/{file}: the backend may read it as ASCII; write other characters as \\uXXXX"
                )
            return content
        return None

    def _check_key(self, key: str, vllm: str | None) -> None:
        known = is_known(key, vllm) if vllm else (None if key in LIFETIMES else False)
        if known is False:
            meant = nearest(key, vllm)
            reason = f"vLLM {vllm} does not know this key" if vllm else "vLLM does not know this key"
            if key in LIFETIMES:
                reason += f", it exists {lifetime_of(key)}"
            self._problem(f"{key}: {reason}" + (f"; did you mean {meant}?" if meant else ""))
        elif known is None and key not in LIFETIMES:
            self._warn(f"{self._version.name}/model.json: {key}: no vLLM up to {CHECKED[-1]} knows this key")
        elif known is None and LIFETIMES[key] != (CHECKED[0], CHECKED[-1]):
            self._warn(
                f"{self._version.name}/model.json: {key}: exists {lifetime_of(key)}; with another release the model "
                "does not load"
            )

    def _check_value(self, key: str, value: Any) -> None:
        if key == "hf_token" and isinstance(value, str):
            self._problem("hf_token: a secret has no place in this file; set HF_TOKEN in the environment instead")
        elif key in RULES and not RULES[key][0](value):
            given = "null, leave the key out for the default" if value is None else json.dumps(value)
            self._problem(f"{key}: must be {RULES[key][1]}, and is {given}")

    def _check_weights(self, where: str, value: str, proof: str) -> Path | None:
        """A Hugging Face id or a path on the server; returns the folder if it is part of this version."""
        path = PurePosixPath(value)
        if not path.is_absolute():
            if not HUGGING_FACE_ID.fullmatch(value) or value.startswith("."):
                self._report(
                    f"{self._version.name}/{where}: {value!r} is neither a Hugging Face id (owner/name) nor a path on "
                    f"the server, such as {self._served_at}/weights"
                )
            return None
        if not path.is_relative_to(self._served_at):
            self._warn(f"{self._version.name}/{where}: {value} must exist on the server; only models/ is sent there")
            return None
        folder = self._version / path.relative_to(self._served_at)
        relative = path.relative_to(self._served_at).as_posix()
        if f"{relative}/{proof}" in self._downloaded:
            return None
        if not (folder / proof).is_file():
            self._report(f"{self._version.name}/{where}: {value} would hold no {proof}: put the files there first")
            return None
        return folder

    def _check_adapters(self) -> None:
        file = "multi_lora.json"
        if self.arguments.get("enable_lora") is not True:
            if (self._version / file).exists():
                self._warn(f'{self._version.name}/{file}: is not read without "enable_lora": true in model.json')
            return
        adapters = self._read(file)
        if adapters is None:
            return
        if not adapters:
            self._problem('names no adapter; give each as "name": "owner/name on Hugging Face"', file)
        for name, weights in adapters.items():
            if not TEXT[0](weights):
                self._problem(f"{name}: must be a Hugging Face id or a path, and is {json.dumps(weights)}", file)
            elif folder := self._check_weights(f"{file}: {name}", weights, "adapter_config.json"):
                self._check_rank(name, folder)

    def _check_rank(self, name: str, folder: Path) -> None:
        try:
            rank = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))["r"]
        except (OSError, ValueError, KeyError, TypeError):
            return
        limit = self.arguments.get("max_lora_rank", DEFAULT_LORA_RANK)
        if _is_int(rank) and _is_int(limit) and rank > limit:
            self._problem(f"max_lora_rank: the adapter {name} has rank {rank}, more than {limit}")


def _refuse_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"{key}: is there twice")
        found[key] = value
    return found
