"""One rented instance, as the service sees it: its row, its state over time, its price."""

import asyncio
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tests.vast.fake.faults import Faults, Machine
from tests.vast.fake.host import Host
from tests.vast.fake.market import HOURS_PER_MONTH, Row
from tests.vast.fake.provision import Engine, authorize

CONTRACT_SECONDS = 30 * 86400


class Contract:
    """Boots its machine by itself once it is made; lives in the event loop it is made in."""

    def __init__(
        self,
        ident: int,
        offer: Row,
        body: dict[str, Any],
        *,
        root: Path,
        machine: Machine,
        engine: Engine,
        faults: Faults,
        boot_seconds: float,
    ) -> None:
        self.ident = ident
        self.offer = offer
        self.label: str | None = body.get("label")
        self.start_date = time.time()
        self.intended = "running"
        self.interrupted = False
        self.status: str | None = None
        self.message: str | None = None
        self.ended: float | None = None
        self.keys: dict[int, str] = {}
        self._body = body
        self._faults = faults
        self._end_state, self._end_message = faults.end_state, faults.status_msg
        self._boot_seconds = boot_seconds
        self._charged = 0.0
        self._charged_until = self.start_date
        self._running = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        runtype = str(body.get("runtype") or "")
        self.has_ssh = "ssh" in runtype
        self.has_direct_ssh = "ssh_direc" in runtype and machine.direct
        self.host = Host(root, machine, engine)
        self._start(self._boot())

    @property
    def environment(self) -> dict[str, str]:
        """What the container gets; options that the service does not know are dropped without a word."""
        given = self._body.get("env") or {}
        return {name: str(value) for name, value in given.items() if not name.startswith("-")}

    @property
    def spent(self) -> float:
        """Dollars until now, or until the instance was destroyed."""
        return self._charged + self._since_last()

    def row(self) -> Row:
        row: Row = {
            **{name: value for name, value in self.offer.items() if name not in ("id", "ask_contract_id", "rentable")},
            "id": self.ident,
            "actual_status": self.status,
            "intended_status": self.intended,
            "cur_state": "stopped" if self.interrupted else self.intended,
            "next_state": "stopped" if self.interrupted else self.intended,
            "is_bid": self._body.get("price") is not None,
            "status_msg": self.message,
            "label": self.label,
            "image_uuid": self._body["image"],
            "image_runtype": self._body.get("runtype"),
            "extra_env": [[name, value] for name, value in self.environment.items()],
            "onstart": self._body.get("onstart"),
            "ssh_host": self.host.proxy.address,
            "ssh_port": self.host.proxy_port,
            "public_ipaddr": self.host.address,
            "disk_space": self._body["disk"],
            "disk_usage": -1.0,
            "gpu_util": None,
            "start_date": self.start_date + self._faults.clock_seconds,
            "end_date": self.start_date + self._faults.clock_seconds + CONTRACT_SECONDS,
        }
        if self.status == "created":
            row["ports"] = None
        elif self.status == "running" and self.has_direct_ssh:
            row["ports"] = {
                "22/tcp": [{"HostIp": address, "HostPort": str(self.host.port)} for address in ("0.0.0.0", "::")]
            }
        elif self.status is not None:
            row["ports"] = {}
        return row | self._faults.row

    def authorize(self, keys: Iterable[str]) -> None:
        """Has the keys reach the machine, as late as the faults say."""
        for key in keys:
            number = max(self.keys, default=self.ident * 10) + 1
            self.keys[number] = key
            if self._faults.ssh_key_seconds > 0:
                self._start(self._authorize_late(key))
            else:
                authorize(self.host.opt, key)

    async def stop(self) -> None:
        await self._cancel()
        self._settle()
        self.intended, self.status, self.message = "stopped", "exited", "stopped"
        self._running.clear()
        await self.host.stop()

    async def interrupt(self) -> None:
        """Somebody has bid more: the machine is taken away, its disk stays and costs."""
        await self._cancel()
        self._settle()
        self.interrupted, self.status, self.message = True, "exited", "outbid"
        self._running.clear()
        await self.host.stop()

    def start(self) -> None:
        if self.intended == "stopped":
            self._settle()
            self.intended, self.status, self.message = "running", None, None
            self._start(self._boot())

    async def destroy(self) -> None:
        await self._cancel()
        self._settle()
        self.ended = time.time()
        await self.host.remove()

    def set_status(self, status: str | None, message: str | None) -> None:
        self.status, self.message = status, message

    def logs(self, tail: int) -> str:
        lines = [f"pulling {self._body['image']}"]
        if self.status == "running" and self.host.onstart_log.exists():
            lines += self.host.onstart_log.read_text(errors="replace").splitlines()
        if self._end_state and self.status == self._end_state:
            lines.append(self._end_message)
        return "".join(f"{line}\n" for line in lines[-tail:])

    async def _boot(self) -> None:
        for status, message in ((None, None), ("created", None), ("loading", f"pulling {self._body['image']}")):
            self.set_status(status, message)
            await asyncio.sleep(self._boot_seconds / 3)
        if self._end_state is not None:
            self.set_status(self._end_state, self.message if self._end_state == "loading" else self._end_message)
            return
        names = {"CONTAINER_ID": str(self.ident), "VAST_CONTAINERLABEL": f"C.{self.ident}"}
        await self.host.boot(self._body.get("onstart"), {**names, **self.environment})
        if self.has_ssh:
            self.host.open(direct=self.has_direct_ssh)
        self.set_status("running", f"success, running {self._body['image']}")
        self._running.set()

    async def _authorize_late(self, key: str) -> None:
        await self._running.wait()
        started = time.monotonic()
        # Read anew each time, so that a test can let the key arrive when it has seen enough.
        while time.monotonic() - started < self._faults.ssh_key_seconds:  # noqa: ASYNC110
            await asyncio.sleep(0.05)
        authorize(self.host.opt, key)

    def _since_last(self) -> float:
        if self.ended is not None:
            return 0.0
        storage = self.offer["storage_cost"] * float(self._body["disk"]) / HOURS_PER_MONTH
        rate = self.offer["dph_total"] if self.intended == "running" and not self.interrupted else storage
        return float(rate) * (time.time() - self._charged_until) / 3600

    def _settle(self) -> None:
        self._charged += self._since_last()
        self._charged_until = time.time()

    def _start(self, work: Any) -> None:
        task: asyncio.Task[None] = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self.set_status("exited", f"the simulated machine failed: {error}")

    async def _cancel(self) -> None:
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
