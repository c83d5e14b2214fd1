"""The kinds of engines there are, one line each."""

from __future__ import annotations

from importlib import import_module
from typing import cast

from app.engines.base import Endpoint, Engine

TRITON = "triton"
# Of each kind its class, which is made with an Endpoint. Its module is imported when the first server of it is opened.
ENGINES = {
    TRITON: "app.engines.triton.client:TritonEngine",
    "openai": "app.engines.openai_http:OpenAIEngine",
    "tgi": "app.engines.tgi:TgiEngine",
    "gradio": "app.engines.gradio:GradioEngine",
}
# Those whose engines have a `control`.
TAKE_ORDERS = frozenset({TRITON})


def open_engine(endpoint: Endpoint) -> Engine:
    """The engine of the endpoint's kind, which is one of ENGINES."""
    module, _, name = ENGINES[endpoint.kind].partition(":")
    return cast(Engine, getattr(import_module(module), name)(endpoint))
