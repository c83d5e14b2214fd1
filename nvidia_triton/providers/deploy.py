"""Takes a host from its first SSH login to models that serve: the library's steps in a thread, watched and ended."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import cast

from nvidia_triton.engine_arguments import vllm_of_image
from nvidia_triton.hub import source
from nvidia_triton.providers.base import Address, DeployFailed, Progress, Refused, Step
from nvidia_triton.providers.hosts import context_of, ssh_host
from nvidia_triton.vast import deploy as models_of
from nvidia_triton.vast import remote, repository, ssh
from nvidia_triton.vast.context import Context, Host
from nvidia_triton.vast.definition import InstanceDefinition
from nvidia_triton.vast.errors import TargetError
from nvidia_triton.vast.settings import VastSettings
from nvidia_triton.vast.work import Cancelled, Line, Work

# Of what moves all the time.
REPORT_SECONDS = 1.0


async def deploy(
    address: Address,
    definition: InstanceDefinition,
    models: Sequence[str],
    progress: Callable[[Progress], None],
    *,
    settings: VastSettings,
) -> None:
    """See `base.Deploy`."""
    loop = asyncio.get_running_loop()

    def report(event: Progress) -> None:
        loop.call_soon_threadsafe(progress, event)

    work = _ReportedWork(report)
    context = context_of(definition, settings, work)
    executor = ThreadPoolExecutor(1, f"deploy {address.name}")
    running = loop.run_in_executor(executor, _deploy, context, ssh_host(address, definition), models)
    try:
        await asyncio.shield(running)
    except asyncio.CancelledError:
        work.cancel()
        # Its programs are killed, so it ends at once; nothing of it is to be at work on the host afterwards.
        while not running.done():
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.wait({running})
        running.exception()
        raise
    except models_of.NotLoaded as error:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in error.reasons.items())
        raise DeployFailed(
            "load model", f"Not loaded on {address.name}: {reasons}", of_model=next(iter(error.reasons))
        ) from None
    except _ModelsUnusable as error:
        raise DeployFailed("preflight", str(error), of_model=models[0]) from None
    except TargetError as error:
        raise DeployFailed(work.step, settings.redact(str(error))) from None
    finally:
        executor.shutdown(wait=False)


async def check_models(definition: InstanceDefinition, models: Sequence[str], *, settings: VastSettings) -> None:
    """Looks whether they could be deployed to a host, before one is paid for.

    Raises:
        Refused: not to any; every problem is named.
    """
    try:
        await asyncio.to_thread(_validate, settings, models, definition.query.num_gpus, definition.image.name)
    except TargetError as error:
        raise Refused(str(error)) from None


def weights_of(models: Sequence[str], *, settings: VastSettings) -> str:
    """Where the models' weights are from: `owner/name`, with the revision where that is known; none where it is not."""
    found = (_weights(settings.root / "models" / model) for model in models)
    return ", ".join(each for each in found if each)


def _weights(folder: Path) -> str:
    try:
        if (files := source.read(folder)) is not None:
            return f"{files.repository}@{files.revision}"
        for file in folder.glob("[0-9]*/model.json"):
            return str(json.loads(file.read_text(encoding="utf-8"))["model"])
    except (source.SourceProblem, OSError, ValueError, KeyError, TypeError):
        return ""
    return ""


class _ModelsUnusable(TargetError):
    """Found before anything is done on the host."""


def _validate(settings: VastSettings, models: Sequence[str], num_gpus: int, image: str) -> None:
    repository.validate(settings.root / "models", models, num_gpus=num_gpus, vllm=vllm_of_image(image))


def _deploy(context: Context, host: Host, models: Sequence[str]) -> None:
    try:
        _validate(context.settings, models, host.num_gpus, host.image)
    except TargetError as error:
        raise _ModelsUnusable(str(error)) from None
    with contextlib.suppress(Cancelled):
        context.work.begins("ssh")
        ssh.connect(context, host, context.definition.deadline_minutes.ssh * 60)
        remote.run_tritonserver(context, host)
        models_of.deploy(context, host, models)


class _ReportedWork(Work):
    """Reports what moves as `Progress`."""

    def __init__(self, report: Callable[[Progress], None]) -> None:
        super().__init__()
        self._report = report
        self.step: Step = "ssh"

    def begins(self, step: str) -> None:
        self.step = cast("Step", step)
        self._report(Progress(self.step, step))

    def say(self, text: str) -> None:
        self._report(Progress(self.step, text))

    @contextlib.contextmanager
    def progress(self, text: str) -> Iterator[Line]:
        self._report(Progress(self.step, text))
        yield _ReportedLine(lambda *fields: self._report(Progress(self.step, *fields)))


class _ReportedLine(Line):
    def __init__(self, report: Callable[[str, float | None, int | None], None]) -> None:
        super().__init__()
        self._report = report
        self._last: tuple[float | None, int | None, str] = (None, None, "")
        self._reported = 0.0

    def update(self, text: str, *, percent: float | None = None, bytes: int | None = None, moved: str = "") -> None:
        now = (percent, bytes, moved)
        if now != self._last and time.monotonic() - self._reported >= REPORT_SECONDS:
            self._last, self._reported = now, time.monotonic()
            self._report(text, percent, bytes)
