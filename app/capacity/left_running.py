"""What to tell whoever stops the controller: which hosts go on, what they cost, and how each is ended."""

from __future__ import annotations

from collections.abc import Sequence

from app.queue.hosts import Row


def left_running(hosts: Sequence[Row]) -> str:
    """Lines for a terminal; empty where no host is left."""
    if not hosts:
        return ""
    hourly = sum(host["hourly_price"] for host in hosts)
    many = "1 host goes on" if len(hosts) == 1 else f"{len(hosts)} hosts go on"
    lines = [f"{many} and cost{'s' if len(hosts) == 1 else ''} ${hourly:.3f} an hour while no controller runs:"]
    lines += [
        f"  {host['label']}, {host['state']}, ${host['hourly_price']:.3f} an hour: {_ends_with(host)}" for host in hosts
    ]
    return "\n".join([*lines, "A controller that starts again (`make run`) takes them over."])


def _ends_with(host: Row) -> str:
    if host["provider"] != "vast":
        return f"`make run` and `make hosts DESTROY={host['label']}` end it, or {host['provider']}'s own means"
    if host["provider_id"] is None:
        return "`make list-instances` shows whether Vast.ai has made it"
    return f"`make destroy-instance CONTRACT_ID={host['provider_id']}` ends it"
