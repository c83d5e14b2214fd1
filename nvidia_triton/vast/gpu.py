"""From an API key to an answered ticket, and back to nothing that costs money."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress

from nvidia_triton.vast import (
    costs,
    deploy,
    instances,
    monitor,
    offers,
    preflight,
    remote,
    service,
    startup,
    ticket,
    tunnel,
)
from nvidia_triton.vast.context import Context, Instance
from nvidia_triton.vast.costs import dollars
from nvidia_triton.vast.errors import TargetError
from nvidia_triton.vast.rows import Row
from nvidia_triton.vast.state import StateFailed
from nvidia_triton.vast.vast import OfferGone, Unavailable, VastClient

CREATE_TRIES = 3
BUSY = (
    "Another gpu-up, gpu-down or create-instance of this checkout is at work: wait for its end, or end it with Ctrl-C. "
    "`make destroy-instance` ends an instance without waiting."
)


def up(context: Context, contract_id: str | None, names: Sequence[str], max_price: float | None) -> None:
    """Every step does only what is not done yet, so a second call goes on where one was interrupted."""
    work = context.work
    with context.state.locked("gpu", busy=BUSY):
        preflight.check_access(context)
        preflight.check_models(context, names)
        client = VastClient(context.settings)
        rented = _rented(context, client, contract_id)
        if rented is None:
            _note(context, instances.find(context, client).elsewhere)
        found = [] if rented else offers.search(client, context.definition.offer_query(max_price))
        plan = f"goes on with {rented.name}" if rented else f"{len(found)} offers fit"
        work.done("preflight", f"API key, key pair, ssh, rsync, definition and models are in order; {plan}")
        work.done("service", service.ensure(context))
        instance = _ready(context, client, rented, found)
        work.done("instance", f"CONTRACT_ID={instance.id}: {costs.summary(instance)}")
        remote.run_tritonserver(context, instance)
        work.done("triton", f"tritonserver serves on {instance.name}")
        deploy.deploy(context, instance, names)
        work.done("models", ", ".join(names))
        link = tunnel.start(context, instance)
        work.done("tunnel", f"127.0.0.1:{link.http_port} HTTP, {link.grpc_port} gRPC, {link.metrics_port} metrics")
        healthy, reason = monitor.health(context, instance.id)
        if not healthy:
            raise TargetError(f"{instance.name} is not healthy: {reason}")
        work.done("health", reason)
        answer = ticket.first_ticket(context, instance, names[0])
        work.done("ticket", f"{names[0]} answered in {answer.seconds:.1f} s through {answer.server}")
        for each in instances.recover(context, client):
            # Of a create that had failed, as far as Vast.ai said then.
            if each.id != instance.id:
                work.say(
                    f"note: instance {each.id} costs money too: {costs.summary(each)}. `make "
                    f"destroy-instance CONTRACT_ID={each.id}` ends it.",
                )
    work.say(f"\n  prompt  {ticket.PROMPT}\n  answer  {answer.text.strip()}\n")
    work.say(
        f"{dollars(instance.spent)} spent so far, {dollars(instance.dph_total)} an hour. Send tickets to "
        f"{context.settings.api_url} (docs at /docs); `make gpu-down` ends the instance and the bill.",
    )


def rent(context: Context, client: VastClient, found: Sequence[Row]) -> int:
    """Rents the first offer that is still there; returns the contract id."""
    for row in found:
        context.work.say(f"  {offers.describe(row)}")
        for attempt in range(1, CREATE_TRIES + 1):
            try:
                return instances.create(context, client, int(row["id"]))
            except OfferGone:
                context.work.say("  is gone; the next one")
                break
            except (instances.NotMade, Unavailable) as problem:
                if attempt == CREATE_TRIES:
                    raise
                context.work.say(f"  {problem}")
                context.work.pause(context.settings.poll_seconds)
    raise TargetError(f"All {len(found)} offers that fit were rented by others meanwhile: try again.")


def down(context: Context, contract_id: str | None) -> None:
    """Ends the tunnel, the instance and a service that gpu-up started; fine where there is nothing."""
    work = context.work
    with context.state.locked("gpu", busy=BUSY, needed=False):
        client = VastClient(context.settings)
        try:
            here = instances.recover(context, client)
        except StateFailed as failure:
            work.say(f"  {failure}")
            here = instances.find(context, client).here
        open_creates = instances.unanswered(context)
        ended = bool(contract_id or here)
        if ended:
            take_down(context, client, instances.resolve(context, client, contract_id))
        elif open_creates:
            tunnel.stop(context, None)
        else:
            tunnel.stop(context, None)
            work.done("instance", "this checkout has rented none, so there is nothing to pay for")
        if not instances.find(context, client).here and service.stop(context):
            work.done("service", f"{context.settings.api_url} stopped; its data stays")
        elsewhere = instances.find(context, client).elsewhere
    _note(context, elsewhere)
    for sentence in open_creates if ended else ():
        work.say(f"note: {sentence}")
    if open_creates and not ended:
        raise TargetError("\n".join(open_creates) + "\nNothing of it shows up yet: repeat this target in a minute.")


def take_down(context: Context, client: VastClient, instance: Instance) -> None:
    """Ends the tunnel to an instance, and the instance."""
    stop_tunnel(context, instance)
    instances.destroy(context, client, instance.id)
    with suppress(StateFailed):
        # The tunnel's process may have put its entry back while it ended.
        context.servers.remove(instance.name)
    amount = costs.spent_on(instance) if instance.stopped else f"about {dollars(instance.spent)}"
    context.work.done(
        "instance",
        f"{instance.id} destroyed: {amount} for {instance.hours:.2f} hours at ${instance.dph_total:.3f} (an estimate; "
        "traffic comes on top)",
    )


def _note(context: Context, elsewhere: Sequence[Instance]) -> None:
    for each in elsewhere:
        context.work.say(
            f"note: instance {each.id} has this project's label and was not rented by this checkout: "
            f"{costs.summary(each)}. `make gpu-up CONTRACT_ID={each.id}` uses it, `make destroy-instance "
            f"CONTRACT_ID={each.id}` ends it.",
        )


def stop_tunnel(context: Context, instance: Instance) -> None:
    """A tunnel that cannot be stopped must not keep an instance alive that costs money."""
    try:
        stopped = tunnel.stop(context, instance.id)
    except TargetError as error:
        context.work.say(f"  {error}")
        return
    if stopped:
        context.work.done("tunnel", f"to {instance.name} stopped")


def _rented(context: Context, client: VastClient, contract_id: str | None) -> Instance | None:
    here = instances.recover(context, client)
    return instances.resolve(context, client, contract_id) if contract_id or here else None


def _ready(context: Context, client: VastClient, rented: Instance | None, found: Sequence[Row]) -> Instance:
    """An instance that SSH answers on: the rented one, started where it was stopped, or else a new one."""
    if rented is None:
        return startup.wait_until_ready(context, client, rent(context, client, found))
    stopped = rented.stopped
    if stopped:
        client.start(rented.id)
    return startup.wait_until_ready(context, client, rented.id, restarted=stopped)
