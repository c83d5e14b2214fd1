"""Nobody reaches what the plain path refuses: every route, scope and method, however the path is written."""

import asyncio
from typing import Any

import asyncpg
import pytest
from fastapi import APIRouter, FastAPI
from fastapi.routing import iter_route_contexts

from app.api.security import READ, SUBMIT, GuardedRoute, require_declared
from app.config import Settings
from app.console.entrance import PageRoute
from app.main import create_app
from app.services.callers import Scope
from tests.keys.conftest import MakeKey, bearer
from tests.keys.paths import CONTROLS, LINE_ENDS, concrete, mutations
from tests.keys.raw_http import Answer, RawRequest, ask_all
from tests.service import Service

READS, SUBMITS, ADMINS, OPEN = Scope.READ, Scope.SUBMIT, Scope.ADMIN, None
# What each route takes, written down once more, apart from the declarations.
ROUTES: dict[tuple[str, str], Scope | None] = {
    ("GET", "/health/live"): OPEN,
    ("GET", "/health/ready"): OPEN,
    ("GET", "/metrics"): OPEN,
    ("GET", "/health"): OPEN,
    ("GET", "/ping"): OPEN,
    ("POST", "/ping"): OPEN,
    ("GET", "/version"): OPEN,
    ("GET", "/"): OPEN,
    ("GET", "/docs"): OPEN,
    ("GET", "/redoc"): OPEN,
    ("GET", "/docs/assets/{name}"): OPEN,
    ("GET", "/contexts/"): READS,
    ("POST", "/contexts/"): SUBMITS,
    ("GET", "/contexts/{context_id}"): READS,
    ("DELETE", "/contexts/{context_id}"): SUBMITS,
    ("GET", "/results/"): READS,
    ("GET", "/results/{result_id}"): READS,
    ("GET", "/results/{result_id}/attempts"): READS,
    ("GET", "/results/{result_id}/outputs/{name}"): READS,
    ("GET", "/results/{result_id}/stream"): READS,
    ("GET", "/results/{result_id}/webhooks"): READS,
    ("POST", "/results/{result_id}/webhooks/{delivery_id}/redeliver"): SUBMITS,
    ("POST", "/results/{result_id}/cancel"): SUBMITS,
    ("POST", "/results/{result_id}/retry"): SUBMITS,
    ("GET", "/models/"): READS,
    ("GET", "/models/{model_name}"): READS,
    ("POST", "/models/send/{model_name}/{context_id}"): SUBMITS,
    ("GET", "/comparisons/"): READS,
    ("POST", "/comparisons/"): SUBMITS,
    ("GET", "/comparisons/{comparison_id}"): READS,
    ("DELETE", "/comparisons/{comparison_id}"): SUBMITS,
    ("POST", "/comparisons/{comparison_id}/cancel"): SUBMITS,
    ("GET", "/comparisons/{comparison_id}/stream"): READS,
    ("PUT", "/comparisons/{comparison_id}/pick"): SUBMITS,
    ("DELETE", "/comparisons/{comparison_id}/pick"): SUBMITS,
    ("GET", "/picks/"): READS,
    ("GET", "/results/{result_id}/similar"): READS,
    ("PUT", "/results/{result_id}/rating"): SUBMITS,
    ("DELETE", "/results/{result_id}/rating"): SUBMITS,
    ("GET", "/ratings/"): READS,
    ("GET", "/instructions/"): READS,
    ("POST", "/instructions/"): SUBMITS,
    ("GET", "/instructions/{instructions_id}"): READS,
    ("PUT", "/instructions/{instructions_id}"): SUBMITS,
    ("DELETE", "/instructions/{instructions_id}"): SUBMITS,
    ("GET", "/usage"): READS,
    ("GET", "/webhooks/secret"): SUBMITS,
    ("POST", "/webhooks/secret/rotate"): SUBMITS,
    ("GET", "/audit/"): ADMINS,
    ("GET", "/keys/"): ADMINS,
    ("POST", "/keys/"): ADMINS,
    ("DELETE", "/keys/{key_id}"): ADMINS,
    ("GET", "/servers/"): ADMINS,
    ("POST", "/servers/"): ADMINS,
    ("GET", "/servers/{server_id}"): ADMINS,
    ("PATCH", "/servers/{server_id}"): ADMINS,
    ("DELETE", "/servers/{server_id}"): ADMINS,
    ("POST", "/servers/{server_id}/models/{model_name}/load"): ADMINS,
    ("POST", "/servers/{server_id}/models/{model_name}/unload"): ADMINS,
    ("GET", "/settings/"): ADMINS,
    ("PUT", "/settings/{setting}"): ADMINS,
    ("DELETE", "/settings/{setting}"): ADMINS,
    ("GET", "/hosts/"): ADMINS,
    ("GET", "/hosts/{host_id}"): ADMINS,
    ("POST", "/hosts/{host_id}/drain"): ADMINS,
    ("POST", "/hosts/{host_id}/destroy"): ADMINS,
    ("POST", "/hosts/{host_id}/lock"): ADMINS,
    ("POST", "/hosts/{host_id}/unlock"): ADMINS,
    ("GET", "/capacity/"): ADMINS,
    ("POST", "/v1/chat/completions"): SUBMITS,
    ("GET", "/v1/chat/completions/{completion_id}"): READS,
    ("POST", "/v1/completions"): SUBMITS,
    ("GET", "/v1/completions/{completion_id}"): READS,
    ("POST", "/v1/responses"): SUBMITS,
    ("GET", "/v1/responses/{response_id}"): READS,
    ("GET", "/v1/responses/{response_id}/input_items"): READS,
    ("POST", "/v1/responses/{response_id}/cancel"): SUBMITS,
    ("DELETE", "/v1/responses/{response_id}"): SUBMITS,
    ("POST", "/v1/embeddings"): SUBMITS,
    ("POST", "/v1/images/generations"): SUBMITS,
    ("GET", "/v1/models"): READS,
    ("POST", "/tokenize"): READS,
    ("POST", "/detokenize"): READS,
    ("POST", "/v1/responses/input_tokens"): READS,
    ("GET", "/v1/models/"): READS,
    ("GET", "/v1/models/{model:path}"): READS,
    ("POST", "/v1/files"): SUBMITS,
    ("GET", "/v1/files"): READS,
    ("GET", "/v1/files/{file_id}"): READS,
    ("GET", "/v1/files/{file_id}/content"): READS,
    ("DELETE", "/v1/files/{file_id}"): SUBMITS,
    ("POST", "/v1/uploads"): SUBMITS,
    ("GET", "/v1/uploads/{upload_id}"): READS,
    ("POST", "/v1/uploads/{upload_id}/parts"): SUBMITS,
    ("POST", "/v1/uploads/{upload_id}/complete"): SUBMITS,
    ("POST", "/v1/uploads/{upload_id}/cancel"): SUBMITS,
    ("POST", "/v1/conversations"): SUBMITS,
    ("GET", "/v1/conversations/{conversation_id}"): READS,
    ("POST", "/v1/conversations/{conversation_id}"): SUBMITS,
    ("DELETE", "/v1/conversations/{conversation_id}"): SUBMITS,
    ("POST", "/v1/conversations/{conversation_id}/items"): SUBMITS,
    ("GET", "/v1/conversations/{conversation_id}/items"): READS,
    ("GET", "/v1/conversations/{conversation_id}/items/{item_id}"): READS,
    ("DELETE", "/v1/conversations/{conversation_id}/items/{item_id}"): SUBMITS,
    ("POST", "/v1/batches"): SUBMITS,
    ("GET", "/v1/batches"): READS,
    ("GET", "/v1/batches/{batch_id}"): READS,
    ("POST", "/v1/batches/{batch_id}/cancel"): SUBMITS,
    ("POST", "/v1/messages"): SUBMITS,
    ("POST", "/v1/messages/count_tokens"): READS,
    ("POST", "/tgi"): SUBMITS,
    ("POST", "/tgi/"): SUBMITS,
    ("POST", "/tgi/generate"): SUBMITS,
    ("POST", "/tgi/generate_stream"): SUBMITS,
    ("POST", "/tgi/v1/chat/completions"): SUBMITS,
    ("POST", "/tgi/v1/completions"): SUBMITS,
    ("GET", "/tgi/info"): READS,
    ("GET", "/tgi/health"): OPEN,
    ("POST", "/protollm/generate"): SUBMITS,
    ("POST", "/protollm/chat_completion"): SUBMITS,
    ("POST", "/api/chat/completions"): SUBMITS,
    ("POST", "/api/embeddings"): SUBMITS,
    ("POST", "/api/generate"): SUBMITS,
    ("GET", "/api/health"): OPEN,
    ("GET", "/api/status"): READS,
    ("GET", "/api/queue"): READS,
    ("GET", "/api/model-loaded"): READS,
}
METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS", "TRACE", "PROPFIND")
OVERRIDES = ("X-HTTP-Method-Override", "X-HTTP-Method", "X-Method-Override")
REDIRECTS = ("X-Original-URL", "X-Rewrite-URL", "X-Forwarded-Prefix", "X-Forwarded-Path")
REFUSED = range(400, 500)


def table(app: FastAPI) -> set[tuple[str, str]]:
    """Less the pages of the console, which take no keys; see tests/console/test_entrance.py."""
    return {
        (method, each.path or "")
        for each in iter_route_contexts(app.routes)
        if isinstance(each.original_route, GuardedRoute) and not isinstance(each.original_route, PageRoute)
        for method in each.methods or ()
    }


def test_every_route_is_in_the_table_of_this_test() -> None:
    known = table(create_app(Settings()))
    assert {each for each in known if each[0] != "HEAD"} == set(ROUTES)
    # Where a route takes HEAD, it is a route that takes GET.
    assert {path for method, path in known if method == "HEAD"} <= {path for method, path in ROUTES if method == "GET"}


def test_a_route_that_declares_nothing_ends_the_start() -> None:
    def endpoint() -> None:
        return None

    def app_with(router: APIRouter) -> FastAPI:
        app = FastAPI(openapi_url=None)
        app.include_router(router, prefix="/below")
        return app

    for router, decorate in (
        (APIRouter(route_class=GuardedRoute), {}),
        (APIRouter(), {"dependencies": [READ]}),
        (APIRouter(route_class=GuardedRoute, dependencies=[READ]), {"dependencies": [SUBMIT]}),
    ):
        router.get("/plain", **decorate)(endpoint)  # type: ignore[arg-type]
        with pytest.raises(RuntimeError, match=r"(API|Guarded)Route /plain"):
            require_declared(app_with(router), [])
    router = APIRouter(route_class=GuardedRoute, dependencies=[READ])
    router.get("/plain")(endpoint)
    require_declared(app_with(router), [])
    for spoil in (
        lambda app: app.mount("/mounted", FastAPI()),
        lambda app: app.add_api_websocket_route("/socket", endpoint),
        lambda app: app.add_route("/starlette", endpoint),
    ):
        app = app_with(router)
        spoil(app)
        with pytest.raises(RuntimeError, match=r"mounted|socket|starlette"):
            require_declared(app, [])


@pytest.fixture
async def keys(make_key: MakeKey) -> dict[str, tuple[frozenset[Scope], dict[str, str]]]:
    made = {"nobody": (frozenset[Scope](), {})}
    for scopes in ((Scope.READ,), (Scope.SUBMIT,), (Scope.ADMIN,), (Scope.READ, Scope.SUBMIT)):
        name = "+".join(scopes)
        made[name] = (frozenset(scopes), bearer(await make_key(name, scopes=scopes)))
    return made


# Valid wherever it is understood, so that nothing but the missing right is in the way.
BODIES: dict[str, Any] = {
    "/keys/": {"name": "mallory", "scopes": ["admin"]},
    "/contexts/": {"content": "x"},
    "/comparisons/": {"content": "x", "entries": [{"model": "tiny"}]},
    "/v1/completions": {"model": "tiny", "prompt": "x"},
    "/v1/responses": {"model": "tiny", "input": "x"},
    "/v1/chat/completions": {"model": "tiny", "messages": [{"role": "user", "content": "x"}]},
    "/v1/embeddings": {"model": "tiny", "input": "x"},
}


def request(method: str, target: bytes, path: str, headers: dict[str, str]) -> RawRequest:
    return RawRequest(method, target, headers, BODIES.get(path, {}) if method in ("POST", "PUT", "PATCH") else None)


def may(scopes: frozenset[Scope], method: str, path: str) -> bool:
    """Whether the plain request is one of the key's rights."""
    place = ("GET" if method == "HEAD" else method, path)
    return place in ROUTES and (ROUTES[place] is OPEN or ROUTES[place] in scopes)


async def stored(url: str) -> dict[str, int]:
    connection = await asyncpg.connect(url)
    try:
        tables = ("api_keys", "owners", "contexts", "results", "files", "batches", "comparisons")
        return {table: await connection.fetchval(f"SELECT count(*) FROM {table}") for table in tables}
    finally:
        await connection.close()


async def refused(service: Service, asked: list[tuple[str, RawRequest]]) -> None:
    """Asks them all, and fails on each that is answered with anything but a refusal."""
    host, port = service.client.base_url.host, service.client.base_url.port or 0
    before = await stored(service.settings.database_url)
    answers = await ask_all(host, port, [each for _, each in asked])
    let_in = [
        f"{who}: {each.method} {each.target!r} {each.headers}: {answer.status} {answer.body[:200]!r}"
        for (who, each), answer in zip(asked, answers, strict=True)
        if answer.status not in REFUSED
    ]
    assert not let_in, "\n".join(let_in[:20])
    assert await stored(service.settings.database_url) == before


def host_of(service: Service) -> bytes:
    return f"{service.client.base_url.host}:{service.client.base_url.port}".encode()


Scoped = dict[str, tuple[frozenset[Scope], dict[str, str]]]


def nearest(keys: Scoped, method: str, path: str) -> tuple[str, dict[str, str]] | None:
    """Of the keys that the place refuses, the one with the most rights: what it is refused, the others are."""
    lacking = [(len(scopes), who, headers) for who, (scopes, headers) in keys.items() if not may(scopes, method, path)]
    return max(lacking, key=lambda each: each[0])[1:] if lacking else None


async def test_no_spelling_of_a_path_gives_a_right(guarded: Service, keys: Scoped) -> None:
    asked = [
        (who, request(method, target, path, headers))
        for method, path in ROUTES
        if (key := nearest(keys, method, path)) is not None
        for who, headers in [key]
        for target in mutations(concrete(path).encode(), host_of(guarded))
    ]
    assert len(asked) > 2000
    await refused(guarded, asked)


async def test_no_method_gives_a_right(guarded: Service, keys: Scoped) -> None:
    paths = sorted({path for _, path in ROUTES})
    asked = [
        (who, request(method, concrete(path).encode(), path, headers))
        for path in paths
        for method in METHODS
        for who, headers in [("nobody", {}), *filter(None, [nearest(keys, method, path)])]
        if not may(keys[who][0], method, path)
    ]
    asked += [
        (who, request(method, spelling % concrete(path).encode(), path, headers))
        for path in paths
        for method in METHODS
        if (key := nearest(keys, method, path)) is not None
        for who, headers in [key]
        for spelling in (b"%s%%0A", b"/%s", b"http://h%s")
    ]
    assert len(asked) > 2000
    await refused(guarded, asked)


async def test_no_header_overrides_the_method_or_the_path(guarded: Service, keys: Scoped) -> None:
    asked = []
    for who, (scopes, headers) in keys.items():
        if Scope.ADMIN in scopes:
            continue
        for name in OVERRIDES:
            for method in ("GET", "POST", "OPTIONS"):
                asked.append((who, request(method, b"/keys/", "/keys/", headers | {name: "POST"})))
        for name in REDIRECTS:
            plain = request("POST", b"/keys/", "/keys/", headers | {name: "/contexts/"})
            asked.append((who, plain))
            asked.append((who, request("POST", b"/nowhere", "/keys/", headers | {name: "/keys/"})))
            asked.append((who, request("POST", b"/health/live", "/keys/", headers | {name: "/keys/"})))
    await refused(guarded, asked)


async def test_who_has_the_scope_is_let_in(guarded: Service, keys: Scoped) -> None:
    """Or the tests above would pass with everybody shut out."""
    host, port = guarded.client.base_url.host, guarded.client.base_url.port or 0
    for (method, path), needed in ROUTES.items():
        for who, (scopes, headers) in keys.items():
            if needed is not OPEN and needed not in scopes:
                continue
            if path.startswith("/v1/") and method == "POST" and path in BODIES:
                continue  # Holds the connection until a dispatcher has run it.
            (answer,) = await ask_all(host, port, [request(method, concrete(path).encode(), path, headers)], 1)
            assert answer.status not in (401, 403, 405, 500), f"{who}: {method} {path}: {answer}"


@pytest.mark.parametrize("control", [*CONTROLS, *LINE_ENDS])
async def test_a_control_character_in_a_path_is_refused_before_anything_else(
    guarded: Service, admin: str, control: bytes
) -> None:
    host, port = guarded.client.base_url.host, guarded.client.base_url.port or 0
    asked = [
        RawRequest(method, path + control, headers)
        for path in (b"/keys/", b"/health/live", b"/v1/models/", b"/nowhere")
        for method in ("GET", "POST", "DELETE")
        for headers in (bearer(admin), {})
    ]
    for answer in await ask_all(host, port, asked):
        assert (answer.status, answer.code) == (400, "malformed_path")


async def test_no_spelling_of_a_path_escapes_a_used_up_limit(guarded: Service, make_key: MakeKey) -> None:
    headers = bearer(await make_key("limited", requests_per_minute=1))
    assert (await guarded.client.post("/v1/completions", json={}, headers=headers)).status_code == 400
    host, port = guarded.client.base_url.host, guarded.client.base_url.port or 0
    for path in (*(path for path in BODIES if path.startswith("/v1/")), "/v1/batches", "/v1/files"):
        asked = [request("POST", target, path, headers) for target in mutations(path.encode(), host_of(guarded))]
        answers: list[Answer] = await ask_all(host, port, asked)
        assert answers[0].code == "request_limit_reached"
        for each, answer in zip(asked, answers, strict=True):
            # The server itself refuses some, in plain text.
            codes = ("request_limit_reached", "not_found", "method_not_allowed", "malformed_path", None)
            assert answer.status in REFUSED, f"{each.target!r}: {answer}"
            assert answer.code in codes, f"{each.target!r}: {answer}"


@pytest.mark.parametrize("framing", ["Transfer-Encoding: chunked", "Content-Length: 1000\r\nExpect: 100-continue"])
async def test_a_refusal_comes_before_the_body(guarded: Service, keys: Scoped, framing: str) -> None:
    """The client has sent no byte of it, and is not told to."""
    host, port = guarded.client.base_url.host, guarded.client.base_url.port
    for path, needed in (("/keys/", Scope.ADMIN), ("/v1/completions", Scope.SUBMIT), ("/v1/files", Scope.SUBMIT)):
        for scopes, headers in keys.values():
            if needed in scopes:
                continue
            reader, writer = await asyncio.open_connection(host, port)
            lines = [f"POST {path} HTTP/1.1", "Host: localhost", "Content-Type: application/json", framing]
            lines += [f"{name}: {value}" for name, value in headers.items()]
            writer.write(("\r\n".join(lines) + "\r\n\r\n").encode())
            status = await asyncio.wait_for(reader.readline(), 10)
            writer.close()
            assert status.split()[1] == (b"403" if headers else b"401"), (path, headers)


async def test_no_upgrade_opens_a_route(guarded: Service, keys: Scoped) -> None:
    upgrade = {
        "Connection": "Upgrade",
        "Upgrade": "websocket",
        "Sec-WebSocket-Version": "13",
        "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
    }
    asked = [
        (who, RawRequest("GET", path, headers | upgrade))
        for who, (scopes, headers) in keys.items()
        for path in (b"/keys/", b"/keys/%0A", b"/nowhere")
        if Scope.ADMIN not in scopes
    ]
    await refused(guarded, asked)
