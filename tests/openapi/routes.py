"""The routes of the OpenAPI document, in parts that are tried side by side, and how one is tried."""

from __future__ import annotations

import schemathesis
from hypothesis import HealthCheck, settings
from openai import types
from openai.types.conversations import Conversation
from pydantic import BaseModel
from schemathesis import checks
from schemathesis.generation.feedback import FeedbackSources
from schemathesis.pytest._test_builder import build_operation_test
from schemathesis.python._constants.orchestrator import make_constants_value_source

from app.config import Settings
from app.main import create_app
from tests.openapi.stack import Stack

EXAMPLES = settings(
    max_examples=10, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
)
CHECKS = [
    checks.not_a_server_error,
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_headers_conformance,
    checks.response_schema_conformance,
]
# By their `object`: what the official client takes the answers for.
OBJECTS: dict[str, type[BaseModel]] = {
    "chat.completion": types.chat.ChatCompletion,
    "text_completion": types.Completion,
    "response": types.responses.Response,
    "model": types.Model,
    "file": types.FileObject,
    "batch": types.Batch,
    "conversation": Conversation,
}
# About as long each; what begins with none of these is a part too, "native".
PARTS = {
    "responses": ("/v1/responses", "/v1/conversations"),
    "chats": ("/v1/chat", "/v1/completions", "/v1/messages"),
    "faces": ("/v1/", "/tgi", "/protollm", "/api/", "/tokenize", "/detokenize"),
}

schema = schemathesis.openapi.from_dict(create_app(Settings()).openapi())
# A method that a path does not take is a 405, which no document lists: tests/api/test_bad_input.py tries those.
schema.config.phases.coverage.unexpected_methods = set()
ROUTES = {operation.label: operation for operation in (result.ok() for result in schema.get_all_operations())}


def routes_of(part: str) -> list[str]:
    """As `GET /path`, in the order of the document."""
    return [label for label, operation in ROUTES.items() if _part_of(operation.path) == part]


def _part_of(path: str) -> str:
    return next((part for part, beginnings in PARTS.items() if path.startswith(beginnings)), "native")


def try_route(route: str, stack: Stack) -> None:
    """Sends what its schema allows and what it does not; all answers must be as the document says."""

    aimed: set[str] = set()

    def judge_twice(case: schemathesis.Case) -> None:
        _judge(case, stack)
        if not stack.aim(case):
            return
        # What differs in many cases is what aiming takes out, so that they are one request.
        request = repr((case.path_parameters, case.query, case.headers, case.media_type, case.body))
        if request not in aimed:
            _judge(case, stack)
            aimed.add(request)

    # What `schema.parametrize` does when tests are collected, which each process of a run does with all of them.
    test = build_operation_test(
        config=schema.config,
        operation=ROUTES[route],
        test_func=judge_twice,
        given_kwargs={},
        feedback=FeedbackSources(constants_value_source=make_constants_value_source(schema)),
        explicit_settings=EXAMPLES,
    )
    test()


def _judge(case: schemathesis.Case, stack: Stack) -> None:
    answer = case.call_and_validate(base_url=stack.url, session=stack.session, checks=CHECKS, timeout=30)
    stack.seen[case.operation.label, answer.status_code] += 1
    if case.path.startswith("/v1/") and answer.headers.get("content-type") == ["application/json"]:
        document = answer.json()
        if (kind := OBJECTS.get(document.get("object"))) and "deleted" not in document:
            kind.model_validate(document)


def require_success(stack: Stack) -> None:
    """Each route that was tried there must have been answered with success too."""
    tried = {route for route, _ in stack.seen}
    # The only batch there is has ended.
    assert tried - {route for route, status in stack.seen if status < 300} <= {"POST /v1/batches/{batch_id}/cancel"}
