"""Offers that fit the instance definition, and what keeps the others from fitting."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rich.table import Table

from nvidia_triton.vast.errors import TargetError
from nvidia_triton.vast.images import version
from nvidia_triton.vast.query import Query
from nvidia_triton.vast.rows import HOURS_A_MONTH, Row, number
from nvidia_triton.vast.vast import VastClient

GPU_RAM_MB = 1000


@dataclass(frozen=True)
class Condition:
    """`clause` is its form in the query language of Vast.ai, empty where that has none; `holds` the same for a row."""

    key: str
    text: str
    clause: str
    holds: Callable[[Row], bool]


class NoOffer(TargetError):
    """Nothing fits; the text says which condition removes how many, and `removed` the same."""

    def __init__(self, message: str, removed: Sequence[tuple[Condition, int]] = ()) -> None:
        super().__init__(message)
        self.removed = tuple(removed)


def search(client: VastClient, query: Query) -> list[Row]:
    """Offers that fit, the cheapest first.

    Raises:
        NoOffer: there are none.
    """
    wanted = conditions(query)
    clauses = " ".join(condition.clause for condition in wanted if condition.clause)
    kind = "on-demand" if query.bid is None else "bid"
    found = client.offers(clauses, storage=query.disk_gb, kind=kind)
    # What the search at Vast.ai cannot say is left out here.
    found = [row for row in found if all(each.holds(row) for each in wanted if not each.clause)]
    if not found:
        every = client.offers("rentable=true", storage=query.disk_gb, defaults=False, kind=kind)
        removed = [(each, sum(not each.holds(row) for row in every)) for each in wanted] if every else []
        raise NoOffer(explain(wanted, every), removed)
    return sorted(found, key=lambda row: (number(row, "dph_total"), row["id"]))


def conditions(query: Query) -> list[Condition]:
    least: list[tuple[str, str, str, float | str]] = [
        ("query.gpu_ram", f"{query.vram_gb:g} GB of GPU memory", "gpu_ram", query.vram_gb),
        ("image.cuda", f"CUDA {query.cuda} for {query.image}", "cuda_max_good", query.cuda),
        ("disk", f"{query.disk_gb:g} GB of disk", "disk_space", query.disk_gb),
        ("query.inet_down", f"{query.inet_down:g} Mbit/s down", "inet_down", query.inet_down),
        ("query.direct_port_count", f"{query.direct_ports} direct ports", "direct_port_count", query.direct_ports),
        ("query.reliability", f"a reliability of {query.reliability:g}", "reliability", query.reliability),
    ]
    found = [
        Condition(
            "query.num_gpus",
            f"{query.gpus} GPU{'s' if query.gpus > 1 else ''}",
            f"num_gpus={query.gpus}",
            lambda row: number(row, "num_gpus") == query.gpus,
        )
    ]
    if query.gpu_names:
        names = {name.replace("_", " ") for name in query.gpu_names}
        clause = f"gpu_name in [{','.join(name.replace(' ', '_') for name in sorted(names))}]"
        text = "one of " + ", ".join(sorted(names))
        found.append(Condition("query.gpu_names", text, clause, lambda row: row.get("gpu_name") in names))
    found += [_at_least(*each) for each in least]
    found.append(
        Condition("image.driver", f"driver {query.driver} for {query.image}", "", lambda row: _drives(row, query))
    )
    if query.countries:
        clause = f"geolocation in [{','.join(query.countries)}]"
        text = "in " + ", ".join(query.countries)
        found.append(Condition("query.countries", text, clause, lambda row: country(row) in query.countries))
    if query.verified:
        # The SDK's own default says it in the query.
        found.append(Condition("query.verified", "verified by Vast.ai", "verified=true", _is_verified))
    if query.bid is not None:
        bid = query.bid
        text = f"to be had for a bid of ${bid:.2f} an hour"
        found.append(Condition("bid", text, f"min_bid<={bid:g}", lambda row: number(row, "min_bid") <= bid))
    if (price := query.max_price) is not None:
        found.append(
            Condition(
                "max_price",
                f"at most ${price:.2f} an hour",
                f"dph_total<={price:g}",
                lambda row: number(row, "dph_total") <= price,
            )
        )
    return found


def storage_price(row: Row, disk_gb: float) -> float:
    """Dollars an hour of a disk, which a stopped instance goes on costing."""
    return number(row, "storage_cost") * disk_gb / HOURS_A_MONTH


def _drives(row: Row, query: Query) -> bool:
    have = row.get("driver_version")
    return not have or not query.driver or version(have) >= version(query.driver)


def explain(wanted: Sequence[Condition], offers: Sequence[Row]) -> str:
    """Which condition removes how many, one after the other in the definition's order."""
    if not offers:
        return "Vast.ai lists no offer at all just now: try again in a few minutes."
    lines = [f"None of the {len(offers)} offers that Vast.ai lists fits. Asked of each alone:"]
    width = max(len(condition.key) for condition in wanted)
    removing = []
    for condition in wanted:
        removed = sum(not condition.holds(offer) for offer in offers)
        lines.append(f"  {condition.key:<{width}}  removes {removed:>4}: {condition.text}")
        others = [each for each in wanted if each is not condition]
        without = [offer for offer in offers if all(each.holds(offer) for each in others)]
        if without:
            removing.append((len(without), condition, min(number(offer, "dph_total") for offer in without)))
    if removing:
        lines.append("Without one of them, and the others as they are:")
        for count, condition, price in sorted(removing, key=lambda each: -each[0]):
            lines.append(f"  without {condition.key}: {count} would fit, from ${price:.3f} an hour")
    else:
        lines.append("No single one is to blame: relax several in nvidia_triton/vastai_instance_definition.yaml.")
    return "\n".join(lines)


def table(offers: Sequence[Row], title: str) -> Table:
    shown = Table(title=title, title_justify="left")
    for name in ("offer id", "GPU", "VRAM", "$/h", "CUDA", "driver", "reliability", "download", "location"):
        shown.add_column(name, justify="left" if name in ("GPU", "location", "driver") else "right", no_wrap=True)
    for row in offers:
        count = int(number(row, "num_gpus") or 1)
        shown.add_row(
            str(row["id"]),
            f"{count}x {row.get('gpu_name', '?')}" if count > 1 else str(row.get("gpu_name", "?")),
            f"{number(row, 'gpu_ram') / 1024:.0f} GB",
            f"{number(row, 'dph_total'):.3f}",
            str(row.get("cuda_max_good", "?")),
            str(row.get("driver_version", "?")),
            f"{reliability(row):.1%}",
            f"{number(row, 'inet_down'):.0f} Mbit/s",
            str(row.get("geolocation") or "?"),
        )
    return shown


def describe(row: Row) -> str:
    count = int(number(row, "num_gpus") or 1)
    return (
        f"offer {row['id']}: {count}x {row.get('gpu_name', '?')}, {row.get('geolocation') or '?'}, "
        f"${number(row, 'dph_total'):.3f} an hour"
    )


def reliability(row: Row) -> float:
    return number(row, "reliability2" if row.get("reliability2") is not None else "reliability")


def country(row: Row) -> str:
    """The two letters at the end of `Sweden, SE`."""
    return str(row.get("geolocation") or "").rpartition(",")[2].strip()


def _at_least(key: str, text: str, field: str, least: float | str) -> Condition:
    def holds(row: Row) -> bool:
        if isinstance(least, str):
            return version(row.get(field)) >= version(least)
        found = reliability(row) if field == "reliability" else number(row, field)
        return found >= least * (GPU_RAM_MB if field == "gpu_ram" else 1)

    amount = least if isinstance(least, str) else f"{least:g}"
    return Condition(key, text, f"{field}>={amount}", holds)


def _is_verified(row: Row) -> bool:
    return row.get("verification") == "verified" or row.get("verified") is True
