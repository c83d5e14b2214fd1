"""A tritonserver with the example models that are no language models, and two small ones."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from nvidia_triton.local.settings import ROOT
from tests.servers import TEST_MODELS, RunningTriton, start_triton

MODELS = ("image-rules", "ner-rules", "vision-rules", "count", "echo", "tiny", "chat")


@pytest.fixture(scope="package")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    for name in MODELS:
        source = ROOT / "models" / name
        shutil.copytree(source if source.is_dir() else TEST_MODELS / name, folder / name)
    return folder


@pytest.fixture(scope="package")
def triton(tmp_path_factory: pytest.TempPathFactory, repository: Path) -> Iterator[RunningTriton]:
    server = start_triton(tmp_path_factory.mktemp("triton"), MODELS, repository)
    yield server
    server.stop()
