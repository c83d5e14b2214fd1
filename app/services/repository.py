"""The model repository as the API has it: what Triton does not tell of a model stands in the model's own folder."""

from pathlib import Path

VERSION = "1"
ABSENT = (0, 0)


def folder_of(repository: Path, model: str) -> Path | None:
    """The model's folder, which need not exist; None for a name that no folder can have."""
    if "/" in model or "\\" in model or "\x00" in model or model in ("", ".", ".."):
        return None
    return repository / model


def stamp_of(file: Path) -> tuple[int, int]:
    """Changes whenever the file does; ABSENT where there is none."""
    try:
        state = file.stat()
    except OSError:
        return ABSENT
    return (state.st_mtime_ns, state.st_size)
