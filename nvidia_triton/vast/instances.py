"""Instances of this project: made once, found again by their label, ended for good."""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from nvidia_triton.vast.context import Context, Instance
from nvidia_triton.vast.costs import summary
from nvidia_triton.vast.definition import Image, InstanceDefinition
from nvidia_triton.vast.errors import TargetError
from nvidia_triton.vast.images import AUTO
from nvidia_triton.vast.settings import VastSettings
from nvidia_triton.vast.state import StateFailed
from nvidia_triton.vast.vast import (
    Doubtful,
    OfferGone,
    Refused,
    Unavailable,
    VastClient,
    no_such_instance,
    offer_gone,
)

PREFIX = "triton-tickets-"
CONTRACT = "contract-"
INTENT = "intent-"
# Calls of the list that an instance may take to show up in it, or to go from it.
PATIENCE = 3
# After this a create that has shown nothing is not waited for any more; its label would still tell whose it is.
INTENT_SECONDS = 900.0
PAUSE_SECONDS = 2.0
DESTROY_TRIES = 4


class NotMade(TargetError):
    """A create failed and left nothing behind, as far as Vast.ai shows."""


@dataclass(frozen=True)
class Ours:
    """Instances with this project's label: those this checkout rented, and others, of another checkout say."""

    here: tuple[Instance, ...]
    elsewhere: tuple[Instance, ...]


def find(context: Context, client: VastClient) -> Ours:
    """All instances of the project."""
    listed = [each for each in client.instances() if _is_ours(context, each)]
    # The list may lag behind, and what it does not show may cost money.
    for ident in sorted(known_ids(context) - {each.id for each in listed}):
        if (instance := client.instance(ident)) is not None:
            listed.append(instance)
    here = tuple(each for each in listed if _is_known(context, each))
    return Ours(here, tuple(each for each in listed if each not in here))


def look(client: VastClient, contract_id: int) -> Instance | None:
    """None when both ways of asking say that there is no such instance (any more)."""
    found = client.instance(contract_id)
    return found or next((each for each in client.instances() if each.id == contract_id), None)


def resolve(context: Context, client: VastClient, contract_id: str | None) -> Instance:
    """The instance with this CONTRACT_ID; without one, the only one of this checkout.

    Raises:
        TargetError: no such instance, none at all, several, or one that is not the project's.
    """
    if contract_id:
        if not contract_id.isdecimal():
            raise TargetError(
                f"CONTRACT_ID={contract_id} is not a contract id, which is a number: `make list-instances` shows them."
            )
        instance = look(client, int(contract_id))
        if instance is None:
            forget(context, int(contract_id))
            raise no_such_instance(int(contract_id))
        if not _is_ours(context, instance):
            raise TargetError(
                f"Instance {instance.id} was not made by this project (its label does not start with {PREFIX}), so the "
                "targets leave it alone: use Vast.ai's console for it."
            )
        return instance
    ours = find(context, client)
    if len(ours.here) == 1:
        return ours.here[0]
    if ours.here:
        listed = "\n".join(f"  CONTRACT_ID={each.id}  {summary(each)}" for each in ours.here)
        raise TargetError(f"There are {len(ours.here)} instances, so say which one:\n{listed}")
    hint = ""
    if ours.elsewhere:
        ids = ", ".join(str(each.id) for each in ours.elsewhere)
        hint = f" Instances this checkout does not know have the project's label: {ids}; name one with CONTRACT_ID=."
    raise TargetError(f"This checkout has rented no instance: `make gpu-up` rents one and sets it up.{hint}")


def create(context: Context, client: VastClient, offer: int) -> int:
    """Rents an offer once and returns the contract id. Its label is on record before the call.

    Raises:
        OfferGone, Refused, Unavailable: nothing was made.
        NotMade: the answer was lost, and nothing with the label shows up.
    """
    definition, settings = context.definition, context.settings
    image = _image_for(definition, client, offer)
    label = PREFIX + secrets.token_hex(4)
    intent = INTENT + label.removeprefix(PREFIX)
    context.state.write(intent, {"label": label, "offer": offer, "at": time.time()})
    try:
        contract = client.create(
            offer,
            image=image.name,
            disk=definition.disk,
            label=label,
            env=environment(definition, settings),
            bid=definition.bid,
            onstart=definition.onstart,
        )
    except (OfferGone, Refused, Unavailable):
        context.state.remove(intent)
        raise
    except Doubtful as doubt:
        context.work.say(f"  {doubt} Looking for an instance with the label {label}.")
        found = _by_label(context, client, label)
        if found is None:
            raise NotMade(
                f"The create failed and no instance with the label {label} shows up, so nothing was rented as far as "
                "Vast.ai says: try again, and look at `make list-instances` a minute later."
            ) from None
        contract = found
    try:
        context.state.write(f"{CONTRACT}{contract}", {"label": label})
        context.state.remove(intent)
    except StateFailed as failure:
        raise TargetError(
            f"Instance {contract} is rented and costs money. {failure} `make destroy-instance CONTRACT_ID={contract}` "
            "ends it."
        ) from None
    return contract


def _image_for(definition: InstanceDefinition, client: VastClient, offer: int) -> Image:
    """With the tag `auto`, the newest that the offer's host carries."""
    if definition.image.tag != AUTO:
        return definition.image
    rows = client.offers(f"id={offer}", storage=definition.disk, defaults=False)
    if not rows:
        raise offer_gone()
    return definition.image.on(str(rows[0].get("cuda_max_good") or ""), str(rows[0].get("driver_version") or ""))


def environment(definition: InstanceDefinition, settings: VastSettings) -> dict[str, str]:
    """What an instance gets: the definition's variables, and the token that gated models need."""
    token = settings.hf_token
    return {**definition.env, **({"HF_TOKEN": token.get_secret_value()} if token else {})}


def recover(context: Context, client: VastClient) -> tuple[Instance, ...]:
    """Instances of this checkout, after what an interrupted call left is put in order.

    An instance whose create was interrupted is taken over, a second one of the same label destroyed, and what
    Vast.ai no longer has is forgotten.
    """
    for name in context.state.names(INTENT):
        # The record may be damaged; the name has what counts.
        label, at = PREFIX + name.removeprefix(INTENT), context.state.read(name).get("at")
        if not isinstance(at, int | float):
            at = time.time()
        fresh = time.time() - at < context.settings.poll_seconds * PATIENCE
        contract = _by_label(context, client, label, PATIENCE if fresh else 1)
        if contract is not None:
            context.state.write(f"{CONTRACT}{contract}", {"label": label})
        if contract is not None or time.time() - at > INTENT_SECONDS:
            context.state.remove(name)
    here = find(context, client).here
    first: dict[str, Instance] = {}
    for each in here:
        key = each.label if each.label.startswith(PREFIX) else str(each.id)
        kept = first.setdefault(key, each)
        if kept is not each:
            _destroy_double(context, client, each.id)
    for ident in known_ids(context) - {each.id for each in here}:
        forget(context, ident)
    return tuple(first.values())


def destroy(context: Context, client: VastClient, contract_id: int) -> None:
    """Destroys it and looks until it is gone.

    Raises:
        TargetError: it is still there, and costs money.
    """
    problem = "Vast.ai agrees and still lists it"
    for _ in range(DESTROY_TRIES):
        try:
            client.destroy(contract_id)
            if _goes(context, client, contract_id):
                with suppress(StateFailed):
                    forget(context, contract_id)
                return
        except (Refused, Unavailable) as refused:
            problem = str(refused).rstrip(".")
            context.work.pause(min(context.settings.poll_seconds, PAUSE_SECONDS))
    raise TargetError(
        f"Instance {contract_id} could not be destroyed and STILL COSTS MONEY: {problem}. Try again with "
        f"`make destroy-instance CONTRACT_ID={contract_id}`, or destroy it on https://cloud.vast.ai/instances/."
    )


def _goes(context: Context, client: VastClient, contract_id: int) -> bool:
    for _ in range(PATIENCE):
        if look(client, contract_id) is None:
            return True
        context.work.pause(min(context.settings.poll_seconds, PAUSE_SECONDS))
    return False


def forget(context: Context, contract_id: int) -> None:
    context.state.remove(f"{CONTRACT}{contract_id}")


def known_ids(context: Context) -> set[int]:
    names = (name.removeprefix(CONTRACT) for name in context.state.names(CONTRACT))
    return {int(name) for name in names if name.isdecimal()}


def left_running(context: Context, said: str = "") -> str:
    """What this checkout has rented and how it ends, without asking Vast.ai, except what is `said` already."""
    lines = []
    for ident in sorted(known_ids(context)):
        end = f"`make destroy-instance CONTRACT_ID={ident}`"
        price = context.state.read(f"{CONTRACT}{ident}").get("hourly")
        if end not in said:
            lines.append(
                f"Instance {ident} exists and costs money"
                + (f" at ${price:.3f} an hour" if isinstance(price, int | float) and price else "")
                + f". `make gpu-up` goes on with it, {end} ends it."
            )
    return "\n".join([*lines, *unanswered(context)])


def unanswered(context: Context) -> list[str]:
    """A sentence for every create of which nobody knows yet what it made."""
    return [
        f"An instance labelled {PREFIX}{name.removeprefix(INTENT)} was about to be rented and may exist: "
        "`make list-instances` shows it, `make gpu-up` goes on with it, `make gpu-down` ends it."
        for name in context.state.names(INTENT)
    ]


@contextmanager
def naming_what_costs(context: Context) -> Iterator[None]:
    """Has every failure within say what goes on costing, and how that ends."""
    try:
        yield
    except TargetError as error:
        rest = left_running(context, str(error)) or (
            "" if known_ids(context) else "Nothing is on record as rented here."
        )
        raise TargetError(f"{error}\n{rest}".strip()) from None


def _is_known(context: Context, instance: Instance) -> bool:
    if instance.id in known_ids(context):
        return True
    labels = {PREFIX + name.removeprefix(INTENT) for name in context.state.names(INTENT)}
    return instance.label in labels | {context.state.read(name).get("label") for name in context.state.names(CONTRACT)}


def _is_ours(context: Context, instance: Instance) -> bool:
    return instance.label.startswith(PREFIX) or instance.id in known_ids(context)


def remember(context: Context, instance: Instance) -> None:
    context.state.update(f"{CONTRACT}{instance.id}", label=instance.label, hourly=instance.hourly)


def _by_label(context: Context, client: VastClient, label: str, patience: int = PATIENCE) -> int | None:
    """The contract with this label; any further one of the same create is destroyed."""
    found: Sequence[int] = ()
    for attempt in range(patience):
        if attempt:
            context.work.pause(context.settings.poll_seconds)
        found = sorted(each.id for each in client.instances() if each.label == label)
        if found:
            break
    if not found:
        return None
    context.state.write(f"{CONTRACT}{found[0]}", {"label": label})
    for double in found[1:]:
        _destroy_double(context, client, double)
    return found[0]


def _destroy_double(context: Context, client: VastClient, contract_id: int) -> None:
    context.work.say(f"  One create made a second instance, {contract_id}: destroying it.")
    destroy(context, client, contract_id)
