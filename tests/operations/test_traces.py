"""One trace from a request over the queue to the engine, sent to a receiver that decodes it."""

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import asyncpg
import httpx
import pytest

from app.config import Settings, SettingsError, load_settings
from nvidia_triton.local.settings import free_ports
from nvidia_triton.local.triton import TritonServer
from tests.operations.receiver import Received, Receiver
from tests.servers import TEST_MODELS, RunningTriton
from tests.service import Process, Service, eventually

# Of the streams of any client, Triton loses the traceparent of one in 200, and starts a trace of its own.
TRACES = ("0af7651916cd43dd8448eb211c80319c", "5" * 32, "6" * 32, "7" * 32)
PARENT = "b7ad6b7169203331"
SERVER, CLIENT, CONSUMER = 2, 3, 5
# Spans are sent soon, so that no test waits for them.
QUICK = {"OTEL_BSP_SCHEDULE_DELAY": "100"}


@pytest.fixture(scope="module")
def receiver() -> Iterator[Receiver]:
    with Receiver() as running:
        yield running


@dataclass(frozen=True)
class TracingTriton(TritonServer):
    """A tritonserver that sends spans of its own."""

    receiver_url: str = ""

    def command(self) -> list[str]:
        settings = ("mode=opentelemetry", "rate=1", "level=TIMESTAMPS")
        url = f"opentelemetry,url={self.receiver_url}/v1/traces"
        batch = "opentelemetry,bsp_schedule_delay=100"
        return [*super().command(), *(f"--trace-config={each}" for each in (*settings, url, batch))]


@pytest.fixture(scope="module")
def tracing_triton(receiver: Receiver, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningTriton]:
    http, grpc, metrics = free_ports(3)
    folder = tmp_path_factory.mktemp("tracing-triton")
    server = RunningTriton(
        TracingTriton(
            model_repository=TEST_MODELS,
            work_dir=folder,
            http_port=http,
            grpc_port=grpc,
            metrics_port=metrics,
            models=("tiny",),
            receiver_url=receiver.url,
        )
    )
    server.start()
    yield server
    server.stop()


@asynccontextmanager
async def processes(settings: Settings, folder: Path, **environment: str) -> AsyncIterator[Service]:
    """The API and a dispatcher as they are started in production."""
    (port,) = free_ports(1)
    settings = settings.model_copy(update={"api_port": port})
    async with (
        Process("app.main", settings, folder / "api.log", **environment),
        Process("app.worker", settings, folder / "dispatcher.log", **environment),
        httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=70, trust_env=False) as client,
    ):

        async def ready() -> bool:
            try:
                models = (await client.get("/models/")).json()
            except httpx.HTTPError:
                return False
            return any(model["name"] == "tiny" and model["state"] == "ready" for model in models)

        await eventually(ready, "the API knows the model", 90, pause=0.2)
        yield Service(client, settings)


async def spans_of(receiver: Receiver, trace_id: str, names: set[str]) -> dict[str, Received]:
    async def all_there() -> dict[str, Received] | None:
        spans = {span.name: span for span in receiver.of(trace_id)}
        return spans if names <= set(spans) else None

    try:
        found: dict[str, Received] = await eventually(all_there, f"spans {names}", 90)
    except AssertionError:
        raise AssertionError([span.name for span in receiver.of(trace_id)]) from None
    return found


async def engine_span(receiver: Receiver, id_: str) -> Received:
    async def there() -> Received | None:
        return next((span for span in receiver.spans if span.attributes.get("triton.request_id") == id_), None)

    found: Received = await eventually(there, "the engine's span, in whichever trace", 90)
    return found


async def send(service: Service, context: str, trace_id: str, **options: object) -> str:
    answer = await service.client.post(
        f"/models/send/tiny/{context}",
        json=options,
        headers={"traceparent": f"00-{trace_id}-{PARENT}-01", "tracestate": "vendor=1"},
    )
    assert answer.status_code == 202, answer.text
    return str(answer.json()["result_id"])


async def test_one_trace_from_the_request_to_the_engine(
    make_settings: Callable[..., Settings], tracing_triton: RunningTriton, receiver: Receiver, tmp_path: Path
) -> None:
    settings = make_settings(triton_urls=(tracing_triton.grpc_url,))
    variables = {"OTEL_EXPORTER_OTLP_ENDPOINT": receiver.url, "OTEL_EXPORTER_OTLP_HEADERS": "x-team=blue", **QUICK}
    async with processes(settings, tmp_path, **variables) as service:
        context = await service.context("A prompt.")
        parameters = {"max_tokens": 8, "ignore_eos": True}
        route = "POST /models/send/{model_name}/{context_id}"
        ours = {route, "queue tiny", "attempt tiny", "text_completion tiny"}
        for trace in TRACES:
            id_ = await send(service, context, trace, parameters=parameters, stream=True)
            await service.settled(id_)
            spans = await spans_of(receiver, trace, ours)
            engine = await engine_span(receiver, id_)
            if engine.trace_id == trace:
                break
        request, queue, attempt, generation = (
            spans[name] for name in (route, "queue tiny", "attempt tiny", "text_completion tiny")
        )
        assert (request.service, request.kind, request.parent_id) == ("tickets-api", SERVER, PARENT)
        assert request.attributes["http.response.status_code"] == 202
        assert (attempt.service, attempt.kind, attempt.parent_id) == ("tickets-dispatcher", CONSUMER, request.span_id)
        assert queue.parent_id == request.span_id
        assert queue.seconds >= 0
        assert attempt.attributes["tickets.result_id"] == id_
        assert attempt.attributes["tickets.attempt"] == 1
        assert attempt.attributes["tickets.outcome"] == "completed"
        assert attempt.attributes["gen_ai.usage.output_tokens"] == 8
        assert attempt.events == ["end"]
        assert (generation.kind, generation.parent_id) == (CLIENT, attempt.span_id)
        assert generation.events == ["gen_ai.first_token"]
        assert generation.attributes["gen_ai.request.max_tokens"] == 8
        assert generation.attributes["server.port"] == int(tracing_triton.grpc_url.rsplit(":")[-1])
        # What the engine says itself: it goes on with the trace.
        assert engine.service not in ("tickets-api", "tickets-dispatcher")
        assert generation.span_id in {span.parent_id for span in receiver.of(trace) if span.service == engine.service}
        ours = [headers for headers in receiver.headers if "x-team" in headers]
        assert ours[0]["x-team"] == "blue"
        assert not [span for span in receiver.spans if "/health" in span.name or "/metrics" in span.name]

        # A retry is a request of its own, with a trace of its own that is linked to the first.
        second = "1" * 32
        answer = await service.client.post(f"/results/{id_}/retry", headers={"traceparent": f"00-{second}-{PARENT}-01"})
        await service.settled(answer.json()["result_id"])
        spans = await spans_of(receiver, second, {"POST /results/{result_id}/retry", "attempt tiny"})
        assert spans["POST /results/{result_id}/retry"].links == [trace]

        # A failure says so; each try is beside the other.
        third = "2" * 32
        broken = await send(service, await service.context("[[sim:error=invalid]] x"), third)

        def tries() -> list[Received]:
            return [span for span in receiver.of(third) if span.name == "attempt tiny"]

        async def failed() -> bool:
            return any(span.failed for span in tries())

        await eventually(failed, "a failed attempt")
        assert tries()[0].attributes["error.type"]
        await service.client.post(f"/results/{broken}/cancel")

        # A client that does not want to be sampled is not.
        unsampled = "3" * 32
        answer = await service.client.post(
            f"/models/send/tiny/{context}", json={}, headers={"traceparent": f"00-{unsampled}-{PARENT}-00"}
        )
        await service.settled(answer.json()["result_id"])
        last = "4" * 32
        await service.settled(await send(service, context, last))
        await spans_of(receiver, last, {"attempt tiny"})
        # Triton samples by its own rate, whatever it is told.
        assert [span for span in receiver.of(unsampled) if span.service.startswith("tickets-")] == []
    connection = await asyncpg.connect(settings.database_url)
    stored = await connection.fetchval("SELECT trace_parent FROM results WHERE id = $1", id_)
    await connection.close()
    assert stored == f"00-{trace}-{request.span_id}-01"


async def test_standard_variables_rule(
    make_settings: Callable[..., Settings], triton: RunningTriton, receiver: Receiver, tmp_path: Path
) -> None:
    """And a receiver that is away slows nothing down and fails nothing."""
    settings = make_settings()
    (nobody,) = free_ports(1)
    variables = {"OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{nobody}", **QUICK}
    async with processes(settings, tmp_path, **variables) as service:
        context = await service.context("A prompt.")
        results = await asyncio.gather(*(service.send(context) for _ in range(30)))
        for id_ in results:
            assert (await service.settled(id_))["status"] == "completed"
    log = (tmp_path / "api.log").read_text() + (tmp_path / "dispatcher.log").read_text()
    assert "Traceback" not in log


@pytest.mark.parametrize(
    ("variable", "value", "said"),
    [
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc", "http/protobuf alone"),
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/json", "http/protobuf alone"),
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "collector:4318", "is no URL"),
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://", "is no URL"),
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://collector:port", "is no URL"),
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "grpc://collector:4317", "is no URL"),
    ],
)
def test_what_takes_no_traces_is_refused_at_the_start(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str, said: str
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:4318")
    assert load_settings().otel_exporter_otlp_endpoint
    monkeypatch.setenv(variable, value)
    with pytest.raises(SettingsError, match=f"{variable} is .*{said.removeprefix('is ')}"):
        load_settings()


def test_it_is_off_and_not_imported_by_default() -> None:
    """Nor do the names of other variables turn it on."""
    code = (
        "import sys, app.main, app.worker\n"
        "from app.telemetry import tracing\n"
        "tracing.start('x', None)\n"
        "assert tracing.current() is None and tracing.outgoing() == {}\n"
        "sent_by = ('opentelemetry.sdk', 'opentelemetry.exporter', 'requests')\n"
        "print(sorted(name for name in sys.modules if name.startswith(sent_by)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={"PATH": "", "OTEL_SERVICE_NAME": "x", "DATABASE_URL": "postgresql://u:p@h/d"},
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"
