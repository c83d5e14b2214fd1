"""The manifests against the schemas of Kubernetes, against the settings, the image and the database they run with."""

import os
import re
import shutil
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import asyncpg
import kubernetes_validate
import pytest
import yaml
from pydantic import BaseModel, ConfigDict

from app.capacity.pools import load_pools
from app.config import Settings, SettingsError, load_settings
from app.db.ids import uuid7
from app.main import GRACEFUL_SECONDS
from nvidia_triton.providers.registry import open_definition

ROOT = Path(__file__).parents[2]
BASE = ROOT / "deploy" / "kubernetes" / "base"
KEDA = ROOT / "deploy" / "kubernetes" / "keda"
CAPACITY = ROOT / "deploy" / "kubernetes" / "capacity"
OLDEST, NEWEST = "1.30", "1.37"

Manifest = dict[str, Any]


def manifests(folder: Path) -> Iterator[Manifest]:
    for path in sorted(folder.glob("*.yaml")):
        if path.name != "kustomization.yaml":
            yield from yaml.safe_load_all(path.read_text())


def name_of(manifest: Manifest) -> str:
    return f"{manifest['kind']}-{manifest['metadata']['name']}"


IN_BASE = {name_of(manifest): manifest for manifest in manifests(BASE)}
IN_CAPACITY = {name_of(manifest): manifest for manifest in manifests(CAPACITY)}
IN_KEDA = {name_of(manifest): manifest for manifest in manifests(KEDA)}
WORKLOADS = ("Job-migrate", "Deployment-api", "Deployment-dispatcher")
SETTINGS: dict[str, str] = IN_BASE["ConfigMap-tickets-settings"]["data"]
SECRET: dict[str, str] = IN_BASE["Secret-tickets-database"]["stringData"]
SCALED = IN_KEDA["ScaledObject-dispatcher"]["spec"]
TRIGGER: dict[str, str] = SCALED["triggers"][0]["metadata"]
DOCKERFILE = (ROOT / "Dockerfile").read_text()
COMPOSE = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]


def pod(name: str) -> Manifest:
    found: Manifest = IN_BASE[name]["spec"]["template"]["spec"]
    return found


def container(name: str) -> Manifest:
    (found,) = pod(name)["containers"]
    return dict(found)


@pytest.mark.parametrize("version", [OLDEST, NEWEST])
@pytest.mark.parametrize("name", [*IN_BASE, *IN_CAPACITY])
def test_follows_the_schema(name: str, version: str) -> None:
    kubernetes_validate.validate((IN_BASE | IN_CAPACITY)[name], version, strict=True)


def test_the_schema_check_sees_a_misspelt_field() -> None:
    wrong = {**IN_BASE["Service-api"], "spec": {"selectors": {}}}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(wrong, NEWEST, strict=True)


class Kind(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class Name(Kind):
    name: str


class Policy(Kind):
    type: Literal["Pods", "Percent"]
    value: int
    periodSeconds: int


class Scaling(Kind):
    stabilizationWindowSeconds: int
    policies: list[Policy]


class Behavior(Kind):
    scaleDown: Scaling


class Autoscaler(Kind):
    behavior: Behavior


class Advanced(Kind):
    horizontalPodAutoscalerConfig: Autoscaler


class PostgresqlMetadata(Kind):
    query: str
    targetQueryValue: str


class Trigger(Kind):
    type: Literal["postgresql"]
    authenticationRef: Name
    metadata: PostgresqlMetadata


class ScaledObjectSpec(Kind):
    """Those fields of the KEDA 2 CRD that are used; https://keda.sh/docs/latest/reference/scaledobject-spec/"""

    scaleTargetRef: Name
    pollingInterval: int
    minReplicaCount: int
    maxReplicaCount: int
    advanced: Advanced
    triggers: list[Trigger]


class SecretTarget(Kind):
    parameter: Literal["connection"]
    name: str
    key: str


class TriggerAuthenticationSpec(Kind):
    secretTargetRef: list[SecretTarget]


class ScaledObject(Kind):
    apiVersion: Literal["keda.sh/v1alpha1"]
    kind: Literal["ScaledObject"]
    metadata: Name
    spec: ScaledObjectSpec


class TriggerAuthentication(Kind):
    apiVersion: Literal["keda.sh/v1alpha1"]
    kind: Literal["TriggerAuthentication"]
    metadata: Name
    spec: TriggerAuthenticationSpec


def test_the_keda_objects_have_the_fields_of_their_crds() -> None:
    assert set(IN_KEDA) == {"TriggerAuthentication-tickets-database", "ScaledObject-dispatcher"}
    scaled = ScaledObject.model_validate(IN_KEDA["ScaledObject-dispatcher"])
    authentication = TriggerAuthentication.model_validate(IN_KEDA["TriggerAuthentication-tickets-database"])
    assert f"Deployment-{scaled.spec.scaleTargetRef.name}" in IN_BASE
    assert scaled.spec.triggers[0].authenticationRef.name == authentication.metadata.name
    (target,) = authentication.spec.secretTargetRef
    assert (target.name, target.key) == (IN_BASE["Secret-tickets-database"]["metadata"]["name"], *SECRET)
    assert scaled.spec.minReplicaCount <= scaled.spec.maxReplicaCount


@pytest.mark.parametrize("folder", [BASE, KEDA, CAPACITY])
def test_the_kustomization_lists_every_file_but_the_example(folder: Path) -> None:
    listed = yaml.safe_load((folder / "kustomization.yaml").read_text())["resources"]
    files = {path.name for path in folder.glob("*.yaml")} - {"kustomization.yaml", "secret.example.yaml"}
    assert {each for each in listed if not each.startswith("..")} == files
    assert all((folder / each).exists() for each in listed)


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="needs kubectl, which builds without a cluster")
def test_kustomize_builds_what_is_written() -> None:
    def built(folder: Path) -> dict[str, Manifest]:
        # No configuration: it must build here, and reach no cluster.
        environment = {"PATH": os.environ["PATH"], "KUBECONFIG": os.devnull}
        done = subprocess.run(
            ["kubectl", "kustomize", str(folder)], env=environment, capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 0, done.stderr
        return {name_of(manifest): manifest for manifest in yaml.safe_load_all(done.stdout)}

    base, keda = built(BASE), built(KEDA)
    assert set(base) == set(IN_BASE) - {"Secret-tickets-database"}
    assert set(keda) == set(base) | set(IN_KEDA)
    for manifest in base.values():
        kubernetes_validate.validate(manifest, NEWEST, strict=True)
    # Two that set the number of replicas would undo each other's work.
    assert "replicas" not in base["Deployment-api"]["spec"]
    assert "replicas" not in keda["Deployment-dispatcher"]["spec"]
    assert base["Deployment-dispatcher"]["spec"]["replicas"] == SCALED["minReplicaCount"]


def test_every_variable_is_a_setting() -> None:
    assert set(SETTINGS) | set(SECRET) <= {name.upper() for name in Settings.model_fields}
    for name in WORKLOADS:
        assert "env" not in container(name)
        assert container(name)["envFrom"] == [
            {"configMapRef": {"name": IN_BASE["ConfigMap-tickets-settings"]["metadata"]["name"]}},
            {"secretRef": {"name": IN_BASE["Secret-tickets-database"]["metadata"]["name"]}},
        ]


def test_settings_refuse_the_example_secret_and_accept_another(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in Settings.model_fields:
        monkeypatch.delenv(name.upper(), raising=False)
    for name, value in (SETTINGS | SECRET).items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SettingsError, match="password"):
        load_settings()
    monkeypatch.setenv("DATABASE_URL", SECRET["DATABASE_URL"].replace("changeme", "7VdR0zqk"))
    settings = load_settings()
    assert (settings.api_host, len(settings.triton_urls)) == ("0.0.0.0", 2)


def test_no_service_writes_into_the_settings() -> None:
    """Kubernetes would set API_PORT=tcp://... in every pod beside a Service named `api`."""
    for name in WORKLOADS:
        assert pod(name)["enableServiceLinks"] is False


def test_the_image_is_that_of_compose_and_of_this_version() -> None:
    for name, service in zip(WORKLOADS, ("migrate", "api", "dispatcher"), strict=True):
        assert container(name)["image"] == COMPOSE[service]["image"]
        assert container(name).get("command") == COMPOSE[service].get("command")
    (image,) = yaml.safe_load((BASE / "kustomization.yaml").read_text())["images"]
    assert image["name"] == COMPOSE["api"]["image"]
    assert image["newTag"] == tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]


def test_the_ports_are_those_of_the_image_and_the_settings() -> None:
    (exposed,) = re.findall(r"^EXPOSE (\d+)$", DOCKERFILE, re.MULTILINE)
    (http,) = container("Deployment-api")["ports"]
    assert str(http["containerPort"]) == exposed == SETTINGS["API_PORT"]
    assert COMPOSE["api"]["ports"][0].endswith(f":{exposed}")
    (metrics,) = container("Deployment-dispatcher")["ports"]
    assert str(metrics["containerPort"]) == SETTINGS["DISPATCHER_METRICS_PORT"]
    (port,) = IN_BASE["Service-api"]["spec"]["ports"]
    assert port["targetPort"] == http["name"]


@pytest.mark.parametrize("name", WORKLOADS)
def test_runs_as_the_user_of_the_image_and_may_write_nothing(name: str) -> None:
    (user, group) = re.findall(r"^USER (\d+):(\d+)$", DOCKERFILE, re.MULTILINE)[-1]
    security = pod(name)["securityContext"]
    assert (security["runAsUser"], security["runAsGroup"]) == (int(user), int(group))
    assert security["runAsNonRoot"] is True
    assert security["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container(name)["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert pod(name)["automountServiceAccountToken"] is False
    assert container(name)["resources"]["limits"]["memory"]


def test_the_controller_of_hosts_is_reached_where_its_tunnels_listen_and_by_us_alone(tmp_path: Path) -> None:
    spec = IN_CAPACITY["Deployment-capacity"]["spec"]["template"]["spec"]
    (controller,) = spec["containers"]
    assert controller["image"] == COMPOSE["capacity"]["image"]
    assert "command" not in controller
    env = {each["name"]: each.get("value") or each["valueFrom"]["fieldRef"]["fieldPath"] for each in controller["env"]}
    assert env["CAPACITY_BIND"] == env["CAPACITY_ADDRESS"] == "status.podIP"
    assert {"CAPACITY_BIND", "CAPACITY_ADDRESS", "CAPACITY_DEFINITIONS"} <= {
        each.upper() for each in Settings.model_fields
    } & {*env}
    mounts = {each["name"]: each["mountPath"] for each in controller["volumeMounts"]}
    assert env["SSH_KEY"] == f"{mounts['ssh']}/id_ed25519"
    assert {"id_ed25519", "id_ed25519.pub"} == set(IN_CAPACITY["Secret-tickets-ssh"]["stringData"])
    (folder,) = re.findall(r"^ENV LOCAL_DIR=(\S+)$", DOCKERFILE, re.MULTILINE)
    assert mounts["state"] == folder
    # What is written as an example can be read as it stands.
    pools = tmp_path / Path(env["CAPACITY_DEFINITIONS"]).name
    pools.write_text(IN_CAPACITY["ConfigMap-tickets-pools"]["data"][pools.name])
    assert [pool.name for pool in load_pools([pools]).pools] == ["chat"]
    open_definition(pools)
    security = spec["securityContext"] | {"fsGroup": None}
    assert security == pod("Deployment-dispatcher")["securityContext"] | {"fsGroup": None}
    assert controller["securityContext"] == container("Deployment-dispatcher")["securityContext"]
    policy = IN_CAPACITY["NetworkPolicy-capacity"]["spec"]
    labels = IN_CAPACITY["Deployment-capacity"]["spec"]["template"]["metadata"]["labels"]
    assert policy["podSelector"]["matchLabels"].items() <= labels.items()
    (allowed,) = policy["ingress"][0]["from"]
    for name in WORKLOADS[1:]:
        assert (
            allowed["podSelector"]["matchLabels"].items()
            <= IN_BASE[name]["spec"]["template"]["metadata"]["labels"].items()
        )
    (image,) = yaml.safe_load((CAPACITY / "kustomization.yaml").read_text())["images"]
    assert image["name"] == controller["image"]


def test_an_api_has_memory_for_the_bodies_it_takes() -> None:
    """docs/scaling.md: 130 MiB + 3.5 x 17/16 x MAX_BODIES_BYTES."""
    (mebibytes,) = re.fullmatch(  # type: ignore[union-attr]
        r"(\d+)Mi", container("Deployment-api")["resources"]["limits"]["memory"]
    ).groups()
    bodies = Settings.model_fields["max_bodies_bytes"].default / 1024**2
    assert int(mebibytes) >= 130 + 3.5 * 17 / 16 * bodies
    assert "MAX_BODIES_BYTES" not in SETTINGS


def test_uploads_have_room_on_a_disk() -> None:
    """docs/scaling.md: SPOOL_BYTES, and four times the largest file for the batch that is loaded."""
    defaults = {name: Settings.model_fields[name].default for name in ("spool_bytes", "max_file_bytes")}
    (volume,) = pod("Deployment-api")["volumes"]
    assert container("Deployment-api")["volumeMounts"] == [{"name": volume["name"], "mountPath": "/tmp"}]
    # Without a medium it is on the node's disk.
    assert set(volume["emptyDir"]) == {"sizeLimit"}
    (gigabytes,) = re.fullmatch(r"(\d+)Gi", volume["emptyDir"]["sizeLimit"]).groups()  # type: ignore[union-attr]
    assert int(gigabytes) * 1024**3 >= defaults["spool_bytes"] + 4 * defaults["max_file_bytes"]
    assert not COMPOSE["api"]["tmpfs"]
    assert "uploads:/tmp" in COMPOSE["api"]["volumes"]


def test_the_chat_templates_are_in_the_image() -> None:
    (workdir,) = set(re.findall(r"^WORKDIR (\S+)$", DOCKERFILE, re.MULTILINE))
    folder = Settings.model_fields["model_repository"].default
    assert f"COPY {folder} {folder}\n" in DOCKERFILE
    assert f"./models:{workdir}/{folder}:ro" in COMPOSE["api"]["volumes"]
    assert "MODEL_REPOSITORY" not in SETTINGS


def test_the_image_has_one_numpy_and_no_package_for_machines_without_docker() -> None:
    packages = dict(re.findall(r"^([a-z0-9-]+)==(\S+)", (ROOT / "requirements.txt").read_text(), re.MULTILINE))
    assert packages["numpy"].startswith("2.")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    extras = project["project"]["optional-dependencies"]
    named = extras["local"] + extras["vast"] + project["dependency-groups"]["engine"]
    others = {re.split("[=<]", each)[0] for each in named} - {"numpy"}
    assert len(others) > 5
    assert not others & set(packages)
    assert "requirements-dev" not in DOCKERFILE
    assert "requirements-engine" not in DOCKERFILE


@pytest.mark.parametrize("name", ["api", "dispatcher"])
def test_selectors_match_the_labels_of_their_pods_alone(name: str) -> None:
    deployment = IN_BASE[f"Deployment-{name}"]["spec"]
    labels = deployment["template"]["metadata"]["labels"]
    selectors = [
        deployment["selector"]["matchLabels"],
        IN_BASE[f"PodDisruptionBudget-{name}"]["spec"]["selector"]["matchLabels"],
        *(each["labelSelector"]["matchLabels"] for each in pod(f"Deployment-{name}")["topologySpreadConstraints"]),
    ]
    if name == "api":
        selectors.append(IN_BASE["Service-api"]["spec"]["selector"])
        target = IN_BASE["HorizontalPodAutoscaler-api"]["spec"]["scaleTargetRef"]
        assert f"{target['kind']}-{target['name']}" == "Deployment-api"
    for selector in selectors:
        assert selector.items() <= labels.items()
        others = [IN_BASE[other]["spec"]["template"]["metadata"]["labels"] for other in WORKLOADS]
        assert [other for other in others if selector.items() <= other.items()] == [labels]


def test_probes_ask_what_there_is() -> None:
    api, dispatcher = container("Deployment-api"), container("Deployment-dispatcher")
    assert api["livenessProbe"]["httpGet"] == {"path": "/health/live", "port": "http"}
    assert api["readinessProbe"]["httpGet"] == {"path": "/health/ready", "port": "http"}
    assert dispatcher["livenessProbe"]["httpGet"] == {"path": "/metrics", "port": "metrics"}
    assert int(SETTINGS["DISPATCHER_METRICS_PORT"]) > 0


def test_a_stopping_pod_has_time_to_finish() -> None:
    grace = pod("Deployment-dispatcher")["terminationGracePeriodSeconds"]
    drain = float(SETTINGS["DRAIN_SECONDS"])
    # After the drain, five seconds for what is handed back and five to close the connections.
    assert grace >= drain + 10
    assert grace > Settings.model_fields["drain_seconds"].default
    command = container("Deployment-api")["lifecycle"]["preStop"]["exec"]["command"]
    assert command[0] == "sleep"
    assert pod("Deployment-api")["terminationGracePeriodSeconds"] > int(command[1]) + GRACEFUL_SECONDS


def test_the_connections_of_the_largest_deployment_fit_a_default_postgres() -> None:
    """max_connections is 100, three of them are the superuser's; see docs/scaling.md."""
    processes = IN_BASE["HorizontalPodAutoscaler-api"]["spec"]["maxReplicas"] + SCALED["maxReplicaCount"]
    surge = sum(
        IN_BASE[f"Deployment-{name}"]["spec"]["strategy"]["rollingUpdate"]["maxSurge"] for name in ("api", "dispatcher")
    )
    migration = 1
    assert (processes + surge) * (int(SETTINGS["DATABASE_POOL_SIZE"]) + 1) + migration <= 97


def test_the_largest_deployment_fills_an_engine_and_no_more() -> None:
    concurrency = int(SETTINGS["MODEL_CONCURRENCY"])
    assert float(TRIGGER["targetQueryValue"]) == concurrency * len(SETTINGS["TRITON_URLS"].split(","))
    model = (ROOT / "models" / "demo" / "1" / "model.json").read_text()
    (sequences,) = re.findall(r'"max_num_seqs": (\d+)', model)
    assert concurrency * SCALED["maxReplicaCount"] == int(sequences)


async def test_the_keda_query_counts_the_work_there_is(database_url: str) -> None:
    connection = await asyncpg.connect(database_url)

    async def counted() -> int:
        (row,) = await connection.fetch(TRIGGER["query"])
        (value,) = row
        assert type(value) is int
        return value

    async def add(**columns: str) -> None:
        names = "".join(f", {name}" for name in columns)
        values = "".join(f", {value}" for value in columns.values())
        await connection.execute(
            f"INSERT INTO results (id, context_id, model, parameters{names}) VALUES ($1, $2, 'tiny', '{{}}'{values})",
            uuid7(),
            context,
        )

    try:
        assert await counted() == 0
        context = uuid7()
        await connection.execute("INSERT INTO contexts (id, content) VALUES ($1, 'x')", context)
        later = "now() + interval '1 minute'"
        await add()
        assert await counted() == 1
        await add(available_at=later, attempt_token="gen_random_uuid()", attempt_started_at="now()")
        assert await counted() == 2, "what runs is work"
        await add(available_at=later)
        assert await counted() == 2, "what backs off is none yet"
        await add(status="'failed'", completed_at="now()", error_code="'x'", error_message="'x'")
        assert await counted() == 2, "what is final is none"
    finally:
        await connection.close()
