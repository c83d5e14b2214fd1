"""A tritonserver with the example models that are no language models, and two small ones."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.servers import RunningTriton, copied_models, start_triton

MODELS = ("image-rules", "ner-rules", "vision-rules", "count", "echo", "tiny", "chat")


@pytest.fixture(scope="package")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return copied_models(tmp_path_factory.mktemp("models"), MODELS)


@pytest.fixture(scope="package")
def triton(tmp_path_factory: pytest.TempPathFactory, repository: Path) -> Iterator[RunningTriton]:
    server = start_triton(tmp_path_factory.mktemp("triton"), MODELS, repository)
    yield server
    server.stop()
