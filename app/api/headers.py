"""The headers of a request by name, put in order once for all that look for one."""

from starlette.types import Scope

_FIRST = "first_headers"


def first_headers(scope: Scope) -> dict[bytes, bytes]:
    """The values by names in lower case; of several with one name the first."""
    state = scope.setdefault("state", {})
    headers: dict[bytes, bytes] | None = state.get(_FIRST)
    if headers is None:
        headers = state[_FIRST] = dict(reversed(scope["headers"]))
    return headers
