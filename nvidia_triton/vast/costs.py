"""An instance in words: its state, its price, what it has cost."""

from nvidia_triton.vast.context import Instance


def dollars(amount: float) -> str:
    return f"${amount:.3f}" if amount < 1 else f"${amount:.2f}"


def state_of(instance: Instance) -> str:
    """In a word: Vast.ai calls a stopped instance `exited` as it does one that failed."""
    stopped = instance.stopped and instance.status == "exited"
    return "stopped" if stopped else instance.status or "being made"


def price_of(instance: Instance) -> str:
    """For an hour as it is now."""
    if not instance.stopped:
        return f"${instance.dph_total:.3f} an hour"
    return f"${instance.hourly:.3f} an hour for its disk" if instance.hourly else "the price of its disk"


def spent_on(instance: Instance) -> str:
    """How long an instance has been stopped is nowhere told, so the sum is then an upper bound."""
    return f"at most {dollars(instance.spent)}" if instance.stopped else dollars(instance.spent)


def summary(instance: Instance) -> str:
    return (
        f"{instance.num_gpus}x {instance.gpu_name}, {state_of(instance)}, {price_of(instance)}, "
        f"{spent_on(instance)} so far"
    )
