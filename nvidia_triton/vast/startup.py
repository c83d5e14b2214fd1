"""From an instance that exists to one that SSH answers on."""

from __future__ import annotations

import time

from nvidia_triton.vast import costs, instances, ssh
from nvidia_triton.vast.context import Context, Instance
from nvidia_triton.vast.errors import TargetError
from nvidia_triton.vast.settings import public_half
from nvidia_triton.vast.vast import InstanceGone, Refused, VastClient
from nvidia_triton.vast.work import Line

DEAD = ("exited", "unknown", "offline")


def wait_until_ready(context: Context, client: VastClient, contract_id: int, *, restarted: bool = False) -> Instance:
    """Waits until SSH answers; `restarted` forgives an `exited` that is from before.

    Raises:
        TargetError: it can never run, is gone, or took longer than the definition's deadlines.
    """
    deadlines = context.definition.deadline_minutes
    began, ssh_began = time.monotonic(), 0.0
    missing, attached = 0, False
    with context.work.waiting() as line:
        while True:
            instance = instances.look(client, contract_id)
            missing = 0 if instance else missing + 1
            if missing >= instances.PATIENCE:
                instances.forget(context, contract_id)
                raise TargetError(
                    f"Instance {contract_id} is gone: Vast.ai no longer has it, and it costs nothing any more. "
                    "`make gpu-up` rents another."
                )
            if instance is not None:
                instances.remember(context, instance)
                forgiving = restarted and time.monotonic() - began < context.settings.poll_seconds * instances.PATIENCE
                if instance.status in DEAD and not (forgiving and instance.status == "exited"):
                    raise TargetError(_cannot_run(instance))
                attached = attached or _attach_key(context, client, instance)
                if instance.status == "running" and instance.addresses:
                    ssh_began = ssh_began or time.monotonic()
                    if _ssh_answers(context, instance, line, ssh_began + deadlines.ssh * 60):
                        return instance
                line.says(f"instance {contract_id} is {costs.state_of(instance)}{_message(instance)}", instance.spent)
                if not ssh_began and time.monotonic() - began > deadlines.running * 60:
                    raise TargetError(
                        f"Instance {contract_id} is still {costs.state_of(instance)} after "
                        f"{deadlines.running:g} minutes{_message(instance)}. {_or_destroy(instance)}"
                    )
            context.work.pause(context.settings.poll_seconds)


def _attach_key(context: Context, client: VastClient, instance: Instance) -> bool:
    """True once Vast.ai has taken the key; while an instance is being made it may not take it yet."""
    key = public_half(context.settings.require_ssh_key()).read_text().strip()
    try:
        client.attach_key(instance.id, key)
    except (Refused, InstanceGone):
        if instance.status == "running":
            raise
        return False
    return True


def _ssh_answers(context: Context, instance: Instance, line: Line, deadline: float) -> bool:
    """Tries for one poll; the caller asks Vast.ai again in between, since addresses change."""
    end = time.monotonic() + context.settings.poll_seconds
    while True:
        try:
            ssh.check(context, instance)
            return True
        except (ssh.Unreachable, ssh.KeyRefused) as problem:
            if time.monotonic() > deadline:
                raise TargetError(f"{problem} {_or_destroy(instance)}") from None
            reason = "the SSH key is on its way" if isinstance(problem, ssh.KeyRefused) else "SSH does not answer yet"
            line.says(f"instance {instance.id} is running; {reason}", instance.spent)
        if time.monotonic() > end:
            return False
        context.work.pause(min(context.settings.poll_seconds, instances.PAUSE_SECONDS))


def _message(instance: Instance) -> str:
    return f" ({instance.status_msg})" if instance.status_msg else ""


def _cannot_run(instance: Instance) -> str:
    return (
        f"Instance {instance.id} is {instance.status} and will not run. Vast.ai says: "
        f"{instance.status_msg or 'nothing'}. {_or_destroy(instance)}"
    )


def _or_destroy(instance: Instance) -> str:
    return (
        f"It costs {costs.price_of(instance)} while it exists: "
        f"`make destroy-instance CONTRACT_ID={instance.id}` ends it."
    )
