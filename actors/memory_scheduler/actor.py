"""The memory scheduler's actor: guests' volatile memory comes and goes here, and is divided by its `Reclaimer`.

Memory objects of a guest: `volatile.ID` (its memory), `classes.ID` (what it says of its pages, shared with it) and
`swapped.ID` (where its pages are, for this host's successor alone). All three begin empty with each incarnation,
outlive the host, and end with the guest's process. What a user has set stays, in `memory/limits.json` of the state
folder.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Awaitable
from typing import Any, Protocol

from everram.actors.memory_scheduler import views
from everram.actors.memory_scheduler.admission import Room, Wish, admit, check_limits
from everram.actors.memory_scheduler.guest_memory import GuestMemory
from everram.actors.memory_scheduler.pager import GuestPager
from everram.actors.memory_scheduler.pressure import min_free
from everram.actors.memory_scheduler.reclaimer import Policy, Reclaimer
from everram.actors.memory_scheduler.swap_file import SwapFile
from everram.actors.memory_scheduler.targets import choose
from everram.runtime.contracts import common_pb2 as pb
from everram.runtime.contracts import memory_scheduler_pb2 as ms
from everram.runtime.contracts.availability_contract import AVAILABILITY_NOTE_MEMORY, AvailabilityRef
from everram.runtime.contracts.availability_pb2 import GuestLimits, MemoryFigures
from everram.runtime.contracts.memory_scheduler_contract import MemorySchedulerActor
from everram.runtime.contracts.vmemfs_contract import VMemFSRef
from everram.runtime.errors import EverramError, FailedPrecondition, NotFound, ResourceExhausted
from everram.runtime.formats import page_classes
from everram.runtime.formats.config import HostConfig
from everram.runtime.formats.page_classes import PageClasses
from everram.runtime.formats.swap_table import MEMORY_PREFIX, TABLE_PREFIX, SwapTable
from everram.runtime.memory.contract import PAGE_BYTES
from everram.runtime.memory.paging import Pager

LIMITS = "memory/limits.json"
FREEZE_REASON = "reclaim"
REOPEN_S = 1.0
"""Between attempts to open a swap file that could not be opened."""
FIGURES_EVERY_S, FIGURES_STEPS = 2.0, 16
"""How often others are told what guests work with, unless guests come or go; and what part of the limit is a change."""
NO_PAGING = "this computer has no full userfaultfd (`everram doctor` says how to enable it)"
NO_MEMORY = "this host has no memory left for it"


class Faults(Protocol):
    """One per host. The real one is `everram.runtime.memory.page_service`."""

    def use_pager(self, pager: Pager | None) -> None:
        """Who pages guests' volatile memory from now on."""


class MemoryScheduler(MemorySchedulerActor):
    """`faults`: where guests' page faults arrive; None where this computer cannot tell of them."""

    def __init__(self, config: HostConfig, faults: Faults | None = None, policy: Policy = choose) -> None:
        self._config = config
        self._faults = faults
        self._policy = policy

    # -- start

    async def on_start(self) -> None:
        environment = self.context.environment
        self._guests: dict[str, GuestMemory] = {}
        self._some = asyncio.Event()
        self._availability = self.context.ref(AvailabilityRef)
        self._figures: MemoryFigures | None = None  # as they were told, and when
        self._figures_ns = 0
        self._opening = asyncio.Lock()
        self._limits = await self._read_limits()
        self._swapping_off = NO_PAGING if self._faults is None else ""
        self._pager = GuestPager(self._guests, self.context.spawn, environment.clock.now_ns, self._broken)
        limit = self._config.guest_memory_bytes
        self._reclaimer = Reclaimer(
            self._guests, self._pager, limit, environment.clock, environment.entropy, self._policy
        )
        self.context.resources.callback(self._close)
        for name in environment.memory.names():
            if name.startswith(MEMORY_PREFIX):
                self._adopt(name.removeprefix(MEMORY_PREFIX))
        if self._guests:
            await self._open_swap()
        if self._faults is not None:
            self._faults.use_pager(self._pager)
        for process in await environment.machine.guests():
            if FREEZE_REASON in process.freeze_reasons:
                await environment.machine.thaw(process.guest_id, FREEZE_REASON)
        self.context.spawn(self._watch(), name="guests' memory")
        if self._faults is not None:
            self.context.spawn(self._watch_swap(), name="swap file")

    def _close(self) -> None:
        if self._faults is not None:
            self._faults.use_pager(None)
        for guest in self._guests.values():
            guest.close()

    def _adopt(self, guest_id: str) -> None:
        """What this host's predecessor left; a guest whose tables are not whole was not begun yet."""
        memory, table = self.context.environment.memory, TABLE_PREFIX + guest_id
        classes = page_classes.object_name(guest_id)
        if not {table, classes} <= set(memory.names()):
            return
        swap_mapping = memory.open(table).map()
        try:
            swap = SwapTable.open(swap_mapping)
        except EverramError as error:
            swap_mapping.close()
            self.context.log.about(guest=guest_id).error("the memory of %s cannot be used: %s", guest_id, error.message)
            return
        self._keep(guest_id, guest_id, swap)

    def _keep(self, guest_id: str, name: str, swap: SwapTable) -> GuestMemory:
        memory = self.context.environment.memory
        mapping = memory.open(page_classes.object_name(guest_id)).map()
        guest = self._guests[guest_id] = GuestMemory(
            guest_id,
            name,
            memory.open(MEMORY_PREFIX + guest_id),
            PageClasses(mapping, swap.pages),
            mapping,
            swap,
            swap.pages,
        )
        said = self._limits.get(guest_id, {})
        guest.name = str(said.get("name", name))
        guest.min_pages = int(said.get("min_bytes", 0)) // PAGE_BYTES
        guest.max_pages = int(said.get("max_bytes", 0)) // PAGE_BYTES
        guest.swapped = sum(1 for _ in swap.swapped())
        guest.balloon.asked = min(guest.classes.target, guest.pages)
        self._reclaimer.begin(guest)
        self._some.set()
        return guest

    async def _open_swap(self) -> None:
        """Once the first guest has memory of its own. Where it cannot be opened guests go on without."""
        async with self._opening:
            if self._faults is not None and self._pager.file is None:
                await self._try_swap()

    async def _try_swap(self) -> None:
        slots = self._config.swap_space_bytes // PAGE_BYTES
        try:
            host = await self.context.ref(VMemFSRef).get_host(pb.Empty())
            needed = sum(guest.swapped for guest in self._guests.values())
            file = await SwapFile.open(self.context.environment.disk, host.memory_id, slots, needed=needed)
        except EverramError as error:
            before, self._swapping_off = self._swapping_off, f"the swap file cannot be used: {error.message}"
            if self._swapping_off != before:
                self.context.log.error("%s", self._swapping_off)
            return
        self.context.resources.callback(file.close)
        for guest in self._guests.values():
            for _, slot in guest.swap.swapped():
                file.slots.hold(slot)
        self._pager.file, self._swapping_off = file, ""

    # -- the loop

    async def _watch(self) -> None:
        while True:
            self._tell_figures()
            if not self._guests:
                self._some.clear()
                await self._some.wait()
            await self._reclaimer.look()
            await self._pause_and_resume()
            await asyncio.sleep(self._reclaimer.pause_s)

    def _tell_figures(self) -> None:
        """The host's entry in the directory says what guests work with, for those who place others."""
        now_ns, told = self.context.environment.clock.now_ns(), self._figures
        same = told is not None and {guest.guest_id for guest in told.guests} == self._guests.keys()
        if same and now_ns - self._figures_ns < FIGURES_EVERY_S * 1e9:
            return
        self._figures_ns = now_ns
        limit_bytes = self._reclaimer.limit_bytes
        swap_bytes = 0 if self._swapping_off else self._config.swap_space_bytes
        figures = views.figures(self._guests.values(), limit_bytes - min_free(limit_bytes), swap_bytes)
        if told is None or views.differ(figures, told, limit_bytes // FIGURES_STEPS):
            with contextlib.suppress(ResourceExhausted):  # it has much to do: it is told the next time
                self._availability.tell(AVAILABILITY_NOTE_MEMORY, figures)
                self._figures = figures

    async def _watch_swap(self) -> None:
        """Until the swap file is open: guests that were there before this host may wait for what is in it."""
        while self._pager.file is None:
            await self._some.wait()
            await asyncio.sleep(REOPEN_S)
            await self._open_swap()

    def _broken(self, guest_id: str) -> None:
        guest = self._guests.get(guest_id)
        if guest is None or not guest.broken:
            return
        page, why = next(iter(guest.broken.items()))
        self.context.log.about(guest=guest_id).error(
            "%s waits for page %d, which cannot be swapped in: %s", guest.name, page, why
        )

    async def _pause_and_resume(self) -> None:
        """Guests that grow while nothing is left are paused, as those are whose pages the storage does not give."""
        machine = self.context.environment.machine
        standing = self._reclaimer.to_pause()
        trouble = self._reclaimer.trouble or self._swapping_off
        for guest in list(self._guests.values()):
            if guest.closed:
                continue
            why = next(iter(guest.broken.values()), "")
            stands = bool(why) or guest.guest_id in standing
            if not why and guest.starved:
                why = f"{NO_MEMORY}: {trouble}" if trouble else NO_MEMORY
            if why and not guest.paused:
                self.context.log.about(guest=guest.guest_id).warning("%s is paused: %s", guest.name, why)
            guest.paused = why
            before, guest.stands = guest.stands, stands
            try:
                if stands and not before:
                    await machine.freeze(guest.guest_id, FREEZE_REASON)
                elif before and not stands:
                    await machine.thaw(guest.guest_id, FREEZE_REASON)
            except (NotFound, FailedPrecondition):
                guest.paused, guest.stands = "", False  # it has just ended

    # -- guests come and go

    async def prepare(self, request: ms.GuestMemory) -> ms.MemoryGrant:
        guest_id, memory = request.guest_id, self.context.environment.memory
        # What an earlier everram has set is known to this host alone.
        said = {} if request.limits_set else self._limits.get(guest_id, {})
        wish = Wish(
            request.name,
            request.memory_bytes,
            int(said.get("min_bytes", request.min_bytes)),
            int(said.get("max_bytes", request.max_bytes)),
            again=request.again,
        )
        check_limits(wish)
        await self._drop(guest_id)
        await self._open_swap()
        admit(wish, self._room())
        pages = wish.memory_bytes // PAGE_BYTES
        await memory.create(MEMORY_PREFIX + guest_id, wish.memory_bytes)
        classes = await memory.create(page_classes.object_name(guest_id), PageClasses.total_bytes(pages))
        mapping = classes.map()
        PageClasses.format(mapping, pages)
        mapping.close()
        table = await memory.create(TABLE_PREFIX + guest_id, SwapTable.total_bytes(pages))
        await self._say_limits(guest_id, {"name": wish.guest, "min_bytes": wish.min_bytes, "max_bytes": wish.max_bytes})
        self._keep(guest_id, wish.guest, SwapTable.format(table.map(), pages))
        return ms.MemoryGrant(
            memory=MEMORY_PREFIX + guest_id,
            memory_bytes=wish.memory_bytes,
            classes=page_classes.object_name(guest_id),
            classes_bytes=PageClasses.total_bytes(pages),
        )

    def _room(self) -> Room:
        guests = self._guests.values()
        return Room(
            limit_bytes=self._reclaimer.limit_bytes,
            min_free_bytes=min_free(self._reclaimer.limit_bytes),
            reserved_bytes=sum(guest.min_pages for guest in guests) * PAGE_BYTES,
            working_bytes=int(sum(guest.usage.working_set_high for guest in guests)) * PAGE_BYTES,
            promised_bytes=sum(guest.pages for guest in guests) * PAGE_BYTES,
            swap_bytes=self._config.swap_space_bytes if self._pager.file is not None else 0,
        )

    async def release(self, request: ms.GuestMemoryKey) -> pb.Empty:
        await self._drop(request.guest)
        return pb.Empty()

    async def retain(self, request: ms.GuestMemoryKeys) -> pb.Empty:
        names = self.context.environment.memory.names()
        there = {name.removeprefix(MEMORY_PREFIX) for name in names if name.startswith(MEMORY_PREFIX)}
        for guest_id in sorted(there - set(request.guest_ids)):
            await self._drop(guest_id)
        if gone := self._limits.keys() - set(request.guest_ids):
            self._limits = {key: value for key, value in self._limits.items() if key not in gone}
            await self._write_limits()
        return pb.Empty()

    async def _drop(self, guest_id: str) -> None:
        """Whatever there is of a guest's memory, its places in the swap file first."""
        guest = self._guests.pop(guest_id, None)
        if guest is not None:
            self._pager.forget(guest)
            guest.close()
        memory = self.context.environment.memory
        for name in (TABLE_PREFIX + guest_id, page_classes.object_name(guest_id), MEMORY_PREFIX + guest_id):
            if name in memory.names():
                await memory.remove(name)

    # -- limits

    def set_limits(self, request: ms.MemoryLimits) -> Awaitable[ms.GuestMemoryStatus]:
        return self.context.later(self._set_limits(request))

    async def _set_limits(self, request: ms.MemoryLimits) -> ms.GuestMemoryStatus:
        guest = self._find(request.guest)
        low = request.min_bytes if request.HasField("min_bytes") else guest.min_pages * PAGE_BYTES
        high = request.max_bytes if request.HasField("max_bytes") else guest.max_pages * PAGE_BYTES
        check_limits(Wish(guest.name, guest.pages * PAGE_BYTES, low, high))
        others = sum(each.min_pages for each in self._guests.values() if each is not guest) * PAGE_BYTES
        usable = self._reclaimer.limit_bytes - min_free(self._reclaimer.limit_bytes)
        if low + others > usable:
            raise ResourceExhausted(
                f"the mins of all guests here would be {low + others} bytes, and guests may have {usable}: lower one"
            )
        # First where they go with the guest, should it begin on another host, or on this one without its disk.
        await self._availability.limit(GuestLimits(guest_id=guest.guest_id, min_bytes=low, max_bytes=high))
        guest = self._find(guest.guest_id)  # it may have begun anew meanwhile, or ended
        await self._say_limits(guest.guest_id, {"name": guest.name, "min_bytes": low, "max_bytes": high})
        guest.min_pages, guest.max_pages = -(-low // PAGE_BYTES), high // PAGE_BYTES
        return views.guest_status(guest, self.context.environment.clock.now_ns())

    async def _say_limits(self, guest_id: str, said: dict[str, Any]) -> None:
        if self._limits.get(guest_id) != said:
            self._limits[guest_id] = said
            await self._write_limits()

    async def _write_limits(self) -> None:
        text = json.dumps({"format": 1, "guests": self._limits}, indent=2, sort_keys=True) + "\n"
        await self.context.environment.disk.replace(LIMITS, text.encode())

    async def _read_limits(self) -> dict[str, dict[str, Any]]:
        try:
            said = json.loads(await self.context.environment.disk.read(LIMITS))
            return {str(key): dict(value) for key, value in said["guests"].items()}
        except NotFound:
            return {}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            self.context.log.error("%s is damaged, so guests have the limits they were run with: %s", LIMITS, error)
            return {}

    # -- what is told

    def _find(self, name: str) -> GuestMemory:
        for guest in self._guests.values():
            if name in (guest.guest_id, guest.name):
                return guest
        raise NotFound(f"no guest {name} with memory of its own runs on {self.context.host}: run it with --memory")

    def status(self, request: pb.Empty) -> ms.MemoryStatus:
        file, now_ns = self._pager.file, self.context.environment.clock.now_ns()
        limit = self._reclaimer.limit_bytes
        status = ms.MemoryStatus(
            host=self.context.host,
            limit_bytes=limit,
            resident_bytes=limit - self._reclaimer.available_bytes,
            min_free_bytes=min_free(limit),
            pressure=self._reclaimer.pressure.name.lower(),
            swapping=self._swapping_off or self._reclaimer.trouble,
            swap_bytes=self._config.swap_space_bytes,
            swap_used_bytes=file.slots.used * PAGE_BYTES if file is not None else 0,
            guests=[views.guest_status(guest, now_ns) for guest in self._guests.values()],
            promised_bytes=sum(guest.pages for guest in self._guests.values()) * PAGE_BYTES,
        )
        if latencies := sorted(self._pager.latencies_ns):
            status.swap_in_p50_s = latencies[len(latencies) // 2] / 1e9
            status.swap_in_p99_s = latencies[len(latencies) * 99 // 100] / 1e9
        return status

    def explain(self, request: ms.GuestMemoryKey) -> ms.MemoryExplanation:
        now_ns = self.context.environment.clock.now_ns()
        return views.explanation(self._find(request.guest), self._reclaimer.pressure, now_ns)
