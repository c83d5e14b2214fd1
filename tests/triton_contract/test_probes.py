"""The probes of `make check-contract-tritonserver` on the simulation, and their table in docs/models.md."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import pytest_asyncio

from nvidia_triton.contract.__main__ import PROBES, Unusable, choose_model, metrics_url, outcomes
from nvidia_triton.contract.lifecycle import RELOAD
from nvidia_triton.contract.probe import Broken, Differs, Outcome, Probe, Subject, Unseen, Verdict, carry_out
from nvidia_triton.contract.report import summary
from tests.servers import RunningTriton

DOCUMENT = Path(__file__).parents[2] / "docs" / "models.md"
ALL = (*PROBES, *RELOAD)


def documented(column: int) -> dict[str, str]:
    """Verdicts of one column of the table, by probe."""
    rows = [line.split("|") for line in table_rows()]
    return {row[1].strip(): row[column].strip() for row in rows}


def table_rows() -> list[str]:
    """The lines of the table from its head on."""
    _, _, table = DOCUMENT.read_text().partition("\n| probe |")
    return ["| probe |" + table.split("\n\n")[0].splitlines()[0], *table.split("\n\n")[0].splitlines()[2:]]


@pytest.fixture(scope="module")
def subject(client: object, server: RunningTriton) -> Subject:
    return Subject(client.grpc, "chat", server.metrics_url)  # type: ignore[attr-defined]


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def found(subject: Subject) -> dict[str, Outcome]:
    return {each.probe.name: each for each in await outcomes(subject, ALL)}


@pytest.mark.parametrize("probe", ALL, ids=lambda probe: probe.name)
async def test_the_documented_verdict_is_the_one_found(probe: Probe, found: dict[str, Outcome]) -> None:
    assert str(found[probe.name].verdict) == documented(2)[probe.name], found[probe.name].seen


async def test_the_document_names_what_the_service_does() -> None:
    assert [line.split("|")[1].strip() for line in table_rows()[1:]] == [probe.name for probe in ALL]
    assert [line.split("|")[-2].strip() for line in table_rows()[1:]] == [probe.service for probe in ALL]


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
