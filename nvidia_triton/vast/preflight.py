"""What must be in order on this machine before anything is rented."""

import subprocess
from collections.abc import Sequence
from pathlib import Path

from nvidia_triton.engine_arguments import vllm_of_image
from nvidia_triton.vast import ssh
from nvidia_triton.vast.context import Context
from nvidia_triton.vast.errors import TargetError
from nvidia_triton.vast.repository import validate
from nvidia_triton.vast.settings import VastSettings, public_half

ANSWER_SECONDS = 20


def check_access(context: Context) -> None:
    """
    Raises:
        TargetError: the API key, the key pair, ssh or rsync is missing, or the key cannot be used unattended.
    """
    context.settings.require_api_key()
    check_login(context.settings)


def check_login(settings: VastSettings) -> None:
    """
    Raises:
        TargetError: the key pair, ssh or rsync is missing, or the key cannot be used unattended.
    """
    key = settings.require_ssh_key()
    ssh.require_program("ssh", "openssh-client")
    ssh.require_program("rsync", "rsync")
    if not _opens_without_passphrase(key) and not _is_in_agent(key):
        raise TargetError(
            f"The SSH key {ssh.shown(key)} has a passphrase and is not loaded: `ssh-add {ssh.shown(key)}` loads it, or "
            "name a key without one with SSH_KEY=/path/to/key."
        )


def check_models(context: Context, names: Sequence[str]) -> None:
    """
    Raises:
        TargetError: a model cannot be deployed; every problem is named.
    """
    definition = context.definition
    folders = validate(
        context.settings.root / "models",
        names,
        num_gpus=definition.query.num_gpus,
        vllm=vllm_of_image(definition.image.name),
    )
    for warning in (warning for folder in folders for warning in folder.warnings):
        context.work.say(f"  note: {warning}")


def _opens_without_passphrase(key: Path) -> bool:
    done = _run("ssh-keygen", "-y", "-P", "", "-f", str(key))
    return done is None or done.returncode == 0


def _is_in_agent(key: Path) -> bool:
    done = _run("ssh-add", "-L")
    fields = public_half(key).read_text().split()
    return done is not None and len(fields) > 1 and fields[1] in done.stdout


def _run(*command: str) -> subprocess.CompletedProcess[str] | None:
    try:
        return subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=ANSWER_SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
