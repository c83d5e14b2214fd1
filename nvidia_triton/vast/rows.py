"""What Vast.ai's answers hold, read with patience: numbers may be texts, and anything may be absent or null."""

from __future__ import annotations

import math
from typing import Any

from nvidia_triton.vast.context import Address, Instance

Row = dict[str, Any]
# As Vast.ai counts the months of its prices for storage.
HOURS_A_MONTH = 720


def part(answer: Any, name: str, *kinds: type) -> Any:
    """What an answer holds under `name`.

    Raises:
        ValueError: the answer has another shape, so it says nothing, least of all that something is not there.
    """
    if not isinstance(answer, dict) or not isinstance(answer.get(name, ...), kinds):
        raise ValueError(f"there is no {name} in the answer")
    return answer[name]


def parse(row: Row) -> Instance:
    """
    Raises:
        ValueError: it has no id.
    """
    status = str(row.get("actual_status") or "")
    return Instance(
        id=int(row.get("id") or ""),
        label=str(row.get("label") or ""),
        status=status,
        status_msg=" ".join(str(row.get("status_msg") or "").split()),
        intended_status=str(row.get("intended_status") or ""),
        addresses=_addresses(row) if status == "running" else (),
        gpu_name=str(row.get("gpu_name") or "?"),
        num_gpus=int(number(row, "num_gpus")),
        dph_total=number(row, "dph_total"),
        storage_hourly=number(row, "storage_total_cost")
        or number(row, "storage_cost") * number(row, "disk_space") / HOURS_A_MONTH,
        start_date=number(row, "start_date") or None,
        image=str(row.get("image_uuid") or ""),
        machine=str(row.get("machine_id") or ""),
        interruptible=row.get("is_bid") is True,
        cur_state=str(row.get("cur_state") or ""),
    )


def number(row: Row, name: str) -> float:
    """0 where there is none."""
    try:
        found = float(row.get(name) or 0)
    except (TypeError, ValueError):
        return 0.0
    return found if math.isfinite(found) else 0.0


def _addresses(row: Row) -> tuple[Address, ...]:
    """The direct port, then the proxy, which stalls on large copies."""
    ports = row.get("ports")
    mapped = ports.get("22/tcp") if isinstance(ports, dict) else None
    first = mapped[0] if isinstance(mapped, list) and mapped else None
    direct = first if isinstance(first, dict) else {}
    found = []
    for host, named in ((row.get("public_ipaddr"), direct), (row.get("ssh_host"), row)):
        port = int(number(named, "HostPort" if named is direct else "ssh_port"))
        if host and 0 < port < 65536:
            found.append(Address(str(host).strip(), port))
    return tuple(found)
