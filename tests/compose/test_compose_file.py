"""docker-compose.yml, Dockerfile and the .env files, checked without Docker; `make test-compose` runs them."""

import json
import re
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml
from dotenv import dotenv_values
from jsonschema import Draft201909Validator

from app.config import Settings

ROOT = Path(__file__).parents[2]
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
OURS = ("migrate", "api", "dispatcher")
INTERPOLATION = re.compile(r"\$\{(\w+)(?::-([^}]*))?\}")


def by_default(value: object) -> str:
    """What compose makes of a value where no variable is set."""
    return INTERPOLATION.sub(lambda match: match[2] or "", str(value)).replace("$$", "$")


def env_file(name: str) -> dict[str, str | None]:
    return dotenv_values(ROOT / name, interpolate=False)


def seconds(duration: str) -> float:
    number, unit = re.fullmatch(r"(\d+)(s|m)", duration).groups()  # type: ignore[union-attr]
    return int(number) * {"s": 1, "m": 60}[unit]


def test_follows_the_compose_specification() -> None:
    schema = json.loads((Path(__file__).parent / "compose-spec.json").read_text())
    errors = [f"{error.json_path}: {error.message}" for error in Draft201909Validator(schema).iter_errors(COMPOSE)]
    assert errors == []


def test_services_and_profiles() -> None:
    assert {name: service.get("profiles", []) for name, service in SERVICES.items()} == {
        "db": [],
        "migrate": [],
        "api": [],
        "dispatcher": [],
        "triton": ["gpu"],
        "tunnel": ["vast"],
        "capacity": ["capacity"],
    }


def test_only_the_api_is_published_and_only_on_loopback() -> None:
    published = {name: [by_default(port) for port in service.get("ports", [])] for name, service in SERVICES.items()}
    assert {name: ports for name, ports in published.items() if ports} == {"api": ["127.0.0.1:8887:8887"]}
    assert all("network_mode" not in service for service in SERVICES.values())


@pytest.mark.parametrize("name", ["api", "dispatcher", "capacity"])
def test_starts_on_a_migrated_database(name: str) -> None:
    assert SERVICES[name]["depends_on"]["migrate"]["condition"] == "service_completed_successfully"
    assert SERVICES["migrate"]["depends_on"]["db"]["condition"] == "service_healthy"
    assert SERVICES["migrate"]["command"] == ["alembic", "upgrade", "head"]


def test_nothing_waits_for_triton() -> None:
    for name in (*OURS, "capacity"):
        assert not {"triton", "tunnel"} & set(SERVICES[name]["depends_on"])


@pytest.mark.parametrize("name", sorted(set(SERVICES) - {"migrate"}))
def test_comes_back_when_killed(name: str) -> None:
    assert SERVICES[name]["restart"] == "unless-stopped"


@pytest.mark.parametrize("name", OURS)
def test_our_services_are_one_image(name: str) -> None:
    assert SERVICES[name]["image"] == SERVICES["api"]["image"]
    assert SERVICES[name]["build"] == SERVICES["api"]["build"]


@pytest.mark.parametrize("name", [*OURS, "tunnel", "capacity"])
def test_is_built_from_a_stage_of_the_dockerfile(name: str) -> None:
    stages = re.findall(r"^FROM \S+ AS (\w+)$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    assert SERVICES[name]["build"]["target"] in stages


def test_the_dispatcher_has_time_to_drain() -> None:
    written = env_file(".env.api.dev").get("DRAIN_SECONDS")
    drain = float(written) if written else Settings.model_fields["drain_seconds"].default
    assert seconds(SERVICES["dispatcher"]["stop_grace_period"]) >= drain + 5


@pytest.mark.parametrize("name", ["db", "api", "triton", "tunnel"])
def test_has_a_health_check(name: str) -> None:
    assert SERVICES[name]["healthcheck"]["test"][0] in ("CMD", "CMD-SHELL")


def test_every_variable_of_the_api_is_a_setting() -> None:
    settings = {name.upper() for name in Settings.model_fields}
    assert set(env_file(".env.api.dev")) <= settings
    for name in OURS:
        assert set(SERVICES[name]["environment"]) <= settings


def test_the_env_files_agree() -> None:
    database = env_file(".env.db.dev")
    url = urlsplit(env_file(".env.api.dev")["DATABASE_URL"] or "")
    assert (url.username, url.password, url.path) == (
        database["POSTGRES_USER"],
        database["POSTGRES_PASSWORD"],
        f"/{database['POSTGRES_DB']}",
    )


def test_the_defaults_are_those_of_the_env_files() -> None:
    database = env_file(".env.db.dev")
    assert {name: by_default(value) for name, value in SERVICES["db"]["environment"].items()} == database
    url = urlsplit(by_default(SERVICES["api"]["environment"]["DATABASE_URL"]))
    assert (url.username, url.password, url.hostname, url.port, url.path) == (
        database["POSTGRES_USER"],
        database["POSTGRES_PASSWORD"],
        "db",
        5432,
        f"/{database['POSTGRES_DB']}",
    )


def test_settings_accept_what_the_containers_get(monkeypatch: pytest.MonkeyPatch) -> None:
    given = env_file(".env.api.dev") | {
        name: by_default(value) for name, value in SERVICES["api"]["environment"].items()
    }
    for name in Settings.model_fields:
        monkeypatch.delenv(name.upper(), raising=False)
    for name, value in given.items():
        monkeypatch.setenv(name, value or "")
    settings = Settings()
    assert settings.api_host == "0.0.0.0"
    assert {url.rpartition(":")[0] for url in settings.triton_urls} == {"triton", "tunnel"}


def test_the_database_outlives_its_container() -> None:
    assert SERVICES["db"]["volumes"] == ["postgres:/var/lib/postgresql"]
    assert "postgres" in COMPOSE["volumes"]


def test_no_secret_but_the_development_password_is_committed() -> None:
    for name in ("HF_TOKEN", "VAST_SSH_HOST"):
        values = [service.get("environment", {}).get(name) for service in SERVICES.values()]
        assert not any(by_default(value) for value in values if value is not None)
    assert SERVICES["tunnel"]["secrets"] == ["vast_ssh_key"]


def test_the_tunnel_checks_the_host_and_notices_a_dead_connection() -> None:
    command = SERVICES["tunnel"]["command"][-1]
    for option in (
        "BatchMode=yes",
        "ExitOnForwardFailure=yes",
        "IdentitiesOnly=yes",
        "StrictHostKeyChecking=accept-new",
        "HostKeyAlias=",
        "ServerAliveInterval=",
    ):
        assert f"-o {option}" in command
    assert re.findall(r"-L 0\.0\.0\.0:(\d+):127\.0\.0\.1:(\d+)", command) == [
        ("8000", "8000"),
        ("8001", "8001"),
        ("8002", "8002"),
    ]


def test_the_controller_has_what_it_runs_and_is_reached_by_its_name() -> None:
    """ssh and rsync, the clouds' clients, its definitions, a folder to write to, and an address for its tunnels."""
    dockerfile = (ROOT / "Dockerfile").read_text()
    stage = dockerfile[dockerfile.index(" AS capacity") : dockerfile.index(" AS app")]
    for needed in ("openssh-client", "rsync", "requirements-capacity.txt", "COPY nvidia_triton", "COPY migrations"):
        assert needed in stage
    assert re.search(r"^USER [1-9]\d*:[1-9]\d*$", stage, re.MULTILINE)
    (command,) = re.findall(r"^CMD (.*)$", stage, re.MULTILINE)
    assert json.loads(command) == ["python", "-m", "app.capacity"]
    locked = (ROOT / "requirements-capacity.txt").read_text()
    packages = dict(re.findall(r"^([a-z0-9-]+)==(\S+)", locked, re.MULTILINE))
    assert {"vastai", "boto3", "pyyaml", "asyncpg"} <= packages.keys()
    of_app = dict(re.findall(r"^([a-z0-9-]+)==(\S+)", (ROOT / "requirements.txt").read_text(), re.MULTILINE))
    assert of_app.items() <= packages.items()
    service = SERVICES["capacity"]
    assert service["environment"]["CAPACITY_ADDRESS"] == "capacity"
    (folder,) = re.findall(r"^ENV LOCAL_DIR=(\S+)$", stage, re.MULTILINE)
    assert any(each.endswith(f":{folder}") for each in service["volumes"])
    assert service["environment"]["SSH_KEY"] == f"/run/secrets/{service['secrets'][0]}"


def test_the_image_is_not_root_and_installs_only_what_is_locked() -> None:
    dockerfile = (ROOT / "Dockerfile").read_text()
    app = dockerfile[dockerfile.index(" AS app") :]
    assert re.search(r"^USER [1-9]\d*:[1-9]\d*$", app, re.MULTILINE)
    assert "--require-hashes" in app
    assert "--no-deps" in app
    assert 'CMD ["python", "-m", "app.main"]' in app


def test_the_build_context_holds_nothing_private() -> None:
    ignored = (ROOT / ".dockerignore").read_text().split()
    assert ignored[0] == "*"
    assert set(ignored[1:]) == {
        *("!requirements.txt", "!requirements-capacity.txt", "!alembic.ini", "!migrations"),
        *("!app", "!nvidia_triton", "!models", "**/__pycache__"),
    }
