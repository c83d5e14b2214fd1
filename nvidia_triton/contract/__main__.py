"""Checks whether a Triton server's vLLM model does what this service expects: `make check-contract-tritonserver`.

URL is its gRPC address, MODEL a model that generates text, RELOAD=1 also unloads and loads that model.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Sequence
from contextlib import nullcontext

import grpc
from rich.console import Console
from tritonclient.grpc import aio as triton
from tritonclient.utils import InferenceServerException

from nvidia_triton.contract import lifecycle, refusals, report, texts
from nvidia_triton.contract.probe import Outcome, Probe, Subject, carry_out

PROBES: tuple[Probe, ...] = (*texts.PROBES, *refusals.PROBES, *lifecycle.PROBES)
DEFAULT_URL = "127.0.0.1:8001"
DEFAULT_MODEL = "demo"
# Of a model that generates text, whatever its backend is called.
INPUTS = {"text_input", "sampling_parameters"}
ANSWER_SECONDS = 10.0
INTERRUPTED = 130


class Unusable(Exception):
    """There is nothing to check; the text says why and what to do."""


async def outcomes(subject: Subject, probes: Sequence[Probe], console: Console | None = None) -> list[Outcome]:
    """Carries out the probes one after the other and tells `console` how far it is."""
    found = []
    with console.status("") if console and console.is_terminal else nullcontext() as status:
        for number, probe in enumerate(probes, 1):
            if status is not None:
                status.update(f"{number} of {len(probes)}: {probe.name}")
            found.append(await carry_out(probe, subject))
            if console and not console.is_terminal:
                console.print(f"{number} of {len(probes)}: {probe.name}: {found[-1].verdict}", markup=False)
    return found


async def choose_model(client: triton.InferenceServerClient, url: str, wanted: str) -> str:
    """The model to ask.

    Raises:
        Unusable: the server does not answer, or which model is meant is not clear.
    """
    try:
        index = await client.get_model_repository_index(client_timeout=ANSWER_SECONDS)
    except InferenceServerException as error:
        raise Unusable(
            f"No Triton answers over gRPC at {url} ({_reason(error)}). Start one with `make run`, bring up the tunnel "
            "to a rented one with `make ssh-tunnels-tritonserver`, or name the gRPC address of another: URL=host:8001."
        ) from None
    ready = sorted(each.name for each in index.models if each.state == "READY")
    if wanted and wanted not in ready:
        raise Unusable(
            f"{url} has no ready model {wanted!r}; ready are: {', '.join(ready) or 'none'}. Name one in MODEL."
        )
    usable = []
    for name in [wanted] if wanted else ready:
        metadata = await client.get_model_metadata(name, as_json=True, client_timeout=ANSWER_SECONDS)
        if {each["name"] for each in metadata.get("inputs", [])} >= INPUTS:
            usable.append(name)
    if not usable:
        names = wanted or ", ".join(ready) or "none"
        raise Unusable(
            f"{url} has no ready model that takes {' and '.join(sorted(INPUTS))} (ready: {names}): deploy one with "
            'backend: "vllm", e.g. models/demo.'
        )
    if len(usable) > 1 and DEFAULT_MODEL not in usable:
        raise Unusable(f"{url} has several models: {', '.join(usable)}. Say which: MODEL={usable[0]}.")
    return DEFAULT_MODEL if DEFAULT_MODEL in usable else usable[0]


def _reason(error: InferenceServerException) -> str:
    return (error.message() or "no reason given").splitlines()[0][:200]


def metrics_url(url: str, port: str) -> str:
    """Where the server shows its metrics: on the port after that of gRPC, unless another is named.

    Raises:
        Unusable: the address is not one.
    """
    host, _, grpc_port = url.rpartition(":")
    if not host or not grpc_port.isdigit():
        raise Unusable(f"URL={url} is not a gRPC address: give host:port, e.g. URL={DEFAULT_URL}.")
    if port and not port.isdigit():
        raise Unusable(f"METRICS_PORT={port} is not a port.")
    return f"http://{host}:{port or int(grpc_port) + 1}/metrics"


def wants_reload(answer: str, model: str) -> bool:
    """RELOAD decides; on a terminal without it, a question does."""
    if answer:
        return answer != "0"
    if not sys.stdin.isatty() or not sys.stdout.isatty():
        return False
    question = f"Also unload {model} and load it again? For that time it serves nobody. [y/N] "
    return input(question).strip().lower() in ("y", "yes")


async def check(console: Console) -> int:
    """0 when the service can use the server, 1 when something that it needs is broken."""
    port = os.environ.get("TRITON_GRPC_PORT") or DEFAULT_URL.rpartition(":")[2]
    url = os.environ.get("URL") or f"127.0.0.1:{port}"
    named = os.environ.get("METRICS_PORT") or (
        "" if os.environ.get("URL") else os.environ.get("TRITON_METRICS_PORT", "")
    )
    metrics = metrics_url(url, named)
    async with triton.InferenceServerClient(url) as client:
        model = await choose_model(client, url, os.environ.get("MODEL", ""))
        reload = wants_reload(os.environ.get("RELOAD", ""), model)
        found = await outcomes(
            Subject(client, model, metrics), (*PROBES, *lifecycle.RELOAD) if reload else PROBES, console
        )
    report.show(console, found, f"{model} at {url}")
    return int(any(each.harmful for each in found))


def main() -> int:
    console = Console()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        return asyncio.run(check(console))
    except Unusable as error:
        print(error, file=sys.stderr)
    except (InferenceServerException, grpc.RpcError) as error:
        reason = _reason(error) if isinstance(error, InferenceServerException) else str(error).splitlines()[0]
        print(f"The server stopped answering: {reason}", file=sys.stderr)
    except KeyboardInterrupt:
        return INTERRUPTED
    return 1


if __name__ == "__main__":
    sys.exit(main())
