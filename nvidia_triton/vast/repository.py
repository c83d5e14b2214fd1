"""The model repository, checked before anything is sent to a server that costs money.

`python -m nvidia_triton.vast.repository [NAME ...]` checks models/ and sends nothing.
"""

import difflib
import os
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from google.protobuf import text_format  # type: ignore[import-untyped]
from tritonclient.grpc import model_config_pb2

from nvidia_triton.hub import source
from nvidia_triton.hub.source import Source
from nvidia_triton.vast.errors import TargetError
from nvidia_triton.vast.model_json import ModelJson
from nvidia_triton.vast.settings import ROOT

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
VERSION = re.compile(r"[1-9][0-9]*")
VLLM = "vllm"


@dataclass(frozen=True)
class ModelFolder:
    """A model that may be sent. `gpus` is what one instance takes; `warnings` are sentences for the user.

    With a `source`, the files in `source.WEIGHTS` are those of a hub: a server downloads them, and they are not sent.
    """

    name: str
    path: Path
    backend: str
    gpus: int
    warnings: tuple[str, ...]
    source: Source | None


def sent(folder: Path) -> list[Path]:
    """What of a model's folder is sent, in the order of the paths: all but what a server downloads itself."""
    weights = folder / source.WEIGHTS if (folder / source.NAME).is_file() else None
    return [
        path
        for path in sorted(folder.rglob("*"))
        if "__pycache__" not in path.relative_to(folder).parts and weights not in (path, *path.parents)
    ]


def validate(
    root: Path, names: Sequence[str] | None = None, *, num_gpus: int | None = None, vllm: str | None = None
) -> list[ModelFolder]:
    """Checks the models `names`, or all of them, without reaching any server.

    With `num_gpus`, what the server has, a model that takes more is refused; with `vllm`, the release in the server's
    image (`engine_arguments.vllm_of_image`), keys of other releases are refused instead of warned about.

    Raises:
        TargetError: all problems of all models, each with its file and key.
    """
    if not root.is_dir():
        raise TargetError(f"There is no model repository {root.name}/: make it, a folder for each model.")
    if not os.access(root, os.R_OK | os.X_OK, effective_ids=True):
        raise TargetError(f"The model repository {root.name}/ cannot be read: permission denied.")
    there = sorted(path.name for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
    if not there:
        raise TargetError(f"The model repository {root.name}/ is empty: add a folder for each model.")
    chosen = list(dict.fromkeys(there if names is None else names))
    if not chosen:
        raise TargetError(f"No model is named: choose from {', '.join(there)}.")
    checks = [_Check(root, name) for name in chosen]
    for check in checks:
        check.run(there, num_gpus, vllm)
    problems = [problem for check in checks for problem in check.problems]
    if problems:
        count = "a problem" if len(problems) == 1 else f"{len(problems)} problems"
        lines = "".join(f"\n  {problem}" for problem in problems)
        raise TargetError(f"The model repository has {count}; nothing was sent:{lines}")
    if num_gpus is not None:
        _warn_of_memory(checks, num_gpus)
    return [check.folder() for check in checks]


class _Check:
    """One model folder and what was found in it."""

    def __init__(self, root: Path, name: str) -> None:
        self.name = name
        self.path = root / name
        self.problems: list[str] = []
        self.warnings: list[str] = []
        self.backend = ""
        self.gpus = 1
        self.memory_share = 0.0
        self.source: Source | None = None
        self._label = f"{root.name}/{name}"

    def run(self, there: Sequence[str], num_gpus: int | None, vllm: str | None) -> None:
        if self.name not in there:
            meant = difflib.get_close_matches(self.name, there, 1, 0.5)
            hint = f"did you mean {meant[0]}?" if meant else f"there are {', '.join(there)}"
            self.problems.append(f"{self._label}: there is no such folder; {hint}")
            return
        if not NAME.fullmatch(self.name):
            self._problem(
                "",
                "the folder's name is the model's name in URLs: use letters, digits, dot, dash and underscore only, at "
                "most 100, and begin with a letter or digit",
            )
        self._check_tree()
        self._check_source()
        if config := self._config():
            self._check_config(config, num_gpus, vllm)

    def folder(self) -> ModelFolder:
        return ModelFolder(self.name, self.path, self.backend, self.gpus, tuple(self.warnings), self.source)

    def warn(self, text: str) -> None:
        self.warnings.append(f"{self._label}/{text}")

    def _problem(self, file: str, text: str) -> None:
        self.problems.append(f"{self._label}/{file}: {text}")

    def _check_tree(self) -> None:
        home = self.path.resolve()
        if home.parent != self.path.parent.resolve():
            self._problem("", "is a link out of the repository; copy the folder instead")
            return
        for folder, folders, files in os.walk(self.path):
            place = Path(folder)
            for name in (*folders, *files):
                path = place / name
                relative = path.relative_to(self.path).as_posix()
                if name == ".git":
                    self._problem(relative, "is a Git repository of its own, which would be sent along; remove it")
                elif problem := _problem_of(path, home):
                    self._problem(relative, problem)
            folders[:] = [name for name in folders if name != ".git"]

    def _check_source(self) -> None:
        try:
            self.source = source.read(self.path)
        except source.SourceProblem as error:
            for problem in error.problems:
                self._problem(source.NAME, problem)

    def _config(self) -> model_config_pb2.ModelConfig | None:
        config = model_config_pb2.ModelConfig()
        try:
            text_format.Parse((self.path / "config.pbtxt").read_text(encoding="utf-8"), config)
        except FileNotFoundError:
            self._problem("config.pbtxt", 'is missing; for a vLLM model begin it with backend: "vllm"')
        except UnicodeDecodeError:
            self._problem("config.pbtxt", "is not UTF-8")
        except OSError as error:
            self._problem("config.pbtxt", f"cannot be read: {error.strerror}")
        except text_format.ParseError as error:
            self._problem("config.pbtxt", _parse_error(error))
        else:
            return config
        return None

    def _check_config(self, config: model_config_pb2.ModelConfig, num_gpus: int | None, vllm: str | None) -> None:
        file = "config.pbtxt"
        self.backend = config.backend or config.platform
        if not self.backend:
            self._problem(file, 'backend: is missing; give backend: "vllm" or the one this model needs')
        if config.name and config.name != self.name:
            self._problem(file, f"name: is {config.name!r}, and must be {self.name!r} like the folder, or left out")
        if simulated := sorted(key for key in config.parameters if key.startswith("sim_")):
            self.warn(f"{file}: parameters: only the local stand-in reads {', '.join(simulated)}")
        versions = sorted(path for path in self.path.iterdir() if VERSION.fullmatch(path.name) and path.is_dir())
        if not versions:
            needed = "1/model.json" if self.backend == VLLM else "1/"
            self._problem(needed, "is missing; the files of a model lie in a folder named after its version")
        if self.backend != VLLM:
            return
        for version in versions:
            downloaded = self.source.paths(version.name) if self.source else frozenset()
            model = ModelJson(
                version,
                self.name,
                lambda text: self.problems.append(f"{self._label}/{text}"),
                self.warn,
                downloaded,
            )
            model.check(vllm)
            self.gpus, self.memory_share = max(self.gpus, model.gpus), model.memory_share
            if num_gpus is not None and model.gpus > num_gpus:
                self._problem(
                    f"{version.name}/model.json",
                    f"tensor_parallel_size: the model takes {model.gpus} GPUs and the server has {num_gpus}; rent more "
                    "(num_gpus in the instance definition) or lower it",
                )
        self._check_instances(config)

    def _check_instances(self, config: model_config_pb2.ModelConfig) -> None:
        file = "config.pbtxt"
        group = model_config_pb2.ModelInstanceGroup
        wanted = "instance_group [ { count: 1 kind: KIND_MODEL } ]"
        if not config.instance_group:
            self._problem(file, f"instance_group: is missing; add {wanted}")
        for each in config.instance_group:
            kind = group.Kind.Name(each.kind)
            if kind == "KIND_CPU":
                self._problem(file, f"instance_group: KIND_CPU is not for vLLM; give {wanted}")
            elif self.gpus > 1 and kind != "KIND_MODEL":
                self._problem(file, f"instance_group: a model over {self.gpus} GPUs needs {wanted}")
            if each.count > 1:
                self.warn(f"{file}: instance_group: count {each.count} loads the weights {each.count} times")


def _problem_of(path: Path, home: Path) -> str | None:
    """What keeps one file or folder below `home` from being sent."""
    if path.is_symlink():
        target = Path(os.path.realpath(path))
        if not target.is_relative_to(home):
            return "is a link out of the model's folder; put the file itself there"
        # One that leads round in a circle is its own target.
        return None if target.exists() and not target.is_symlink() else "is a link to nothing"
    if path.is_dir():
        return None if os.access(path, os.R_OK | os.X_OK, effective_ids=True) else "cannot be read: permission denied"
    if not path.is_file():
        return "is neither a file nor a folder; remove it"
    return None if os.access(path, os.R_OK, effective_ids=True) else "cannot be read: permission denied"


def _parse_error(error: text_format.ParseError) -> str:
    text = re.sub(r"^\d+:\d+ : ", "", str(error)).replace("inference.", "")
    unknown = re.search(r'Message type "(\w+)" has no field named "(\w+)"', text)
    if unknown:
        fields = list(getattr(model_config_pb2, unknown[1]).DESCRIPTOR.fields_by_name)
        meant = difflib.get_close_matches(unknown[2], fields, 1)
        text = f"{unknown[2]}: Triton does not know this key" + (f"; did you mean {meant[0]}?" if meant else "")
    return f"line {error.GetLine()}: {text}" if error.GetLine() else text


def _warn_of_memory(checks: list[_Check], num_gpus: int) -> None:
    """Every engine takes its share of the memory of the GPUs it runs on, whatever the others have left."""
    together = sum(check.memory_share * check.gpus for check in checks)
    if len(checks) > 1 and together > num_gpus:
        checks[-1].warn(
            f"1/model.json: gpu_memory_utilization: the models together ask for {together:g} times the memory of one "
            f"GPU and there are {num_gpus}; lower the shares, or deploy fewer at a time"
        )


def main(names: Sequence[str]) -> int:
    try:
        folders = validate(ROOT / "models", names or None)
    except TargetError as error:
        print(error, file=sys.stderr)
        return 1
    for folder in folders:
        print(f"{folder.name}: no mistakes", *folder.warnings, sep="\n  ")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
