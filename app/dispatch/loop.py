"""Claim, run, settle: the dispatcher of one process."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from functools import partial
from uuid import UUID

from app.background import Background
from app.config import Settings
from app.db.tables.results import SettledColumns
from app.dispatch.events import EventWriter
from app.dispatch.lost_hosts import LostHosts
from app.dispatch.outbox import Outbox
from app.dispatch.run import Run, Stop, attempt, server_of
from app.dispatch.slots import Slots
from app.dispatch.traced import attempt_span
from app.errors import DatabaseUnavailable
from app.fleet.fleet import Fleet
from app.fleet.lanes import Lane
from app.fleet.quarantine import Quarantine
from app.prompts.templates import Templates
from app.queue.events import EventStore
from app.queue.slots import SlotStore
from app.queue.store import QueueStore
from app.queue.ticket import Claim, Outcome, Release, Settlement, Status, backoff_seconds
from app.telemetry import logger
from app.telemetry.metrics import ATTEMPT_SECONDS, LEASES_LOST, of_model

log = logger("dispatch")

CLAIM_BATCH = 200
# Each slot that is offered costs the claim time, and most claims are for one ticket that has just come: so many of each
# server's slots are offered to a model whose tickets did not take all that was offered last.
FEW_SLOTS = 4
DATABASE_RETRY_SECONDS = 0.5
# Another dispatcher holds the rows that were due: it is done with them at once.
RACED_SECONDS = 0.02


class Dispatcher:
    """Keeps every free slot of the fleet busy while work waits.

    `name` only labels: nothing depends on it.
    """

    def __init__(
        self,
        store: QueueStore,
        events: EventStore,
        fleet: Fleet,
        slots: SlotStore,
        lost_hosts: LostHosts,
        templates: Templates,
        settings: Settings,
        name: str,
    ) -> None:
        self._store = store
        self._event_writer = EventWriter(events)
        self._fleet = fleet
        self._lost_hosts = lost_hosts
        self._templates = templates
        self._settings = settings
        self._name = name
        # By attempt token: a result may be claimed anew while its old, lost run still winds down.
        self._runs: dict[UUID, Run] = {}
        # Renewing and settling touch the same rows: one at a time, or they wait for each other in Postgres.
        self._writing = asyncio.Lock()
        self._outbox = Outbox(store, self._writing, self._event_writer.confirm, self._written)
        self._quarantine = Quarantine(fleet, settings.stall_seconds, settings.idle_timeout_seconds, self._give_up)
        self._slots = Slots(slots, fleet, settings.lease_seconds, self._slot_freed)
        self._wake = asyncio.Event()
        self._idle = asyncio.Event()
        self._stopping = False
        # Models whose queue was seen empty, and how often new work was announced since the start.
        self._drained: set[str] = set()
        self._announced = 0
        # Models whose tickets took every slot that was offered them last.
        self._busy: set[str] = set()
        # Whether the runs have all the bytes they may.
        self._full = False
        # While a claim is under way: whom somebody began to follow, for the answer may not know it yet.
        self._followed: set[UUID] | None = None
        fleet.changed = self.work_announced
        fleet.freed = self._slot_freed

    def work_announced(self, model: str = "") -> None:
        """There may be work, for this model alone or for any: look now."""
        self._announced += 1
        if model:
            self._drained.discard(model)
        else:
            self._drained.clear()
        self._wake.set()

    def _slot_freed(self) -> None:
        if self._stopping:
            self._fleet.share_out()
        else:
            self._wake.set()

    def cancel_announced(self, payload: str) -> None:
        """A cancel was asked for; an empty payload means that some may have been missed."""
        if payload:
            self._cancel({UUID(payload)})

    def follow_announced(self, payload: str) -> None:
        """Somebody follows a result; an empty payload means that the connection was lost meanwhile.

        What was missed then is found by a renewal.
        """
        if payload:
            self._stream({UUID(payload)})
            if self._followed is not None:
                self._followed.add(UUID(payload))
        else:
            self._event_writer.doubt()

    def _stream(self, ids: Collection[UUID]) -> None:
        if not ids:
            return
        for run in list(self._runs.values()):
            if run.claim.id in ids and not run.streamed:
                run.streamed = True
                self._event_writer.moved(run)

    def _cancel(self, ids: Collection[UUID]) -> None:
        for run in list(self._runs.values()):
            if run.claim.id in ids:
                run.stop(Stop.CANCEL)

    async def run(self, stop: asyncio.Event) -> None:
        """Works until `stop` is set, then drains: no new claims, runs may end, the rest is released."""
        async with Background() as background:
            claimer = background.start("claims", self._claim_until_stopped)
            background.start("renewals", self._renew_forever)
            background.start("ticks", self._tick_forever)
            background.start("settles", self._outbox.run)
            background.start("slots", self._slots.run)
            background.start("stream events", self._event_writer.run)
            background.start("quarantine", partial(self._quarantine.watch, self._settings.probe_seconds))
            await stop.wait()
            self._stopping = True
            self._wake.set()
            await claimer
            await self._drain()

    def _give_up(self, lane: Lane) -> None:
        for run in list(self._runs.values()):
            if run.lane is lane:
                run.stop(Stop.STUCK)

    async def _claim_until_stopped(self) -> None:
        while not self._stopping:
            self._wake.clear()
            room = self._settings.max_in_flight_bytes - sum(run.size for run in self._runs.values())
            self._note_room(room)
            lanes = [] if self._full else self._offered()
            kept_free = False
            if lanes:
                announced = self._announced
                ended = {lane: lane.turnover.take_ended() for lane in set(lanes)}
                self._followed = set()
                try:
                    claimed = await self._store.claim(
                        await self._slots.offer(lanes),
                        lease_seconds=self._settings.lease_seconds,
                        dispatcher=self._name,
                        holding=list(self._runs),
                        running=self._slots_by_owner(),
                        most_bytes=room,
                        ended=self._slots.ended,
                        named={(lane.server.url, lane.server.title, lane.server.entry.kind) for lane in lanes},
                        kept_share=self._settings.interactive_share,
                    )
                except DatabaseUnavailable:
                    log.warning("postgres is away, no claims")
                    await asyncio.sleep(DATABASE_RETRY_SECONDS)
                    continue
                claims = claimed.claims
                got = Counter(claim.model for claim in claims)
                if claimed.raced and not claims:
                    await asyncio.sleep(RACED_SECONDS)
                    continue
                if announced == self._announced and not (claimed.raced or claimed.left_out or claimed.held_back):
                    # Of the others, the servers have no room: whoever makes some claims anew.
                    self._drained.update(model for model, n in claimed.granted.items() if got[model] < n)
                for model, n in Counter(lane.model for lane in lanes).items():
                    (self._busy.add if got[model] == n else self._busy.discard)(model)
                kept_free = claimed.held_back > 0
                followed, self._followed = self._followed, None
                self._note_turnover(ended, claims)
                for claim in claims:
                    self._start(claim)
                self._stream(followed)
                if claims:
                    # Lets the new runs take their slots before they are counted again.
                    await asyncio.sleep(0)
                    continue
            if not (self._wake.is_set() or kept_free):
                # What no ticket of the queue wants, choices of running ones may use.
                self._fleet.share_out()
            await self._wake.wait()

    def _offered(self) -> list[Lane]:
        return self._fleet.free_slots(CLAIM_BATCH, without=self._drained, few=FEW_SLOTS, many=self._busy)

    def _note_turnover(self, ended: Mapping[Lane, Sequence[float]], claims: Sequence[Claim]) -> None:
        waited: dict[tuple[str, str], list[float | None]] = {}
        for claim in claims:
            waited.setdefault((claim.server, claim.model), []).append(claim.queued_seconds)
        for lane, times in ended.items():
            if times and (seconds := waited.get((lane.server.url, lane.model))):
                lane.turnover.refilled(times, seconds)

    def _note_room(self, room: int) -> None:
        full = room <= 0
        if full and not self._full:
            log.warning("claims wait, what is in flight has MAX_IN_FLIGHT_BYTES", in_flight=len(self._runs))
        self._full = full

    def _slots_by_owner(self) -> Counter[tuple[str, int]]:
        slots: Counter[tuple[str, int]] = Counter()
        for run in self._runs.values():
            slots[run.claim.model, run.claim.owner_id] += run.slots
        return slots

    def _start(self, claim: Claim) -> None:
        try:
            run = Run(
                claim, streamed=claim.streamed, price_factor=self._settings.flex_price_factor if claim.flex else 1.0
            )
        except Exception:
            # What is stored of it is damaged in a way that nobody foresaw: the rest of its round starts without it.
            end = self._after_defect(claim)
            self._slots.end(claim, end)
            self._outbox.put(end)
            return
        self._runs[claim.token] = run
        run.task = asyncio.create_task(self._work(run))
        if self._stopping:
            # Claimed just before the stop: it goes back before it starts.
            run.stop(Stop.DRAIN)

    async def _work(self, run: Run) -> None:
        started = time.monotonic()
        with attempt_span(run.claim) as ended:
            try:
                end = await attempt(
                    *(run, self._fleet, self._templates, self._settings, self._lost_hosts, self._event_writer.moved)
                )
            except Exception:
                end = self._after_defect(run.claim, server_of(run))
            ended(end)
        run.settling = True
        if end is not None:
            # Before the slot is given back: somebody may wait for the answer.
            self._outbox.put(end)
        self._slots.end(run.claim, end)
        self._wake.set()
        of_model(ATTEMPT_SECONDS, run.claim.model).observe(time.monotonic() - started)
        if end is None:
            LEASES_LOST.inc()
            log.warning("lease lost, the run was stopped", result=run.claim.id)
            self._written([run.claim.token])

    def _after_defect(self, claim: Claim, server: str | None = None) -> Settlement | Release:
        """Logs the exception under way."""
        log.exception("a defect of the dispatcher ended an attempt", result=claim.id)
        code, message = "internal_error", "The dispatcher failed on this attempt."
        if claim.attempt >= self._settings.max_attempts:
            failed, nothing = Status.FAILED, SettledColumns()
            return Settlement(claim.id, claim.token, failed, Outcome.FAILED, server, nothing, code, message)
        delay = backoff_seconds(claim.attempt)
        return Release(claim.id, claim.token, Outcome.RETRIED, server, delay, True, code, message)

    def _written(self, tokens: Sequence[UUID]) -> None:
        self._event_writer.ended(tokens)
        for token in tokens:
            if (run := self._runs.pop(token, None)) is not None:
                run.forget()
        if self._full:
            self._wake.set()
        if self._stopping and not self._runs:
            self._idle.set()

    async def _renew_forever(self) -> None:
        pause = self._settings.lease_seconds / 3
        while True:
            await asyncio.sleep(pause)
            held = [(run.claim.id, run.claim.token, server_of(run)) for run in self._runs.values()]
            if not held:
                pause = self._settings.lease_seconds / 3
                continue
            try:
                async with self._writing:
                    kept = await self._store.renew(held, lease_seconds=self._settings.lease_seconds)
                await self._slots.renew(run.claim for run in self._runs.values() if not run.settling)
            except DatabaseUnavailable:
                pause = min(DATABASE_RETRY_SECONDS, self._settings.lease_seconds / 3)
                continue
            pause = self._settings.lease_seconds / 3
            self._stream({id_ for id_, token, _ in held if (state := kept.get(token)) and state.streamed})
            for _, token, _ in held:
                run = self._runs.get(token)
                if run is None:
                    continue
                state = kept.get(token)
                if state is None:
                    run.stop(Stop.LEASE_LOST)
                elif state.cancel_requested:
                    run.stop(Stop.CANCEL)
                elif state.expired:
                    run.stop(Stop.EXPIRY)

    async def _tick_forever(self) -> None:
        """What notifications usually bring sooner: new work, ended backoffs, cancels."""
        while True:
            await asyncio.sleep(self._settings.poll_seconds)
            self.work_announced()
            self._fleet.show_slots()
            if not self._runs:
                continue
            try:
                self._cancel(await self._store.cancelling())
            except DatabaseUnavailable:
                continue

    async def _drain(self) -> None:
        await self._end_runs()
        # What is not given back is free when its lease is over.
        await self._slots.flush()

    async def _end_runs(self) -> None:
        log.info("stopping", running=len(self._runs), drain_seconds=self._settings.drain_seconds)
        if self._runs:
            try:
                async with asyncio.timeout(self._settings.drain_seconds):
                    await self._idle.wait()
            except TimeoutError:
                for run in list(self._runs.values()):
                    run.stop(Stop.DRAIN)
                try:
                    async with asyncio.timeout(5):
                        await self._idle.wait()
                except TimeoutError:
                    log.warning("some claims could not be given back; their leases will end", left=len(self._runs))
