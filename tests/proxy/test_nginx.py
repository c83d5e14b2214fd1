"""Below a path, behind the distribution's nginx, with the configuration that docs/proxy.md shows."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest

from app.config import Settings
from nvidia_triton.local.settings import free_ports
from tests.keys.conftest import bearer
from tests.service import ROOT, Service, eventually, running_api

NGINX = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin:/usr/local/sbin")
DOC = (ROOT / "docs" / "proxy.md").read_text()
pytestmark = pytest.mark.skipif(NGINX is None, reason="nginx is missing: apt-get install -y nginx-light")


CONFIG = """
daemon off; master_process off; pid {folder}/nginx.pid; error_log {folder}/error.log;
events {{ }}
http {{
    access_log off;
    client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy; fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;
    server {{ listen 127.0.0.1:{port}; {location} }}
}}
"""
MakeSettings = Callable[..., Settings]


def shown() -> str:
    (block,) = re.findall(r"^```nginx\n(.*?)^```", DOC, re.DOTALL | re.MULTILINE)
    return str(block)


def start(folder: Path, config: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen([str(NGINX), "-p", str(folder), "-c", str(config)])


@asynccontextmanager
async def below_nginx(service: Service, folder: Path, location: str) -> AsyncIterator[httpx.AsyncClient]:
    """A client of nginx, which passes on to the service."""
    (port,) = free_ports(1)
    assert "http://127.0.0.1:8887" in location
    location = location.replace("http://127.0.0.1:8887", str(service.client.base_url).rstrip("/"))
    config = folder / "nginx.conf"
    config.write_text(CONFIG.format(folder=folder, port=port, location=location))
    process = start(folder, config)

    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", trust_env=False, timeout=60) as client:

        async def answers() -> bool:
            assert process.poll() is None, (folder / "error.log").read_text()
            try:
                return (await client.get("/llm/health")).status_code == 200
            except httpx.TransportError:
                return False

        try:
            await eventually(answers, "nginx answers")
            yield client
        finally:
            process.terminate()
            process.wait(10)


async def check(client: httpx.AsyncClient, key: str) -> None:
    """Everything that names an address names one that leads back through the proxy."""
    address = str(client.base_url).rstrip("/")
    client.headers.update(bearer(key))
    made = await client.post("/llm/contexts/", json={"content": "Tell me a story."})
    assert made.status_code == 201, made.text
    assert made.headers["location"] == f"/llm/contexts/{made.json()['id']}"
    assert (await client.get(made.headers["location"])).json()["id"] == made.json()["id"]
    sent = await client.post(f"/llm/models/send/tiny/{made.json()['id']}", json={})
    assert sent.status_code == 202, sent.text
    ticket = sent.json()
    assert ticket["status_url"] == sent.headers["location"] == f"/llm/results/{ticket['result_id']}"
    assert (await client.get(ticket["status_url"])).status_code == 200
    assert (await client.post(ticket["cancel_url"])).status_code == 200
    await client.post("/llm/contexts/", json={"content": "Another."})
    page = await client.get("/llm/contexts/", params={"limit": 1})
    assert page.links["next"]["url"].startswith(f"{address}/llm/contexts/?")
    assert (await client.get(page.links["next"]["url"])).json()[0]["id"] == made.json()["id"]

    home = await client.get("/llm/", headers={"Accept": "text/html"})
    assert (home.status_code, home.headers["location"]) in ((302, "/llm/console/"), (302, f"{address}/llm/console/"))
    for name in ("/docs", "/redoc", "/console/"):
        html = (await client.get("/llm" + name)).text
        urls = re.findall(r"""(?:src|href|spec-url)=["']([^"']+)["']|url: '([^']+)'""", html)
        for url in (first or second for first, second in urls):
            assert url.startswith("/llm/"), url
            assert (await client.head(url)).status_code == 200, url
    assert (await client.get("/llm/openapi.json")).json()["servers"][0]["url"] == "/llm"

    missing = await client.get("/llm/v1/models/nowhere")
    assert (missing.status_code, "error" in missing.json()) == (404, True)
    wrong = await client.put("/llm/v1/models")
    assert (wrong.status_code, wrong.headers["allow"], "error" in wrong.json()) == (405, "GET, HEAD", True)
    assert (await client.get("/llm/contexts/", headers={"Authorization": ""})).status_code == 401


async def test_the_documented_configuration(
    make_settings: MakeSettings, admin: str, tmp_path: Path, service: Service
) -> None:
    async with running_api(make_settings()) as api, below_nginx(api, tmp_path, shown()) as client:
        await check(client, admin)


@pytest.mark.parametrize("slash", ["/", ""], ids=["the path is taken away", "the path is passed on"])
async def test_root_path_alone(
    make_settings: MakeSettings, admin: str, tmp_path: Path, service: Service, slash: str
) -> None:
    location = f"location /llm/ {{ proxy_pass http://127.0.0.1:8887{slash}; proxy_set_header Host $http_host; }}"
    settings = make_settings(root_path="/llm", auth_required=True)
    async with running_api(settings) as api, below_nginx(api, tmp_path, location) as client:
        await check(client, admin)
