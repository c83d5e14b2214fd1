"""The routes of the service's own interface, with what their schemas allow and with what they do not."""

import pytest

from tests.openapi.routes import require_success, routes_of, try_route
from tests.openapi.stack import Stack


@pytest.mark.parametrize("route", routes_of("native"))
def test_every_answer_is_one_that_the_document_has(route: str, stack: Stack) -> None:
    try_route(route, stack)


def test_each_route_was_answered_with_success_too(stack: Stack) -> None:
    require_success(stack)
