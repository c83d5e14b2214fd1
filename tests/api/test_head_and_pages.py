"""HEAD, the health checks of other servers, and the pages that need no internet."""

import re
from typing import Any

import httpx
import pytest

from tests.service import Service

BROWSER = {"Accept": "text/html,application/xhtml+xml"}


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    from app.config import Settings
    from app.main import create_app

    return create_app(Settings()).openapi()


async def test_head_is_get_without_its_body(service: Service) -> None:
    context = await service.context()
    ticket = await service.send(context)
    await service.settled(ticket)
    for path in (
        f"/contexts/{context}",
        f"/results/{ticket}",
        "/contexts/?limit=1",
        "/models/",
        "/v1/models",
        "/v1/files",
        "/health/live",
        "/health/ready",
        "/health",
        "/ping",
        "/version",
        "/openapi.json",
        "/docs",
    ):
        got = await service.client.get(path)
        head = await service.client.head(path)
        assert (head.status_code, head.content) == (got.status_code, b""), path
        for name in ("content-type", "content-length", "link"):
            assert head.headers.get(name) == got.headers.get(name), (path, name)


async def test_head_of_a_stream_does_not_wait_for_its_end(service: Service) -> None:
    ticket = await service.send(model="slow", parameters={"max_tokens": 200})
    head = await service.client.head(f"/results/{ticket}/stream", timeout=10)
    assert (head.status_code, head.headers["content-type"]) == (200, "text/event-stream; charset=utf-8")
    assert (await service.result(ticket))["status"] == "pending"
    await service.client.post(f"/results/{ticket}/cancel")


async def test_head_is_refused_where_there_is_no_get(service: Service) -> None:
    answer = await service.client.head("/v1/completions")
    assert (answer.status_code, answer.headers["allow"]) == (405, "POST")
    assert (await service.client.put("/contexts/")).headers["allow"] == "GET, HEAD, POST"


def test_head_is_not_in_the_openapi_document(document: dict[str, Any]) -> None:
    assert {method for item in document["paths"].values() for method in item} <= {
        "get",
        "post",
        "put",
        "patch",
        "delete",
    }
    operations = [operation["operationId"] for item in document["paths"].values() for operation in item.values()]
    assert len(operations) == len(set(operations))


async def test_the_health_checks_of_other_servers(service: Service) -> None:
    for method, path in (("GET", "/health"), ("GET", "/ping"), ("POST", "/ping")):
        answer = await service.client.request(method, path)
        assert (answer.status_code, answer.content) == (200, b""), path
    assert (await service.client.get("/version")).json() == {"version": "0.1.0"}


async def test_the_root_leads_a_browser_to_the_console_and_others_to_links(service: Service) -> None:
    answer = await service.client.get("/", headers=BROWSER)
    assert (answer.status_code, answer.headers["location"]) == (302, "/console/")
    links = (await service.client.get("/")).json()["links"]
    assert links["docs"] == "/docs"
    for path in (links["console"], links["docs"], links["openapi"], links["health"]):
        assert (await service.client.get(path)).status_code == 200, path


@pytest.mark.parametrize("page", ["/docs", "/redoc"])
async def test_a_page_loads_everything_from_here(service: Service, page: str) -> None:
    shown = await service.client.get(page, headers=BROWSER)
    html = shown.text
    loaded = re.findall(r"""(?:src|href)=["']([^"']+)["']""", html)
    assert len(loaded) >= 2
    for url in loaded:
        answer = await service.client.get(url)
        assert url.startswith("/docs/assets/"), url
        assert (answer.status_code, len(answer.content) > 1000) == (200, True), url
        for asked in ("bytes=999999999-", "words=1-2"):
            whole = await service.client.get(url, headers={"Range": asked})
            assert (whole.status_code, whole.content == answer.content) == (200, True), asked
    assert "https://" not in html
    # What the scripts ask for later, the browser refuses: nothing here names another host.
    policy = dict(each.split(maxsplit=1) for each in shown.headers["content-security-policy"].split("; "))
    assert policy["default-src"] == "'self'"
    allowed = {"'self'", "'unsafe-inline'", "'none'", "data:", "blob:"}
    assert {source for sources in policy.values() for source in sources.split()} <= allowed
    # Swagger UI would send the document's address to a checker elsewhere.
    assert page != "/docs" or '"validatorUrl": null' in html


@pytest.mark.parametrize("name", ["../core.py", "..%2Fcore.py", "%2e%2e/core.py", "core.py", "", "swagger-ui.css/x"])
async def test_only_the_pages_own_files_are_served(service: Service, name: str) -> None:
    url = str(service.client.base_url) + "/docs/assets/" + name
    async with httpx.AsyncClient(trust_env=False) as client:
        assert (await client.get(url)).status_code in (401, 404)
