"""Servers that demand a key, whose place is told with the server's row."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from app.config import Settings
from app.db.engine import Database
from app.queue.slots import SlotStore
from tests.fleet.test_server_rows import added
from tests.llama import RunningLlama
from tests.service import Service, eventually, running_api, running_dispatcher

KEY = "sesame"


@pytest.fixture(scope="module")
def guarded_llama(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningLlama]:
    server = RunningLlama(tmp_path_factory.mktemp("guarded") / "server.log", "--api-key", KEY)
    yield server
    server.kill()


@pytest.fixture
def secrets(tmp_path: Path) -> Path:
    directory = tmp_path / "secrets"
    directory.mkdir()
    (directory / "key").write_text(f"{KEY}\n")
    (directory / "wrong").write_text("open-seed\n")
    (directory / "link").symlink_to(directory / "key")
    (tmp_path / "elsewhere").write_text(KEY)
    (directory / "out").symlink_to(tmp_path / "elsewhere")
    return directory


async def state_of(service: Service, server: dict[str, Any]) -> dict[str, Any]:
    async def asked() -> dict[str, Any]:
        now: dict[str, Any] = (await service.client.get(f"/servers/{server['id']}")).json()
        return {} if now["state"] == "unknown" else now

    found: dict[str, Any] = await eventually(asked, "the server has been asked")
    return found


async def test_a_key_of_the_environment_or_a_file_opens_the_server(
    make_settings: Callable[..., Settings], guarded_llama: RunningLlama, secrets: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("THEIR_KEY", KEY)
    settings = make_settings(triton_urls=(), credential_directory=secrets)
    async with running_api(settings) as service, running_dispatcher(settings):
        for credential in ("env:THEIR_KEY", f"file:{secrets}/key", "file:link"):
            fields = {"kind": "openai", "models": {"demo": "guarded"}, "credential": credential}
            server = await added(service, guarded_llama.url, **fields)
            assert (await state_of(service, server))["state"] == "up"
            result = await service.run("Once upon a time", "guarded", max_tokens=3)
            assert result["status"] == "completed", result
            shown = (await service.client.get(f"/servers/{server['id']}")).text
            assert credential in shown
            assert KEY not in shown
            await service.client.delete(f"/servers/{server['id']}")
        fields = {"kind": "openai", "models": {"demo": "guarded"}, "credential": "file:wrong"}
        now = await state_of(service, await added(service, guarded_llama.url, **fields))
        assert now["state"] == "down"
        assert "refuses this service's credential" in now["reason"]
        # Another key in the same place is taken without a restart.
        (secrets / "wrong").write_text(KEY)
        assert (await service.run("Once upon a time", "guarded", max_tokens=3))["status"] == "completed"


@pytest.mark.parametrize("path", ["/etc/hostname", "../elsewhere", "out", "/proc/self/environ"])
async def test_a_file_elsewhere_is_refused(make_settings: Callable[..., Settings], secrets: Path, path: str) -> None:
    async with running_api(make_settings(credential_directory=secrets)) as service:
        body = {"address": "http://127.0.0.1:9", "kind": "openai", "credential": f"file:{path}"}
        answer = await service.client.post("/servers/", json=body)
        assert answer.status_code == 422
        assert answer.json()["errors"][0]["field"] == "credential"
        assert f"must lie in {secrets}" in answer.json()["detail"]
        server = await added(service, "http://127.0.0.1:9", kind="openai", credential="file:key")
        answer = await service.client.patch(f"/servers/{server['id']}", json={"credential": f"file:{path}"})
        assert answer.status_code == 422
        assert (await service.client.get(f"/servers/{server['id']}")).json()["credential"] == "file:key"


async def test_slots_go_with_their_server(database: Database) -> None:
    slots = SlotStore(database)
    await slots.make([("here", "m", 2), ("gone", "m", 2), ("busy", "m", 2)])
    async with database.hot() as connection:
        await connection.execute("INSERT INTO servers (name, kind, address) VALUES ('here', 'triton', 'here')")
        await connection.execute(
            "UPDATE server_slots SET token = uuidv7(), until = now() + interval '1 minute'"
            " WHERE server = 'busy' AND number = 0"
        )
        await slots.forget()
        left = await connection.fetch("SELECT server, count(*) AS n FROM server_slots GROUP BY server ORDER BY server")
    assert [tuple(row) for row in left] == [("busy", 1), ("here", 2)]
