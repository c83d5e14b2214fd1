"""The service with models that generate, chat and embed, as clients of other servers meet it."""

from collections.abc import Callable, Iterator

import pytest

from app.config import Settings
from tests.servers import TEST_MODELS, RunningTriton, start_triton
from tests.service import Service

MODELS = ("tiny", "chat", "embed")


@pytest.fixture(scope="session")
def triton(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningTriton]:
    server = start_triton(tmp_path_factory.mktemp("triton"), MODELS)
    yield server
    server.stop()


@pytest.fixture
def make_settings(make_settings: Callable[..., Settings]) -> Callable[..., Settings]:
    def make(**changes: object) -> Settings:
        return make_settings(**({"model_repository": str(TEST_MODELS), "default_model": "chat"} | changes))

    return make


def url_of(service: Service) -> str:
    return str(service.client.base_url).rstrip("/")
