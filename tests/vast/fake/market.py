"""The offers, and the query language of the search."""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

HOURS_PER_MONTH = 720
DEFAULT_STORAGE_GB = 5.0
DEFAULT_LIMIT = 64
NOT_CONDITIONS = {"order", "type", "limit", "allocated_storage", "disable_bundling"}
VERSION = re.compile(r"\d+(\.\d+)*")

Row = dict[str, Any]

COMPARISONS: dict[str, Callable[[Any, Any], bool]] = {
    "gt": lambda have, want: bool(have > want),
    "gte": lambda have, want: bool(have >= want),
    "lt": lambda have, want: bool(have < want),
    "lte": lambda have, want: bool(have <= want),
}


class InvalidQuery(ValueError):
    """A field or an operator that the search does not know."""


def _offer(
    ident: int, gpu: str, gigabytes: float, price: float, driver: str, cuda: float, country: str, **changes: Any
) -> Row:
    return {
        "id": ident,
        "ask_contract_id": ident,
        "machine_id": ident % 100_000,
        "host_id": 40_000 + ident % 1000,
        "gpu_name": gpu,
        "num_gpus": 1,
        "gpu_ram": int(gigabytes * 1024),
        "cpu_cores": 16,
        "cpu_ram": 64_000,
        "cuda_max_good": cuda,
        "driver_version": driver,
        "compute_cap": 890,
        "reliability2": 0.995,
        "inet_down": 900.0,
        "inet_up": 700.0,
        "inet_down_cost": 0.0,
        "inet_up_cost": 0.0,
        "direct_port_count": 16,
        "geolocation": country,
        "disk_space": 400.0,
        "disk_bw": 3000.0,
        "storage_cost": 0.15,  # dollars per GB and month
        "dph_base": price,
        "dph_total": price,
        "min_bid": round(price / 2, 4),
        "duration": 30 * 86400.0,
        "dlperf": 100.0,
        "score": round(100 / price, 1),
        "verification": "verified",
        "external": False,
        "rentable": True,
        "rented": False,
        "hosting_type": 0,
        "static_ip": True,
        **changes,
    }


# Cheapest first among those a single 24 GB model wants; the later ones each lack something.
OFFERS: tuple[Row, ...] = (
    _offer(9101001, "RTX 3090", 24, 0.22, "580.95.05", 13.0, "Poland, PL", compute_cap=860),
    _offer(9101002, "RTX 4090", 24, 0.36, "580.95.05", 13.0, "Sweden, SE"),
    _offer(9101003, "RTX 4090", 24, 0.41, "595.58.03", 13.2, "Czechia, CZ", inet_down=2400.0),
    _offer(9101004, "RTX 5090", 32, 0.57, "610.43.02", 13.3, "Norway, NO", compute_cap=1200),
    _offer(9101005, "L40S", 45, 0.79, "590.48.01", 13.1, "Iceland, IS", reliability2=0.9991),
    _offer(9101006, "A100 SXM4", 80, 1.12, "580.95.05", 13.0, "Texas, US", compute_cap=800),
    _offer(9101007, "RTX 4090", 24, 0.78, "595.58.03", 13.2, "Bulgaria, BG", num_gpus=2),
    _offer(9101008, "RTX 3060", 12, 0.07, "580.95.05", 13.0, "Spain, ES", compute_cap=860),
    _offer(9101009, "RTX 4090", 24, 0.21, "535.183.01", 12.2, "Vietnam, VN"),
    _offer(9101010, "RTX 3090", 24, 0.16, "580.95.05", 13.0, "Ukraine, UA", inet_down=85.0, reliability2=0.91),
    _offer(9101011, "RTX 4090", 24, 0.29, "580.95.05", 13.0, "Quebec, CA", direct_port_count=0),
    _offer(9101012, "RTX A5000", 24, 0.19, "580.95.05", 13.0, "Taiwan, TW", disk_space=32.0),
    _offer(9101013, "RTX 4090", 24, 0.24, "580.95.05", 13.0, "France, FR", verification="unverified"),
)


def priced(offer: Mapping[str, Any], storage: float, bid: float | None = None) -> Row:
    """The offer with the price of `storage` GB in its dollars per hour, at the bid where there is one."""
    total = (offer["dph_base"] if bid is None else bid) + offer["storage_cost"] * storage / HOURS_PER_MONTH
    return {**offer, "dph_total": round(total, 6)}


def search(offers: Sequence[Mapping[str, Any]], query: Mapping[str, Any]) -> list[Row]:
    """
    Raises:
        InvalidQuery: a field or an operator is unknown, or a value has the wrong shape.
    """
    storage = float(query.get("allocated_storage") or DEFAULT_STORAGE_GB)
    bids = query.get("type") == "bid"
    conditions = {name: value for name, value in query.items() if name not in NOT_CONDITIONS}
    rows = (priced(offer, storage, offer["min_bid"] if bids else None) for offer in offers)
    found = [row for row in rows if matches(row, conditions)]
    for name, direction in reversed(query.get("order") or []):
        found.sort(key=lambda row: row.get(name) or 0, reverse=direction == "desc")
    return found[: int(query.get("limit") or DEFAULT_LIMIT)]


def matches(row: Mapping[str, Any], conditions: Mapping[str, Any]) -> bool:
    for name, tests in conditions.items():
        if not isinstance(tests, dict):
            raise InvalidQuery(f"{name}: expected an object of operators, not {tests!r}")
        if name == "verified":
            have: Any = row.get("verification") == "verified"
        elif name == "reliability":
            have = row["reliability2"]
        elif name in row:
            have = row[name]
        else:
            raise InvalidQuery(f"unknown field {name}")
        if not all(_holds(name, have, operator, want) for operator, want in tests.items()):
            return False
    return True


def _holds(name: str, have: Any, operator: str, want: Any) -> bool:
    if operator in ("in", "notin"):
        if not isinstance(want, list):
            raise InvalidQuery(f"{name}: {operator} needs a list")
        return any(_same(name, have, each) for each in want) == (operator == "in")
    if operator in ("eq", "neq"):
        return _same(name, have, want) == (operator == "eq")
    if operator not in COMPARISONS:
        raise InvalidQuery(f"{name}: unknown operator {operator}")
    try:
        return have is not None and COMPARISONS[operator](_comparable(name, have), _comparable(name, want))
    except TypeError:
        raise InvalidQuery(f"{name}: {want!r} cannot be compared with") from None


def _same(name: str, have: Any, want: Any) -> bool:
    if name == "geolocation" and isinstance(want, str):
        return bool(have == want or str(have).endswith(f", {want}"))
    return bool(_comparable(name, have) == _comparable(name, want))


def _comparable(name: str, value: Any) -> Any:
    """Numbers may come as text, and a version like 580.95.05 is compared by its parts."""
    if name == "driver_version" and VERSION.fullmatch(str(value)):
        return tuple(int(part) for part in str(value).split("."))
    if isinstance(value, bool) or value is None:
        return value
    if isinstance(value, int | float):
        return float(value)
    text = str(value)
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    try:
        return float(text)
    except ValueError:
        return text
