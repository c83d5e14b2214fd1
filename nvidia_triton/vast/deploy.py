"""Brings models to an instance and has Triton load them, one after the other."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from pathlib import Path

import httpx

from nvidia_triton.engine_arguments import vllm_of_image
from nvidia_triton.hub import source
from nvidia_triton.vast import model_files, repository, rsync, ssh
from nvidia_triton.vast.context import Context, Host
from nvidia_triton.vast.control import UNLOAD_SECONDS, Control, LoadFailed
from nvidia_triton.vast.errors import TargetError
from nvidia_triton.vast.forward import Busy, Forward
from nvidia_triton.vast.loading import engine_reason, load
from nvidia_triton.vast.remote_scripts import KEEP, LOCKED, RESTORE, RESTORED, STAGING, SURVEY, SWAP
from nvidia_triton.vast.repository import ModelFolder

# What the folders may take of the free disk; weights that the engine downloads come on top.
DISK_SHARE = 0.9
STEP_SECONDS = 600


@dataclass(frozen=True)
class Survey:
    """What the instance has. `digests` are those of served models that have loaded before."""

    live: bool
    rsync: bool
    free_bytes: int
    digests: dict[str, str]


class NotLoaded(TargetError):
    """Models that the engine does not load, with its reasons; the others serve."""

    def __init__(self, message: str, reasons: Mapping[str, str]) -> None:
        super().__init__(message)
        self.reasons = dict(reasons)


def deploy(context: Context, instance: Host, names: Sequence[str]) -> None:
    """Sends and loads the models `names`; one that is there, unchanged and ready, is left alone.

    Raises:
        TargetError: nothing was changed, or models failed, with the engine's reason; the others serve.
    """
    folders = repository.validate(
        context.settings.root / "models",
        names or None,
        num_gpus=instance.num_gpus or None,
        vllm=vllm_of_image(instance.image),
    )
    ssh.require_program("rsync", "rsync")
    busy = f"Another deployment to {instance.name} is at work: wait for its end."
    with context.state.locked(f"deploy-{instance.id}", busy=busy):
        for folder in folders:
            for warning in folder.warnings:
                context.work.say(f"note: {warning}")
        connection = ssh.connect(context, instance)
        try:
            with (
                # Another checkout may deploy too: two that send to one folder would leave a mixture of both.
                Forward(connection, context.definition.triton.ports.http, guard=LOCKED) as forward,
                Control(forward.port, context.work) as control,
            ):
                survey = _survey(connection, folders)
                fetched = model_files.fetch(connection, folders)
                failed = _Deployment(connection, forward, control, survey).run(folders, fetched)
        except Busy:
            raise TargetError(busy) from None
        except httpx.HTTPError as error:
            raise TargetError(
                f"Triton on {instance.name} stopped answering ({type(error).__name__}). `make check-logs-tritonserver "
                f"CONTRACT_ID={instance.id}` may say why. Repeat this target to go on."
            ) from None
    if failed:
        raise NotLoaded(
            f"Not loaded on {instance.name}: {', '.join(failed)}; the reason stands above. The other models serve. "
            "Correct the folder in models/ and repeat this target.",
            failed,
        )


class _Deployment:
    def __init__(self, connection: ssh.Connection, forward: Forward, control: Control, survey: Survey) -> None:
        self._connection = connection
        self._forward = forward
        self._control = control
        self._survey = survey
        self._work = connection.context.work

    def run(self, folders: Sequence[ModelFolder], fetched: AbstractSet[str]) -> dict[str, str]:
        """The models that failed, and why; `fetched` are those of which files were downloaded there just now."""
        digests = {folder.name: digest_of(folder.path) for folder in folders}
        changed = {name for name, digest in digests.items() if self._survey.digests.get(name) != digest} | fetched
        for folder in folders:
            if folder.name in changed:
                left = [f"/{source.WEIGHTS}"] if folder.source else []
                self._work.begins("rsync")
                with self._work.progress(f"sending {folder.name}") as line:
                    rsync.send(self._connection, folder.path, f"{STAGING}/{folder.name}", line, left)
                self._say(f"{folder.name}: sent")
        failed: dict[str, str] = {}
        for name, digest in digests.items():
            try:
                if name in changed:
                    self._exchange(name, digest)
                elif self._is_ready(name):
                    self._say(f"{name}: unchanged and ready")
                else:
                    self._load(name)
            except LoadFailed as reason:
                failed[name] = self._connection.context.settings.redact(engine_reason(str(reason)))
                self._say(f"{name}: failed to load. {failed[name]}")
                if name in changed:
                    self._bring_back(name)
        return failed

    def _exchange(self, name: str, digest: str) -> None:
        self._unload(name)
        self._run(SWAP, name)
        self._load(name)
        self._run(KEEP, name, digest=digest)

    def _bring_back(self, name: str) -> None:
        """The version before, if there was one, serves again."""
        self._unload(name)
        if self._run(RESTORE, name) != "restored":
            return
        try:
            self._load(name, "the previous version is ready again")
        except LoadFailed as reason:
            self._say(f"{name}: the previous version does not load any more either. {engine_reason(str(reason))}")
        else:
            self._run(RESTORED, name)

    def _is_ready(self, name: str) -> bool:
        self._forward.ensure()
        return self._control.settled(name, UNLOAD_SECONDS).ready

    def _unload(self, name: str) -> None:
        self._forward.ensure()
        self._work.begins("load model")
        # A model that asks for GPU memory while its former copy still holds it would fail.
        with self._work.progress(f"unloading {name}"):
            self._control.unload(name)

    def _load(self, name: str, what: str = "ready") -> None:
        self._work.begins("load model")
        seconds = load(self._connection, self._forward, self._control, name)
        self._say(f"{name}: {what} after {seconds:.0f} s")

    def _run(self, script: str, name: str, **variables: str) -> str:
        return self._connection.run(script, {"name": name, **variables}, timeout=STEP_SECONDS)

    def _say(self, text: str) -> None:
        self._work.say(text)


def digest_of(folder: Path) -> str:
    """Changes with any name, content, link or permission in the folder that is sent."""
    digest = hashlib.sha256()
    for path in repository.sent(folder):
        kind = "link" if path.is_symlink() else "folder" if path.is_dir() else "file"
        mode = 0 if kind == "link" else path.stat().st_mode & 0o777
        digest.update(f"\0{kind} {mode:o} {path.relative_to(folder).as_posix()}\0".encode())
        if kind == "link":
            digest.update(os.readlink(path).encode())
        elif kind == "file":
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def _survey(connection: ssh.Connection, folders: Sequence[ModelFolder]) -> Survey:
    instance = connection.instance
    port = connection.context.definition.triton.ports.http
    fields = dict(
        line.split("=", 1)
        for line in connection.run(SURVEY, {"http_port": str(port)}, timeout=60).splitlines()
        if "=" in line
    )
    disk = fields.get("disk_kib", "")
    survey = Survey(
        live=fields.get("live") == "yes",
        rsync=fields.get("rsync") == "yes",
        free_bytes=int(disk) * 1024 if disk.isdigit() else 0,
        digests={name.removeprefix("digest:"): text for name, text in fields.items() if name.startswith("digest:")},
    )
    if not survey.rsync:
        raise TargetError(
            f"rsync is missing on {instance.name}: the definition's onstart should have installed it. Install it with "
            f"`apt-get update && apt-get install -y rsync` in `make ssh-instance CONTRACT_ID={instance.id}`."
        )
    if not survey.live:
        raise TargetError(
            f"Triton does not run on {instance.name}: start it with "
            f"`make run-tritonserver CONTRACT_ID={instance.id}`, then repeat this target."
        )
    size = sum(path.stat().st_size for each in folders for path in repository.sent(each.path) if path.is_file())
    if disk.isdigit() and size > survey.free_bytes * DISK_SHARE:
        raise TargetError(
            f"The models take {size / 1e9:.1f} GB and {instance.name} has {survey.free_bytes / 1e9:.1f} GB free: rent "
            "with a larger `disk` in the definition."
        )
    return survey
