"""The probes of `make check-contract-tritonserver` on the simulation, and their table in docs/models.md."""

import os
import subprocess
import sys

import pytest

from nvidia_triton.contract.__main__ import PROBES, Unusable, choose_model, metrics_url
from nvidia_triton.contract.probe import Broken, Differs, Outcome, Probe, Subject, Unseen, Verdict, carry_out
from nvidia_triton.contract.report import summary
from nvidia_triton.contract.wire import Client
from tests.servers import RunningTriton

from .verdicts import ALL, assert_as_documented, documented


@pytest.fixture(scope="module")
def subject(client: Client, server: RunningTriton) -> Subject:
    return Subject(client.grpc, "chat", server.metrics_url)


async def test_the_simulation_does_what_the_document_says(subject: Subject) -> None:
    await assert_as_documented(subject, "simulation")


def test_the_document_says_what_the_service_does() -> None:
    assert documented("what the service does") == {probe.name: probe.service for probe in ALL}


async def test_what_a_probe_raises_is_its_outcome(subject: Subject) -> None:
    async def outcome(error: Exception) -> Outcome:
        async def run(_: Subject) -> str:
            raise error

        return await carry_out(Probe("p", "s", run), subject)

    assert (await outcome(Differs("a"))).verdict is Verdict.DIFFERS
    assert (await outcome(Unseen("a"))).verdict is Verdict.UNSEEN
    assert (await outcome(Broken("a"))).harmful
    assert (await outcome(KeyError("logprobs"))).seen == "'logprobs'"


async def test_what_is_broken_and_not_needed_harms_nobody(subject: Subject) -> None:
    async def run(_: Subject) -> str:
        raise Broken("no")

    unused = await carry_out(Probe("unused", "s", run, needed=False), subject)
    used = await carry_out(Probe("used", "s", run), subject)
    assert summary([unused]) == "1 broken. This service does not use what is broken."
    assert summary([unused, used]) == "2 broken. This service needs what is broken here: used."


async def test_which_model_is_asked(subject: Subject, server: RunningTriton) -> None:
    assert await choose_model(subject.grpc, server.grpc_url, "noop") == "noop"
    with pytest.raises(Unusable, match=r"has several models: .*Say which: MODEL="):
        await choose_model(subject.grpc, server.grpc_url, "")
    with pytest.raises(Unusable, match="has no ready model 'nobody'; ready are: "):
        await choose_model(subject.grpc, server.grpc_url, "nobody")


@pytest.mark.parametrize(
    ("url", "port", "expected"),
    [("10.0.0.1:8001", "", "http://10.0.0.1:8002/metrics"), ("[::1]:8001", "9", "http://[::1]:9/metrics")],
)
def test_where_the_metrics_are(url: str, port: str, expected: str) -> None:
    assert metrics_url(url, port) == expected


@pytest.mark.parametrize(("url", "port"), [("here", ""), ("here:grpc", ""), ("here:8001", "x")])
def test_addresses_that_are_none(url: str, port: str) -> None:
    with pytest.raises(Unusable):
        metrics_url(url, port)


def check(**variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "nvidia_triton.contract"],
        env={**os.environ, "COLUMNS": "300", **variables},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
        stdin=subprocess.DEVNULL,
    )


def test_the_command_without_a_server() -> None:
    done = check(URL="127.0.0.1:9")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("No Triton answers over gRPC at 127.0.0.1:9 (")
    assert "make run" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_command_on_the_http_port(server: RunningTriton) -> None:
    done = check(URL=server.http_url.removeprefix("http://"))
    assert done.returncode == 1
    assert done.stderr.startswith("No Triton answers over gRPC at ")


def test_the_command_on_a_server(server: RunningTriton) -> None:
    done = check(URL=server.grpc_url, MODEL="noop", METRICS_PORT=str(server.server.metrics_port))
    assert done.stderr == ""
    assert f"{len(PROBES)} of {len(PROBES)}: cancel, unstreamed: not seen" in done.stdout
    assert "REPORT_CUSTOM_METRICS" in " ".join(done.stdout.split())
    broken = "This service needs what is broken here" in done.stdout
    assert done.returncode == int(broken)
