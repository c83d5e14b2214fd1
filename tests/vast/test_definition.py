"""The instance definition: the one that is shipped, and what is said about wrong ones."""

import subprocess
from pathlib import Path

import pytest
import yaml

from nvidia_triton.vast.definition import InstanceDefinition, load_definition
from nvidia_triton.vast.errors import TargetError
from tests.vast.targets import ROOT

SHIPPED = ROOT / "nvidia_triton" / "vastai_instance_definition.yaml"


def test_the_shipped_definition_fits_one_24_gb_card() -> None:
    definition = load_definition(SHIPPED)
    assert (definition.query.num_gpus, definition.query.gpu_ram) == (1, 24)
    assert (definition.image.cuda, definition.image.driver) == ("13.0", "580.95")
    assert all((ROOT / "models" / name / "config.pbtxt").is_file() for name in definition.models)


def test_the_shipped_definition_names_every_key() -> None:
    """A user finds what can be changed; what is left out takes its default."""
    given = yaml.safe_load(SHIPPED.read_text())
    assert set(given) == set(InstanceDefinition.model_fields)
    for part in ("query", "triton", "needs", "deadline_minutes"):
        annotation = InstanceDefinition.model_fields[part].annotation
        assert annotation is not None
        assert set(given[part]) == set(annotation.model_fields), part


def test_triton_listens_on_loopback_alone_and_takes_models_only_when_told() -> None:
    arguments = load_definition(SHIPPED).triton.arguments()
    assert {each for each in arguments if "-address=" in each} == {
        f"--{name}-address=127.0.0.1" for name in ("http", "grpc", "metrics")
    }
    assert "--model-control-mode=explicit" in arguments


def test_onstart_is_a_script_that_keeps_the_environment_to_itself(tmp_path: Path) -> None:
    script = load_definition(SHIPPED).onstart
    changed = script.replace("/opt/", f"{tmp_path}/opt/").replace("~", str(tmp_path))
    done = subprocess.run(
        ["bash", "-eu"], input=changed, env={"PATH": "/usr/bin:/bin", "HF_TOKEN": "t"}, text=True, check=False
    )
    assert done.returncode == 0
    saved = tmp_path / "opt/triton/triton.env"
    assert 'HF_TOKEN="t"' in saved.read_text()
    assert saved.stat().st_mode & 0o777 == 0o600
    assert (tmp_path / ".no_auto_tmux").exists()


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("query", {"gpu_rams": 24}, "query.gpu_rams: there is no such key; check its spelling"),
        ("query", {"gpu_ram": "much"}, "query.gpu_ram: input should be a valid number"),
        ("query", {"reliability": 98}, "query.reliability: input should be less than or equal to 1"),
        ("query", {"countries": ["Sweden"]}, "query.countries.0: string should match"),
        ("image", {"tag": "24.01-vllm-python-py3"}, "image: what 24.01-vllm-python-py3 asks of the host is not known"),
        ("image", {"tag": "30.01-x", "cuda": 14.0, "driver": "700.1"}, "image.cuda: write it in quotes"),
        ("env", {"HF_TOKEN": "hf_secret"}, "env: HF_TOKEN is a secret and this file is tracked by git"),
        ("env", {"A B": "x"}, "env.A B: string should match"),
        ("env", {"LONG": "x" * 256}, "env: LONG is longer than 255 characters"),
        ("onstart", "#" * 4000, "onstart: has 4000 characters, and Vast.ai takes fewer than 4000"),
        ("triton", {"flags": ["--http-address=0.0.0.0"]}, "triton.flags: --http-address is set by the targets"),
        ("triton", {"flags": ["log-verbose=1"]}, "triton.flags: 'log-verbose=1' does not start with --"),
        ("triton", {"ports": {"http": 8001}}, "triton.ports: three different ports are needed"),
        ("models", [], "models: must hold at least one"),
        ("max_price", 0, "max_price: input should be greater than 0"),
        ("max_price", float("inf"), "max_price: must be a number"),
        ("max_price", 1000, "max_price: input should be less than 1000"),
        ("disk", 1e9, "disk: input should be less than or equal to 100000"),
        ("query", {"gpu_ram": float("inf")}, "query.gpu_ram: must be a number"),
        ("query", {"num_gpus": 1000}, "query.num_gpus: input should be less than or equal to 64"),
        ("query", {"gpu_names": "RTX 4090"}, "query.gpu_names: must be a list, such as [a, b]"),
        ("query", {"gpu_names": ["a] dph_total>=0 x in [b"]}, "query.gpu_names.0: string should match"),
        ("image", {"repository": "$(id)"}, "image.repository: string should match"),
        ("image", None, "image: must hold keys with their values"),
        ("env", {"A": 1}, "env.A: must be text: put it in quotes"),
        ("env", {"A": "x\0y"}, "env: A holds a character that no variable can hold"),
        ("env", {"HUGGING_FACE_HUB_TOKEN": "hf_secret"}, "env: HUGGING_FACE_HUB_TOKEN is a secret"),
        ("env", {"Wandb_Api_Key": "hf_secret"}, "env: Wandb_Api_Key is a secret"),
        ("triton", {"flags": ["--allow-http=false"]}, "triton.flags: --allow-http is set by the targets"),
        ("triton", {"flags": ["--allow-vertex-ai=true"]}, "triton.flags: --allow-vertex-ai is set by the targets"),
        ("models", "demo", "models: must be a list, such as [a, b]"),
        ("deadline_minutes", {"load": float("inf")}, "deadline_minutes.load: must be a number"),
        ("deadline_minutes", {"load": -1}, "deadline_minutes.load: input should be greater than 0"),
    ],
)
def test_a_wrong_key_is_named(tmp_path: Path, key: str, value: object, said: str) -> None:
    file = tmp_path / "definition.yaml"
    file.write_text(yaml.safe_dump({**yaml.safe_load(SHIPPED.read_text()), key: value}))
    with pytest.raises(TargetError) as raised:
        load_definition(file)
    assert said in str(raised.value)
    assert "hf_secret" not in str(raised.value)


def test_an_image_of_ones_own_says_what_it_asks_of_the_host(tmp_path: Path) -> None:
    file = tmp_path / "definition.yaml"
    image = {"repository": "ghcr.io/me/triton", "tag": "mine", "cuda": "12.8", "driver": "570.26"}
    file.write_text(yaml.safe_dump({**yaml.safe_load(SHIPPED.read_text()), "image": image}))
    assert load_definition(file).image.name == "ghcr.io/me/triton:mine"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("query: [1, 2\nmodels: x", "definition.yaml is not YAML: line 2"),
        ("- just\n- a list\n", "the file: must hold keys with their values"),
        ("[]", "the file: must hold keys with their values"),
        ("", "onstart: is missing"),
        ("max_price: 0.5\ndisk: 80\nmax_price: 50\n", "line 3: max_price is there twice"),
        ("query:\n  gpu_ram: 24\n  gpu_ram: 8\n", "line 3: gpu_ram is there twice"),
        (b"max_price: \xff\n", "definition.yaml is not UTF-8"),
    ],
)
def test_a_file_that_is_no_definition(tmp_path: Path, text: str | bytes, said: str) -> None:
    file = tmp_path / "definition.yaml"
    file.write_bytes(text.encode() if isinstance(text, str) else text)
    with pytest.raises(TargetError) as raised:
        load_definition(file)
    assert said in str(raised.value)


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(TargetError, match=r"definition absent\.yaml cannot be read: No such file"):
        load_definition(tmp_path / "absent.yaml")
