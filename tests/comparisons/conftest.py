"""A server with two simulated models that take texts and one that takes chats."""

from collections.abc import Callable, Iterator

import pytest

from app.config import Settings
from tests.servers import TEST_MODELS, RunningTriton, start_triton


@pytest.fixture(scope="session")
def triton(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningTriton]:
    server = start_triton(tmp_path_factory.mktemp("triton"), ("tiny", "slow", "chat"))
    yield server
    server.stop()


@pytest.fixture
def make_settings(make_settings: Callable[..., Settings]) -> Callable[..., Settings]:
    def make(**changes: object) -> Settings:
        return make_settings(**({"model_repository": str(TEST_MODELS)} | changes))

    return make
