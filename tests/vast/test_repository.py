"""The model repository's check: what it lets through, and what each mistake is answered with."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

from nvidia_triton.vast.errors import TargetError
from nvidia_triton.vast.repository import validate

ROOT = Path(__file__).resolve().parents[2]
MODELS = ROOT / "models"
CONFIG = 'backend: "vllm"\ninstance_group [ { count: 1 kind: KIND_MODEL } ]\n'
ARGUMENTS = {"model": "Qwen/Qwen2.5-7B-Instruct", "max_model_len": 4096}
RELEASES = ("0.9.0", "0.10.2", "0.11.1", "0.15.1", "0.19.0", "0.24.0")


class Repository:
    """A folder `models/` with one good model, `m`, for a test to spoil."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.model("m")

    def write(self, file: str, text: str, name: str = "m") -> None:
        path = self.root / name / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")

    def model(self, name: str, config: str = CONFIG, **arguments: object) -> None:
        self.write("config.pbtxt", config, name)
        self.write("1/model.json", json.dumps(ARGUMENTS | arguments), name)

    def problems(self, names: list[str] | None = None, **options: object) -> list[str]:
        with pytest.raises(TargetError) as caught:
            validate(self.root, names, **options)  # type: ignore[arg-type]
        first, *lines = str(caught.value).splitlines()
        assert str(self.root) not in str(caught.value)
        assert lines, first
        return [line.strip() for line in lines]

    def warnings(self, **options: object) -> tuple[str, ...]:
        [folder] = validate(self.root, ["m"], **options)  # type: ignore[arg-type]
        return folder.warnings


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    return Repository(tmp_path / "models")


@pytest.mark.parametrize("vllm", [None, *RELEASES])
def test_the_models_of_the_project_fit_every_image(vllm: str | None) -> None:
    folders = validate(MODELS, vllm=vllm)
    names = sorted(path.parent.name for path in MODELS.glob("*/config.pbtxt"))
    of_vllm = {path.parents[1].name for path in MODELS.glob("*/1/model.json")}
    assert [(folder.name, folder.path, folder.backend) for folder in folders] == [
        (name, MODELS / name, "vllm" if name in of_vllm else "python") for name in names
    ]
    assert {folder.name: folder.gpus for folder in folders}["qwen2.5-32b-instruct-awq"] == 2
    assert {folder.name: folder.warnings for folder in folders if folder.warnings} == {
        "demo": (
            "models/demo/config.pbtxt: parameters: only the local stand-in reads sim_time_per_token_ms, "
            "sim_time_to_first_token_ms",
        )
    }


def test_the_models_of_the_tests_are_fine_but_for_the_broken_one() -> None:
    with pytest.raises(TargetError) as caught:
        validate(ROOT / "tests" / "models")
    assert str(caught.value).splitlines()[1:] == [
        "  models/broken/1/model.json: no_such_argument: vLLM does not know this key"
    ]


def test_names_choose_and_keep_their_order(repository: Repository) -> None:
    repository.model("second")
    repository.model("bad", config="")
    assert [folder.name for folder in validate(repository.root, ["second", "m", "second"])] == ["second", "m"]


KEYS = {
    "unknown key": ({"no_such": 1}, "no_such: vLLM does not know this key"),
    "misspelt key": (
        {"gpu_memory_utilisation": 0.9},
        "gpu_memory_utilisation: vLLM does not know this key; did you mean gpu_memory_utilization?",
    ),
    "key as on the command line": (
        {"max-model-len": 10},
        "max-model-len: vLLM does not know this key; did you mean max_model_len?",
    ),
    "no memory at all": (
        {"gpu_memory_utilization": 0},
        "gpu_memory_utilization: must be a number above 0 and up to 1, the share of each GPU's memory, and is 0",
    ),
    "percents": (
        {"gpu_memory_utilization": 90},
        "gpu_memory_utilization: must be a number above 0 and up to 1, the share of each GPU's memory, and is 90",
    ),
    "number as text": (
        {"tensor_parallel_size": "2"},
        'tensor_parallel_size: must be a whole number of at least 1, and is "2"',
    ),
    "boolean as number": (
        {"tensor_parallel_size": True},
        "tensor_parallel_size: must be a whole number of at least 1, and is true",
    ),
    "no gpu": ({"pipeline_parallel_size": 0}, "pipeline_parallel_size: must be a whole number of at least 1, and is 0"),
    "fraction": ({"max_num_seqs": 1.5}, "max_num_seqs: must be a whole number of at least 1, and is 1.5"),
    "length as text": (
        {"max_model_len": "8k"},
        'max_model_len: must be a whole number of tokens of at least 1, and is "8k"',
    ),
    "null": (
        {"max_num_seqs": None},
        "max_num_seqs: must be a whole number of at least 1, and is null, leave the key out for the default",
    ),
    "boolean as text": (
        {"enforce_eager": "true"},
        'enforce_eager: must be true or false, without quotes, and is "true"',
    ),
    "object as text": ({"hf_overrides": "{}"}, 'hf_overrides: must be a JSON object, and is "{}"'),
    "rank": (
        {"max_lora_rank": 12},
        "max_lora_rank: must be one of 1, 8, 16, 32, 64, 128, 256, 320, 512, and is 12",
    ),
    "type of numbers": (
        {"dtype": "fp16"},
        'dtype: must be one of auto, half, float16, bfloat16, float, float32, and is "fp16"',
    ),
    "no weights": ({"model": ""}, 'model: must be a text that is not empty, and is ""'),
    "weights beside": (
        {"model": "./weights"},
        "model: './weights' is neither a Hugging Face id (owner/name) nor a path on the server, such as "
        "/opt/models/m/1/weights",
    ),
    "weights not there": (
        {"model": "/opt/models/m/1/weights"},
        "model: /opt/models/m/1/weights would hold no config.json: put the files there first",
    ),
    "secret": (
        {"hf_token": "hf_secret"},
        "hf_token: a secret has no place in this file; set HF_TOKEN in the environment instead",
    ),
}


@pytest.mark.parametrize(("arguments", "problem"), KEYS.values(), ids=KEYS)
def test_an_engine_argument_that_cannot_be(repository: Repository, arguments: dict[str, object], problem: str) -> None:
    repository.model("m", **arguments)
    assert repository.problems() == [f"models/m/1/model.json: {problem}"]


def test_a_key_of_another_release_is_refused_where_the_release_is_known(repository: Repository) -> None:
    repository.model("m", disable_log_requests=True, swap_space=4)
    file = "models/m/1/model.json"
    assert repository.warnings() == (
        f"{file}: disable_log_requests: exists up to vLLM 0.9.0; with another release the model does not load",
        f"{file}: swap_space: exists up to vLLM 0.15.1; with another release the model does not load",
    )
    assert repository.warnings(vllm="0.9.0") == ()
    assert repository.problems(vllm="0.15.1") == [
        f"{file}: disable_log_requests: vLLM 0.15.1 does not know this key, it exists up to vLLM 0.9.0; did you mean "
        "enable_log_requests?"
    ]
    assert [line.split(":")[1] for line in repository.problems(vllm="0.24.0")] == [
        " disable_log_requests",
        " swap_space",
    ]


def test_a_release_newer_than_those_read_gets_the_benefit_of_the_doubt(repository: Repository) -> None:
    repository.model("m", brand_new=1)
    assert repository.problems(vllm="0.24.0")
    assert repository.warnings(vllm="0.30.1") == (
        "models/m/1/model.json: brand_new: no vLLM up to 0.24.0 knows this key",
    )


FILES = {
    "no config.pbtxt": (
        "config.pbtxt",
        None,
        'config.pbtxt: is missing; for a vLLM model begin it with backend: "vllm"',
    ),
    "config.pbtxt is no protobuf": (
        "config.pbtxt",
        'backend: "vllm\n',
        "config.pbtxt: line 1: 'backend: \"vllm': String missing ending quote: '\"vllm'",
    ),
    "unknown key of Triton": (
        "config.pbtxt",
        CONFIG + "instance_groups [ ]\n",
        "config.pbtxt: line 3: instance_groups: Triton does not know this key; did you mean instance_group?",
    ),
    "another name": (
        "config.pbtxt",
        CONFIG + 'name: "other"',
        "config.pbtxt: name: is 'other', and must be 'm' like the folder, or left out",
    ),
    "no backend": (
        "config.pbtxt",
        "max_batch_size: 0",
        'config.pbtxt: backend: is missing; give backend: "vllm" or the one this model needs',
    ),
    "no instance group": (
        "config.pbtxt",
        'backend: "vllm"',
        "config.pbtxt: instance_group: is missing; add instance_group [ { count: 1 kind: KIND_MODEL } ]",
    ),
    "on the CPU": (
        "config.pbtxt",
        CONFIG.replace("KIND_MODEL", "KIND_CPU"),
        "config.pbtxt: instance_group: KIND_CPU is not for vLLM; give instance_group [ { count: 1 kind: KIND_MODEL } ]",
    ),
    "no model.json": ("1/model.json", None, "1/model.json: is missing"),
    "model.json is no JSON": (
        "1/model.json",
        '{"model": gpt2}',
        "1/model.json: is not JSON: Expecting value, line 1 column 11",
    ),
    "model.json is a list": ("1/model.json", "[]", "1/model.json: must be a JSON object, {...}"),
    "a key twice": ("1/model.json", '{"model": "a", "model": "b"}', "1/model.json: model: is there twice"),
    "no model": (
        "1/model.json",
        "{}",
        '1/model.json: model: is missing; name the weights, e.g. "model": "Qwen/Qwen2.5-7B-Instruct"',
    ),
}


@pytest.mark.parametrize(("file", "text", "problem"), FILES.values(), ids=FILES)
def test_a_file_that_cannot_be(repository: Repository, file: str, text: str | None, problem: str) -> None:
    if text is None:
        (repository.root / "m" / file).unlink()
    else:
        repository.write(file, text)
    assert repository.problems() == [f"models/m/{problem}"]


def test_files_that_are_not_utf8(repository: Repository) -> None:
    (repository.root / "m/config.pbtxt").write_bytes(b'backend: "\xff"')
    assert repository.problems() == ["models/m/config.pbtxt: is not UTF-8"]
    repository.model("m")
    (repository.root / "m/1/model.json").write_bytes(b'{"model": "\xff"}')
    assert repository.problems() == ["models/m/1/model.json: is not UTF-8"]


def test_a_model_without_a_version(repository: Repository) -> None:
    (repository.root / "m/1").rename(repository.root / "m/v1")
    assert repository.problems() == [
        "models/m/1/model.json: is missing; the files of a model lie in a folder named after its version"
    ]


def test_every_version_is_checked(repository: Repository) -> None:
    repository.write("2/model.json", '{"model": "gpt2", "tensor_parallel_size": 2}')
    repository.write("3/model.json", "{}")
    [problem] = repository.problems()
    assert problem.startswith("models/m/3/model.json: model: is missing")


@pytest.mark.parametrize("name", ["my model", "-m", "m?", "münchen", "m" * 101, "a%2fb"])
def test_a_name_that_is_none(repository: Repository, name: str) -> None:
    repository.model(name)
    [problem] = repository.problems([name])
    assert problem.startswith(f"models/{name}/: the folder's name is the model's name in URLs: use letters, digits")


def test_a_model_that_is_not_there(repository: Repository) -> None:
    repository.model("qwen2.5-7b-instruct")
    assert repository.problems(["qwen2.5-7b", "../m"]) == [
        "models/qwen2.5-7b: there is no such folder; did you mean qwen2.5-7b-instruct?",
        "models/../m: there is no such folder; there are m, qwen2.5-7b-instruct",
    ]
    assert repository.problems(["zzz"]) == ["models/zzz: there is no such folder; there are m, qwen2.5-7b-instruct"]


def test_no_repository_and_an_empty_one(tmp_path: Path) -> None:
    with pytest.raises(TargetError, match="There is no model repository models/"):
        validate(tmp_path / "models")
    (tmp_path / "models/.cache").mkdir(parents=True)
    with pytest.raises(TargetError, match="The model repository models/ is empty"):
        validate(tmp_path / "models")
    (tmp_path / "models/m").mkdir()
    with pytest.raises(TargetError, match="No model is named: choose from m"):
        validate(tmp_path / "models", [])


def link(name: str, target: str) -> Callable[[Repository], None]:
    def make(repository: Repository) -> None:
        (repository.root.parent / "outside").mkdir()
        (repository.root / "m" / name).symlink_to(target)

    return make


@pytest.mark.parametrize(
    ("spoil", "problem"),
    [
        (
            link("1/weights", "../../../outside"),
            "1/weights: is a link out of the model's folder; put the file itself there",
        ),
        (link("1/passwd", "/etc/passwd"), "1/passwd: is a link out of the model's folder; put the file itself there"),
        (link("1/weights", "nothing"), "1/weights: is a link to nothing"),
        (link("1/weights", "weights"), "1/weights: is a link to nothing"),
        (
            lambda repository: os.mkfifo(repository.root / "m/1/pipe"),
            "1/pipe: is neither a file nor a folder; remove it",
        ),
        (
            lambda repository: repository.write(".git/HEAD", "ref: refs/heads/main"),
            ".git: is a Git repository of its own, which would be sent along; remove it",
        ),
        (
            lambda repository: repository.write("1/adapter/.git", "gitdir: ../x"),
            "1/adapter/.git: is a Git repository of its own, which would be sent along; remove it",
        ),
    ],
)
def test_what_must_not_be_sent(repository: Repository, spoil: Callable[[Repository], None], problem: str) -> None:
    spoil(repository)
    assert repository.problems() == [f"models/m/{problem}"]


@pytest.mark.parametrize(("name", "mode"), [("m/1/weights.bin", 0o000), ("m/1", 0o600)])
def test_what_cannot_be_read_is_said_before_anything_is_rented(name: str, mode: int) -> None:
    with tempfile.TemporaryDirectory() as directory:
        Path(directory).chmod(0o755)
        repository = Repository(Path(directory) / "models")
        repository.write("1/weights.bin", "weights")
        (repository.root / name).chmod(mode)
        own = os.geteuid()
        # Root may read everything, so somebody else looks.
        os.seteuid(own or 65534)
        try:
            problems = repository.problems()
        finally:
            os.seteuid(own)
            (repository.root / name).chmod(0o700)
    assert f"models/{name}: cannot be read: permission denied" in problems


def test_links_within_a_model_are_fine_and_a_linked_model_is_not(repository: Repository) -> None:
    (repository.root / "m/2").symlink_to("1")
    assert repository.warnings() == ()
    shutil.move(repository.root / "m", repository.root.parent / "elsewhere")
    (repository.root / "m").symlink_to(repository.root.parent / "elsewhere")
    assert repository.problems() == ["models/m/: is a link out of the repository; copy the folder instead"]


def test_more_gpus_than_the_server_has(repository: Repository) -> None:
    repository.model("m", tensor_parallel_size=2, pipeline_parallel_size=2)
    assert [folder.gpus for folder in validate(repository.root, num_gpus=4)] == [4]
    assert repository.problems(num_gpus=2) == [
        "models/m/1/model.json: tensor_parallel_size: the model takes 4 GPUs and the server has 2; rent more (num_gpus "
        "in the instance definition) or lower it"
    ]


def test_several_gpus_need_kind_model(repository: Repository) -> None:
    repository.model("m", CONFIG.replace("KIND_MODEL", "KIND_GPU"))
    assert repository.warnings() == ()
    repository.model("m", CONFIG.replace("KIND_MODEL", "KIND_GPU"), tensor_parallel_size=2)
    assert repository.problems() == [
        "models/m/config.pbtxt: instance_group: a model over 2 GPUs needs "
        "instance_group [ { count: 1 kind: KIND_MODEL } ]"
    ]


def test_models_that_do_not_fit_together_are_warned_about(repository: Repository) -> None:
    repository.model("n", gpu_memory_utilization=0.5)
    assert [folder.warnings for folder in validate(repository.root)] == [(), ()]
    assert [folder.warnings for folder in validate(repository.root, num_gpus=2)] == [(), ()]
    assert [folder.warnings for folder in validate(repository.root, num_gpus=1)] == [
        (),
        (
            "models/n/1/model.json: gpu_memory_utilization: the models together ask for 1.4 times the memory of one "
            "GPU and there are 1; lower the shares, or deploy fewer at a time",
        ),
    ]


LORA = {
    "no file": (None, "1/multi_lora.json: is missing"),
    "no adapter": ({}, '1/multi_lora.json: names no adapter; give each as "name": "owner/name on Hugging Face"'),
    "no path": ({"a": 1}, "1/multi_lora.json: a: must be a Hugging Face id or a path, and is 1"),
    "relative": (
        {"a": "./a"},
        "1/multi_lora.json: a: './a' is neither a Hugging Face id (owner/name) nor a path on the server, such as "
        "/opt/models/m/1/weights",
    ),
    "not there": (
        {"a": "/opt/models/m/1/b"},
        "1/multi_lora.json: a: /opt/models/m/1/b would hold no adapter_config.json: put the files there first",
    ),
    "rank": (
        {"a": "/opt/models/m/1/a"},
        "1/model.json: max_lora_rank: the adapter a has rank 32, more than 16",
    ),
}


@pytest.mark.parametrize(("adapters", "problem"), LORA.values(), ids=LORA)
def test_adapters_that_cannot_be(repository: Repository, adapters: object, problem: str) -> None:
    repository.model("m", enable_lora=True)
    repository.write("1/a/adapter_config.json", '{"r": 32}')
    if adapters is not None:
        repository.write("1/multi_lora.json", json.dumps(adapters))
    assert repository.problems() == [f"models/m/{problem}"]


def test_adapters_that_can_be(repository: Repository) -> None:
    repository.write("1/multi_lora.json", '{"a": "/opt/models/m/1/a", "b": "owner/name", "c": "/weights/c"}')
    repository.write("1/a/adapter_config.json", '{"r": 32}')
    assert repository.warnings() == (
        'models/m/1/multi_lora.json: is not read without "enable_lora": true in model.json',
    )
    repository.model("m", enable_lora=True, max_lora_rank=32)
    assert repository.warnings() == (
        "models/m/1/multi_lora.json: c: /weights/c must exist on the server; only models/ is sent there",
    )


def test_what_may_go_wrong_is_warned_about(repository: Repository) -> None:
    repository.model("m", CONFIG.replace("count: 1", "count: 2"))
    repository.write("1/model.json", '{"model": "/weights/größe"}')
    assert repository.warnings() == (
        "models/m/1/model.json: the backend may read it as ASCII; write other characters as \\uXXXX",
        "models/m/1/model.json: model: /weights/größe must exist on the server; only models/ is sent there",
        "models/m/config.pbtxt: instance_group: count 2 loads the weights 2 times",
    )


def test_a_model_of_another_backend_needs_only_its_files(repository: Repository) -> None:
    repository.write("config.pbtxt", 'platform: "onnxruntime_onnx"', "vision")
    assert repository.problems(["vision"]) == [
        "models/vision/1/: is missing; the files of a model lie in a folder named after its version"
    ]
    repository.write("1/model.onnx", "", "vision")
    [folder] = validate(repository.root, ["vision"], num_gpus=1, vllm="0.15.1")
    assert (folder.backend, folder.gpus, folder.warnings) == ("onnxruntime_onnx", 1, ())


def test_all_problems_of_all_models_come_at_once(repository: Repository) -> None:
    repository.model("m", no_such=1, dtype="fp16")
    repository.model("n", config="max_batch_size: 0")
    with pytest.raises(TargetError) as caught:
        validate(repository.root, ["m", "n", "o"])
    lines = str(caught.value).splitlines()
    assert lines[0] == "The model repository has 4 problems; nothing was sent:"
    assert [line.split(":")[0].strip() for line in lines[1:]] == [
        "models/m/1/model.json", "models/m/1/model.json", "models/n/config.pbtxt", "models/o"
    ]  # fmt: skip


def test_the_command_checks_and_says_so() -> None:
    def check(*names: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "nvidia_triton.vast.repository", *names]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)

    fine = check("qwen2.5-7b-instruct")
    assert (fine.returncode, fine.stdout, fine.stderr) == (0, "qwen2.5-7b-instruct: no mistakes\n", "")
    wrong = check("nope")
    assert (wrong.returncode, wrong.stdout) == (1, "")
    assert "models/nope: there is no such folder" in wrong.stderr
