"""Settings that an admin changes while everything runs: every process takes them, and nothing else changes."""

import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from app.config import CHANGEABLE, KeylessAccess, Settings
from app.database_url import connect_arguments
from app.dispatch import janitor
from app.services.callers import Scope
from app.services.changed_settings import parsed, shown
from app.services.process_logs import LOGGER, log_as_set
from tests.keys.conftest import MakeKey, bearer, make_key
from tests.service import Process, Service, eventually, running_api, running_dispatcher

__all__ = ["make_key"]

Make = Callable[..., Settings]


@pytest.fixture(autouse=True)
def same_level_after() -> Iterator[None]:
    before = logging.getLogger(LOGGER).level
    yield
    logging.getLogger(LOGGER).setLevel(before)


async def change(service: Service, name: str, value: Any) -> Any:
    return await service.client.put(f"/settings/{name}", json={"value": value})


async def seen(service: Service, name: str) -> dict[str, Any]:
    (found,) = (each for each in (await service.client.get("/settings/")).json() if each["name"] == name)
    return dict(found)


async def test_a_change_reaches_a_running_dispatcher_and_outlives_a_start(
    make_settings: Make, rows: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(janitor, "TIDY_SECONDS", 0.05)
    theirs = make_settings()
    await rows.execute(
        "INSERT INTO audit (action, actor, subject, created_at) VALUES ('x', 'x', 'old', now() - interval '40 days')"
    )

    async def old() -> bool:
        return bool(await rows.fetchval("SELECT count(*) FROM audit WHERE subject = 'old'"))

    async with running_api(make_settings()) as service, running_dispatcher(theirs):
        view = await seen(service, "AUDIT_RETENTION_DAYS")
        assert (view["value"], view["changeable"], view["changed_at"]) == ("", True, None)
        answer = await change(service, "AUDIT_RETENTION_DAYS", "41")
        assert answer.status_code == 200, answer.text

        async def taken() -> bool:
            return theirs.audit_retention_days == 41

        await eventually(taken, "the dispatcher has it")
        assert await old()
        await change(service, "audit_retention_days", " 39.5 ")

        async def gone() -> bool:
            return not await old()

        await eventually(gone, "the dispatcher removes what is too old now")
    async with running_api(make_settings(audit_retention_days=7)) as service:
        view = await seen(service, "AUDIT_RETENTION_DAYS")
        assert (view["value"], view["environment"], view["changed_by"]) == ("39.5", "7.0", "api, without a key")
        view = (await service.client.delete("/settings/AUDIT_RETENTION_DAYS")).json()
        assert (view["value"], view["changed_at"], view["changed_by"]) == ("7.0", None, None)
        assert (await service.client.delete("/settings/AUDIT_RETENTION_DAYS")).status_code == 200
    audited = await rows.fetch("SELECT action, subject, details FROM audit ORDER BY id")
    assert [(row["action"], row["subject"]) for row in audited] == [
        ("setting.changed", "AUDIT_RETENTION_DAYS"),
        ("setting.changed", "AUDIT_RETENTION_DAYS"),
        ("setting.reset", "AUDIT_RETENTION_DAYS"),
    ]


async def test_what_cannot_be_changes_nothing(make_settings: Make, rows: Any) -> None:
    settings = make_settings()
    before = {name: getattr(settings, name) for name in CHANGEABLE}
    async with running_api(settings) as service:
        for name, value, status, code in (
            ("INTERACTIVE_SHARE", "1", 422, "invalid_request"),
            ("INTERACTIVE_SHARE", "nan", 422, "invalid_request"),
            ("INTERACTIVE_SHARE", "", 422, "invalid_request"),
            ("RESULT_RETENTION_DAYS", "-1", 422, "invalid_request"),
            ("RESULT_RETENTION_DAYS", "1e300", 422, "invalid_request"),
            ("RESULT_RETENTION_DAYS", "inf", 422, "invalid_request"),
            ("MODEL_RELOADS_PER_HOUR", "some", 422, "invalid_request"),
            ("MODEL_RELOADS_PER_HOUR", "9" * 30, 422, "invalid_request"),
            ("LOG_LEVEL", "<b>", 422, "invalid_request"),
            ("LOG_LEVEL", 7, 422, "invalid_request"),
            ("LOG_LEVEL", "x\x00", 422, "invalid_request"),
            ("DATABASE_URL", "postgresql://elsewhere", 409, "setting_fixed"),
            ("API_PORT", "1", 409, "setting_fixed"),
            ("_ENVIRONMENT", "x", 404, "setting_not_found"),
            ("nothing", "x", 404, "setting_not_found"),
        ):
            answer = await change(service, name, value)
            assert (answer.status_code, answer.json()["code"]) == (status, code), (name, value, answer.text)
        assert (await service.client.put("/settings/LOG_LEVEL", content="x")).status_code in (400, 415)
        assert (await service.client.delete("/settings/API_PORT")).status_code == 409
        # A row that another version has written, or a hand.
        await rows.execute(
            "INSERT INTO changed_settings (name, value, actor) VALUES ('interactive_share', 'much', 'x'),"
            " ('api_port', '1', 'x'), ('gone', '', 'x')"
        )
        assert (await seen(service, "INTERACTIVE_SHARE"))["value"] == "0.0625"
    assert {name: getattr(settings, name) for name in CHANGEABLE} == before
    assert settings.api_port != 1
    assert await rows.fetchval("SELECT count(*) FROM audit") == 0


async def test_only_admins_change_settings_and_their_key_is_named(make_settings: Make, make_key: MakeKey) -> None:
    plain, root = await make_key("plain"), await make_key("root", scopes=tuple(Scope))
    async with running_api(make_settings(auth_required=True)) as service:
        for method in ("PUT", "DELETE"):
            body = {"value": "0.5"} if method == "PUT" else None
            path = "/settings/INTERACTIVE_SHARE"
            answer = await service.client.request(method, path, json=body, headers=bearer(plain))
            assert answer.status_code == 403
        answer = await service.client.put("/settings/INTERACTIVE_SHARE", json={"value": "0.5"}, headers=bearer(root))
        assert (answer.json()["value"], answer.json()["changed_by"]) == ("0.5", "root")


async def test_a_dispatcher_of_its_own_process_logs_from_the_new_level_on(make_settings: Make, tmp_path: Path) -> None:
    async with (
        running_api(make_settings()) as service,
        Process("app.worker", make_settings(), tmp_path / "log") as dispatcher,
    ):
        await dispatcher.says("dispatching")
        assert (await change(service, "LOG_LEVEL", "error")).json()["value"] == "ERROR"
        await dispatcher.says("settings changed LOG_LEVEL=ERROR")


def test_levels_are_those_that_are_set(make_settings: Make) -> None:
    settings = make_settings(log_level="info")
    logger = logging.getLogger(LOGGER)
    log_as_set(settings)
    assert logger.level == logging.INFO
    settings.change({"log_level": "ERROR"})
    log_as_set(settings)
    assert logger.level == logging.ERROR
    settings.change({})
    log_as_set(settings)
    assert logger.level == logging.INFO


def test_a_copy_keeps_nothing_of_what_was_made_of_other_settings(make_settings: Make) -> None:
    settings = make_settings(auth_required=True)
    assert settings.keyless_access is KeylessAccess.NONE
    assert settings.listen_arguments == settings.database_arguments
    elsewhere = "postgresql://u:p@elsewhere/tickets"
    copied = settings.model_copy(update={"auth_required": False, "database_url": elsewhere})
    assert copied.keyless_access is KeylessAccess.ANYWHERE
    assert copied.database_arguments == copied.listen_arguments == connect_arguments(elsewhere)


def test_what_changes_in_a_copy_changes_there_alone(make_settings: Make) -> None:
    settings = make_settings(log_level="INFO", interactive_share=0.5)
    settings.change({"log_level": "ERROR"})
    copied = settings.model_copy(update={"interactive_share": 0.25})
    copied.change({"log_level": "DEBUG"})
    assert (settings.log_level, settings.interactive_share) == ("ERROR", 0.5)
    copied.change({})
    assert (copied.log_level, copied.interactive_share) == ("INFO", 0.25)


def test_every_changeable_setting_is_read_as_it_is_written() -> None:
    settings = Settings()
    for name in CHANGEABLE:
        value = getattr(settings, name)
        assert parsed(name, shown(value)) == value
