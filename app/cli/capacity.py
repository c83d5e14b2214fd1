"""What the controller of hosts thinks: `python -m app.cli.capacity`, with `--follow` until Ctrl-C."""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Mapping

from rich.console import Console
from rich.live import Live
from rich.table import Table

from app.cli.command import run
from app.config import Settings
from app.db.engine import Database
from app.services.hosts import CapacityView, Hosts, PoolView

WIDE = 200
FOLLOW_SECONDS = 1.0


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m app.cli.capacity", description=__doc__)
    parser.add_argument("--follow", action="store_true", help="until Ctrl-C")
    follow = parser.parse_args().follow

    async def work(database: Database, _: Settings) -> None:
        hosts = Hosts(database)
        console = Console() if sys.stdout.isatty() else Console(width=WIDE)
        if not follow or not console.is_terminal:
            console.print(_table(await hosts.capacity()))
            return
        with Live(_table(await hosts.capacity()), console=console, auto_refresh=False) as live:
            while True:
                await asyncio.sleep(FOLLOW_SECONDS)
                live.update(_table(await hosts.capacity()), refresh=True)

    return run(work)


def _table(capacity: CapacityView) -> Table | str:
    leader = capacity.leader
    if leader is None:
        return "No controller of hosts has run yet: docs/capacity.md says how pools are made."
    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in ("pool", "hosts", "waiting", "running", "oldest", "an hour", "spent today", "budget", "why"):
        table.add_column(title, overflow="fold")
    for pool in capacity.pools:
        demand = pool.plan.get("demand", [])
        table.add_row(
            pool.name,
            f"{pool.hosts} of {pool.settings.get('min_hosts', 0)} to {pool.settings.get('max_hosts', '?')}",
            str(sum(each["waiting"] for each in demand)),
            str(sum(each["running"] for each in demand)),
            f"{max((each['oldest'] for each in demand), default=0):.0f} s",
            *_spent(pool),
            _budget(pool.budget),
            _why(pool),
        )
    table.caption = f"{leader.holder} decides" + ("" if leader.leads else ": its lease is over, nobody decides now")
    if any(capacity.budget.values()):
        table.add_row("all", "", "", "", "", *_spent(capacity), _budget(capacity.budget), "")
    return table


def _spent(of: PoolView | CapacityView) -> tuple[str, str]:
    return f"${of.spent.get('rate', 0):.3f}", f"${of.spent.get('day', 0):.4f}"


def _budget(budget: Mapping[str, float | None]) -> str:
    limits = [f"${limit:g} {'in all' if name == 'total' else f'a {name}'}" for name, limit in budget.items() if limit]
    return ", ".join(limits) or "-"


def _why(pool: PoolView) -> str:
    said = [each["reason"] for each in pool.plan.get("actions", [])]
    said += [each["message"] for each in pool.plan.get("waiting", [])]
    market = pool.plan.get("market") or {}
    return "; ".join([*said, *filter(None, [market.get("error")])]) or "-"


if __name__ == "__main__":
    sys.exit(main())
