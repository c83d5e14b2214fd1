"""Whose `X-Forwarded-*` are believed, and what pages of other origins may do."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from app.config import Settings, SettingsError, load_settings
from tests.keys.conftest import bearer
from tests.service import Service, running_api

MakeSettings = Callable[..., Settings]

FORWARDED = {
    "X-Forwarded-For": "198.51.100.7",
    "X-Forwarded-Proto": "https",
    "X-Forwarded-Host": "api.example.org",
    "X-Forwarded-Prefix": "/llm",
}
PAGE = "https://app.example.org"


async def next_page(service: Service, key: str, **headers: str) -> str:
    named = bearer(key) | FORWARDED | headers
    for _ in range(2):
        made = await service.client.post("/contexts/", json={"content": "x"}, headers=named)
        assert made.status_code == 201
    page = await service.client.get("/contexts/", params={"limit": 1}, headers=named)
    return str(page.links["next"]["url"])


async def test_a_trusted_proxy_is_believed(make_settings: MakeSettings, admin: str) -> None:
    async with running_api(make_settings()) as service:
        assert (await next_page(service, admin)).startswith("https://api.example.org/llm/contexts/?")


@pytest.mark.parametrize("trusted", [(), ("10.1.0.0/16",)])
async def test_another_address_is_not(make_settings: MakeSettings, admin: str, trusted: tuple[str, ...]) -> None:
    async with running_api(make_settings(trusted_proxies=trusted)) as service:
        assert (await next_page(service, admin)).startswith(
            f"{service.client.base_url}/contexts/?".replace("//c", "/c")
        )


@pytest.mark.parametrize("trusted", [(), ("127.0.0.1", "::1")])
async def test_a_forwarded_request_is_never_local(make_settings: MakeSettings, trusted: tuple[str, ...]) -> None:
    async with running_api(make_settings(trusted_proxies=trusted)) as service:
        assert (await service.client.get("/keys/")).status_code == 200
        for name in FORWARDED:
            for value in ("127.0.0.1", "http", "localhost", "/llm", ""):
                answer = await service.client.get("/keys/", headers={name: value})
                assert answer.status_code == 401, (name, value)


@pytest.mark.parametrize(
    ("header", "value"),
    [
        ("X-Forwarded-Prefix", "//evil.example"),
        ("X-Forwarded-Prefix", "https://evil.example"),
        ("X-Forwarded-Prefix", '/x">'),
        ("X-Forwarded-Host", "evil.example/x"),
        ("X-Forwarded-Host", "user@evil.example"),
        ("X-Forwarded-Proto", "javascript"),
    ],
)
async def test_a_header_of_another_form_is_ignored(
    make_settings: MakeSettings, admin: str, header: str, value: str
) -> None:
    async with running_api(make_settings()) as service:
        headers = bearer(admin) | {header: value}
        made = await service.client.post("/contexts/", json={"content": "x"}, headers=headers)
        assert made.headers["location"] == f"/contexts/{made.json()['id']}"
        url = await next_page(service, admin, **{header: value})
        assert "evil" not in url
        assert url.startswith(("http://", "https://"))


async def test_a_page_of_a_named_origin_may_call(make_settings: MakeSettings, admin: str) -> None:
    async with running_api(make_settings(auth_required=True, cors_origins=(PAGE,))) as service:
        asked = {
            "Origin": PAGE,
            "Access-Control-Request-Method": "POST",
            "Access-Control-Request-Headers": "authorization, content-type, idempotency-key",
        }
        preflight = await service.client.options("/contexts/", headers=asked)
        assert preflight.status_code == 200
        assert preflight.headers["access-control-allow-origin"] == PAGE
        assert "POST" in preflight.headers["access-control-allow-methods"]
        assert "idempotency-key" in preflight.headers["access-control-allow-headers"].lower()
        made = await service.client.post("/contexts/", json={"content": "x"}, headers=bearer(admin) | {"Origin": PAGE})
        assert made.status_code == 201
        exposed = made.headers["access-control-expose-headers"].lower()
        for name in ("location", "retry-after", "x-request-id", "x-ratelimit-remaining-requests", "link"):
            assert name in exposed
        refused = await service.client.get("/contexts/", headers={"Origin": PAGE})
        assert (refused.status_code, refused.headers["access-control-allow-origin"]) == (401, PAGE)
        other = await service.client.options("/contexts/", headers=asked | {"Origin": "https://evil.example"})
        assert "access-control-allow-origin" not in other.headers


async def test_without_the_setting_no_page_may(make_settings: MakeSettings, admin: str) -> None:
    async with running_api(make_settings()) as service:
        answer = await service.client.get("/contexts/", headers=bearer(admin) | {"Origin": PAGE})
        assert answer.status_code == 200
        assert not [name for name in answer.headers if name.startswith("access-control-")]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("ROOT_PATH", "llm"),
        ("ROOT_PATH", "/llm/"),
        ("TRUSTED_PROXIES", "nginx"),
        ("TRUSTED_PROXIES", "10.1.0.5/8"),
        ("CORS_ORIGINS", "app.example.org"),
        ("CORS_ORIGINS", "https://app.example.org/"),
    ],
)
def test_a_setting_that_cannot_work_is_named(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(SettingsError, match=name):
        load_settings()


def test_settings_are_read_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRUSTED_PROXIES", "10.1.0.5, 10.2.0.0/16")
    monkeypatch.setenv("CORS_ORIGINS", "https://a.example,http://localhost:3000")
    settings = load_settings()
    assert settings.trusted_proxies == ("10.1.0.5", "10.2.0.0/16")
    assert settings.cors_origins == ("https://a.example", "http://localhost:3000")
    monkeypatch.setenv("TRUSTED_PROXIES", "none")
    assert load_settings().trusted_proxies == ()
