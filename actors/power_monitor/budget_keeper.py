"""The energy budget at work: looks at what the machine has and what the battery can do, and sets the cap and the logs'
limits accordingly.

    keeper = BudgetKeeper(context, cap, writers, cap_bytes_max)
    await keeper.begin(memory_id, restored)           # before anybody stores to a region
    await keeper.run()                                # as a task
    keeper.budget, keeper.energy, keeper.memory       # for people

While everything may be dirty nothing is tracked, and nobody pays for it. When that changes, at a look every LOOK_S,
tracking begins with everything dirty and is drained. How fast the storage is, is measured only where that could matter,
and once for each life of the memory: a host that followed another and did not know would track for a second what need
not be, and much memory at that.

While an image is read behind its guests (`absent_pages`), what they store is tracked whatever the battery: what nobody
has stored to is in that image, and need not be read in order to be saved again. Where that cannot be tracked, the time
to read it is counted.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Callable, Mapping

from everram.actors.power_monitor.budget import Budget, Energy, Memory
from everram.actors.power_monitor.flusher import Flusher, Restored, Writers
from everram.runtime.actor import ActorContext
from everram.runtime.contracts.power_monitor_pb2 import BudgetStatus
from everram.runtime.errors import EverramError, NotFound
from everram.runtime.formats.dirty_book import MEMORY_NAME as BOOK_NAME
from everram.runtime.formats.lasting import is_lasting
from everram.runtime.formats.segment import BATCH_PAGES, BLOCK_BYTES
from everram.runtime.log.ring import Ring, RingCorrupt
from everram.runtime.memory.contract import PAGE_BYTES
from everram.runtime.memory.dirty_cap import TRACKED_PREFIX, DirtyCap
from everram.runtime.sizes import size_text

LOOK_S = 0.5
SAVE_BYTES_PER_S = 50e6
"""Believed of a storage that was not measured: a slow disk."""
FASTEST_BYTES_PER_S = 20e9
"""No storage is faster: what would not be enough with it need not be measured."""
READ_BYTES_PER_S = 25e6
"""Believed of a restore, until it was seen how fast it is."""
SLOWEST_READ_BYTES_PER_S = 5e6
SEEN_S = 2.0
"""Of a restore, before it says how fast it is."""
LINK_BYTES_PER_S = 100e6
"""Believed of a link; a drain over shared memory or loopback is ten times as fast."""
SAMPLE = "power/sample"
SAMPLE_BYTES = 64 << 20
SPEED = "power/speed.json"
LOGS = "log."


class BudgetKeeper:
    """One a host."""

    def __init__(
        self,
        context: ActorContext,
        cap: DirtyCap,
        writers: Writers | None,
        battery_s: Callable[[], float],
        cap_bytes_max: int,
        absent_pages: Callable[[], Mapping[str, bytearray]] = dict,
    ) -> None:
        """`writers`: who traps guests' stores; None where nobody can: then nothing is tracked. `battery_s`: how long
        the battery would last now. `cap_bytes_max`: a lower cap, which a person has set; 0: none. `absent_pages`: by
        object, a byte for each page, which is 1 if a restore has yet to read it."""
        self._absent = absent_pages
        self._absent_first, self._began_s = 0, 0.0
        """When the restore was seen first, and how much was left then."""
        self._read_bytes_per_s = READ_BYTES_PER_S
        self._context, self._environment = context, context.environment
        self._cap, self._writers = cap, writers
        self._battery_s = battery_s
        self._cap_bytes_max = cap_bytes_max or None
        self.flusher = Flusher(context, cap, writers)
        self._flushing: asyncio.Task[None] | None = None
        self._memory_id = ""
        self.save_bytes_per_s, self.measured = SAVE_BYTES_PER_S, False
        self.memory = Memory(0, 0)
        self.budget = Budget(0, None, None, covered=True)
        self._trouble = ""
        """Why nothing is tracked; empty: nothing has to be, or it is."""

    async def begin(self, memory_id: str, restored: Restored | None) -> None:
        """Before anybody stores to a region: then what was restored is clean."""
        self._memory_id = memory_id
        self._cap.on_exposure = self._look
        kept = BOOK_NAME in self._environment.memory.names()
        self._look()
        if self.budget.tracks or kept:
            await self._recall()
            self._look()
        if self._writers is None and kept:
            await self._environment.memory.remove(BOOK_NAME)  # nobody sees stores now
        restoring = restored is not None and self._absent_bytes() > 0
        if self._writers is not None and (kept or restoring or self.budget.tracks or self._cap_bytes_max):
            await self._track(restored)
            self._look()

    async def run(self) -> None:
        """As long as the host lives."""
        while True:
            await asyncio.sleep(LOOK_S)
            try:
                if not self.measured and self._is_worth_measuring():
                    await self._measure()
                self._look()
                if self.budget.tracks and not self._cap.active and self._writers is not None:
                    await self._track(None)
                elif self._cap.active and not (self.budget.tracks or self._cap_bytes_max or self._absent_bytes()):
                    await self._untrack()
                self._look()
            except EverramError as error:
                self._context.log.warning("the energy budget is not kept: %s", error.message)

    async def close(self) -> None:
        """With the host: its successor goes on with the same book."""
        if self._flushing is not None:
            self._flushing.cancel()
            await asyncio.wait([self._flushing])
            await self.flusher.settle()

    async def _track(self, restored: Restored | None) -> None:
        try:
            await self.flusher.begin(self._memory_id, restored)
        except EverramError as error:
            self._trouble = error.message
            raise
        self._trouble = ""
        if self._flushing is None:
            self._flushing = self._context.spawn(self.flusher.run(), name="flush")

    async def _untrack(self) -> None:
        await self.close()
        self._flushing = None
        await self.flusher.end()

    def believe(self, save_bytes_per_s: float) -> None:
        """What a rehearsal has measured."""
        self.save_bytes_per_s, self.measured = min(FASTEST_BYTES_PER_S, max(1.0, save_bytes_per_s)), True
        self._look()

    def outstanding_log_bytes(self) -> int:
        """What active destinations have not acknowledged, of the guest that has most of it."""
        memory, most = self._environment.memory, 0
        for name in memory.names():
            if name.startswith(LOGS) and "@" not in name:
                mapping = memory.open(name).map()
                with contextlib.suppress(RingCorrupt):
                    ring = Ring.open(mapping)
                    holding = [ring.durable(slot) for slot in ring.holding()]
                    most = max(most, ring.tail - min(holding, default=ring.tail))
                mapping.close()
        return most

    # -- for people

    def bytes_to_save(self) -> int:
        """By a save that began now."""
        memory = self._environment.memory
        tracked = self._cap.regions if self._cap.active else {}
        full = sum(
            length
            for name in memory.names()
            if name not in tracked and is_lasting(name)
            for _, length in memory.open(name).extents()
        )
        return full + self._cap.dirty_pages * PAGE_BYTES

    @property
    def covered(self) -> bool:
        """Whether a loss of the mains is survived by all that there is, by what is kept of the budget."""
        return self.budget.covered and not (self._trouble and self.energy.budget(self.memory).tracks)

    def warning(self) -> str:
        if self._trouble and self.budget.tracks:
            lost = "" if self.covered else ": what this machine holds may be lost with its mains"
            cap = size_text(self.budget.cap_bytes or 0)
            return f"no more than {cap} may be dirty, and that is not kept ({self._trouble}){lost}"
        if self.flusher.trouble:
            return f"dirty memory is not flushed: {self.flusher.trouble}"
        if not self.budget.covered:
            return (
                f"a battery of {self._battery_s():g} s saves {size_text(self.budget.save_bytes)}, which is less than "
                f"has to be saved in any case: what this machine holds may be lost with its mains"
            )
        return ""

    def status(self) -> BudgetStatus:
        cap, budget = self._cap, self.budget
        return BudgetStatus(
            battery_s=self._battery_s(),
            save_bytes_per_s=self.save_bytes_per_s,
            measured=self.measured,
            save_bytes=budget.save_bytes,
            full_bytes=self.memory.full_bytes,
            tracked_bytes=self.memory.tracked_bytes,
            covered=self.covered,
            tracking=cap.active,
            cap_bytes=cap.target_pages * PAGE_BYTES if cap.active else 0,
            dirty_bytes=cap.dirty_pages * PAGE_BYTES,
            most_dirty_bytes=cap.most_dirty_pages * PAGE_BYTES,
            flushed_bytes=self.flusher.flushed_pages * PAGE_BYTES,
            delayed_pages=cap.delayed,
            waited_pages=cap.waited,
            log_bytes=budget.log_bytes or 0,
            outstanding_log_bytes=self.outstanding_log_bytes(),
        )

    # -- what there is

    @property
    def energy(self) -> Energy:
        return Energy(self._battery_s(), self.save_bytes_per_s, LINK_BYTES_PER_S, self._read_bytes_per_s)

    def _look(self) -> None:
        self._see_reading()
        self.memory = self._what_there_is()
        tracking = self._cap.active and self.budget.tracks
        self.budget = self.energy.budget(self.memory, cap_bytes_max=self._cap_bytes_max, tracking=tracking)
        if self.budget.cap_bytes is not None:
            self._cap.target_pages = self.budget.cap_bytes // PAGE_BYTES
        else:  # it does not protect anything, or everything is covered: nobody is stopped
            self._cap.target_pages = self.memory.tracked_bytes // PAGE_BYTES + 1
        self._limit_logs()

    def _see_reading(self) -> None:
        """How fast a restore comes on, on the whole: for a moment it may stand still."""
        absent = self._absent_bytes()
        if not absent:
            self._absent_first = 0
            return
        now_s = self._environment.clock.now_ns() / 1e9
        if not self._absent_first:
            self._absent_first, self._began_s = absent, now_s
        passed_s = now_s - self._began_s
        if passed_s >= SEEN_S and absent < self._absent_first:
            self._read_bytes_per_s = max(SLOWEST_READ_BYTES_PER_S, (self._absent_first - absent) / passed_s)

    def _absent_bytes(self) -> int:
        return PAGE_BYTES * sum(absent.count(1) for absent in self._absent().values())

    def _to_be_read(self) -> int:
        """Before it can be saved. What is clean is in the image that it has not been read from: where stores are
        charged it is left there."""
        regions, pages = self._cap.regions if self._cap.active else {}, 0
        for name, absent in self._absent().items():
            tracked = name in regions and not self._cap.is_exposed(name)
            dirty = regions[name].table.marks() if tracked else b"\1" * len(absent)
            both = int.from_bytes(absent, "little") & int.from_bytes(dirty, "little")
            pages += both.to_bytes(max(len(absent), len(dirty)), "little").count(1)
        return pages * PAGE_BYTES

    def _what_there_is(self) -> Memory:
        memory, full, tracked, logs = self._environment.memory, 0, 0, 0
        for name in memory.names():
            if not is_lasting(name):
                continue
            size_bytes = memory.open(name).size_bytes
            if name.startswith(TRACKED_PREFIX) and self._writers is not None and not self._cap.is_exposed(name):
                tracked += size_bytes
            else:
                full += size_bytes
            if name.startswith(LOGS) and "@" not in name:
                logs += size_bytes
        return Memory(full, tracked, logs, self._to_be_read())

    def _limit_logs(self) -> None:
        """In each ring of a guest of this host; the guest keeps to it by itself."""
        memory = self._environment.memory
        names = [name for name in memory.names() if name.startswith(LOGS) and "@" not in name]
        limit = 0 if self.budget.log_bytes is None else max(1, self.budget.log_bytes // max(1, len(names)))
        for name in names:
            mapping = memory.open(name).map()
            try:
                ring = Ring.open(mapping)
                if ring.throttle != limit:
                    ring.set_throttle(limit)
            except RingCorrupt:
                pass  # whoever serves the guest says so
            finally:
                mapping.close()

    # -- the storage

    def _is_worth_measuring(self) -> bool:
        energy = self.energy
        believed = energy.budget(self.memory)
        fastest = Energy(energy.battery_s, FASTEST_BYTES_PER_S, LINK_BYTES_PER_S).budget(self.memory)
        return (believed.tracks or not believed.covered) and fastest.covered

    async def _measure(self) -> None:
        """As a save writes: past the cache, durably."""
        self.measured = True
        environment = self._environment
        file = await environment.disk.open(SAMPLE, create=True)
        try:
            began_ns = environment.clock.now_ns()
            piece = bytes(BATCH_PAGES * PAGE_BYTES)
            writes = [file.pwrite_all(at, [piece], BLOCK_BYTES) for at in range(0, SAMPLE_BYTES, len(piece))]
            await asyncio.gather(*writes)
            await file.sync()
            took_s = (environment.clock.now_ns() - began_ns) / 1e9
        finally:
            await file.close()
            await environment.disk.remove(SAMPLE)
        self.save_bytes_per_s = min(FASTEST_BYTES_PER_S, SAMPLE_BYTES / max(took_s, 1e-6))
        self._context.log.info("the storage takes %.0f MB/s", self.save_bytes_per_s / 1e6)
        said = {"format": 1, "memory_id": self._memory_id, "bytes_per_s": self.save_bytes_per_s}
        await environment.disk.replace(SPEED, json.dumps(said).encode())

    async def _recall(self) -> None:
        """What an earlier host of this memory has measured."""
        try:
            said = json.loads(await self._environment.disk.read(SPEED))
            if said["memory_id"] == self._memory_id:
                self.save_bytes_per_s = min(FASTEST_BYTES_PER_S, max(1.0, float(said["bytes_per_s"])))
                self.measured = True
        except NotFound:
            return
        except (ValueError, KeyError, TypeError, EverramError) as error:
            self._context.log.warning("what the storage takes is measured again: %s cannot be read: %s", SPEED, error)
