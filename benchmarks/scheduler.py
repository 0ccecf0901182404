"""The memory scheduler beside what a host could do instead, on real guests that were promised 1.5 times what there is.

Four guests of equal size (`workloads` in the output) come one after the other and then run on one host at once, for
each way to divide its memory:

- `everram`: as `actors/memory_scheduler` does it;
- `swap_only_random`, `swap_only_lru`: pages are paged out that were drawn at random, or that were not used while they
  were watched from outside (a second chance for each);
- `balloon_only`: guests are asked, and nothing is paged out; whoever grows when nothing is left is paused;
- `access_only`: everram's, but all that is known of a page is whether it was used lately, as seen from outside;
- `enough`: with memory for all, what the others are measured by.

Another run has guests of whom there is little to take but anonymous memory, half of which they use all the time
(`PRESSED`), and whose host gets short of memory when they have worked for a while. So pages are swapped out, and each
is counted by what is true of it at that moment: it is misplaced if the workload itself means to use it all the time, or
if it was used within the interval that counts as active.

The work of a guest is its operations a second, as a part of what it does with enough memory. That of a way is the
geometric mean of its guests', as is right for ratios to measures that differ; the arithmetic means are given, too, in
which a guest that stands still hardly counts. Refaults are counted for each operation, since who does more needs more.
A guest that grows while nothing is left is paused in every way, as a host pauses it. With balloons alone some then
stand still for good: what could be taken is cache of guests that are paused, and a paused guest drops nothing. Read
`throughput_vs_balloon_only` as what that costs. Where nobody is paused, balloons alone do 0.92 to 0.99 of everram's
work here, with 2.3 to 2.9 times the refaults. Where paused guests run for a moment now and then, as on everram's own
hosts that cannot swap, they did about as much as everram in the two rounds that were measured.
Every object is verified at every access. A host's scheduler, pager and page service are the real ones, and run in this
process. Ratios above 1 say that everram does more; the medians of `--rounds` are given.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import os
import random
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks._scheduler_guest import FILL, STORAGE_S, WORKLOADS
from benchmarks._scheduler_model import compare
from everram.actors.memory_scheduler.estimates import Usage, Z, estimate
from everram.actors.memory_scheduler.guest_memory import GuestMemory
from everram.actors.memory_scheduler.pager import BATCH_PAGES, GuestPager
from everram.actors.memory_scheduler.pressure import Pressure, shortage_in_use
from everram.actors.memory_scheduler.reclaimer import Reclaimer
from everram.actors.memory_scheduler.sampling import SAMPLE_PAGES, draw
from everram.actors.memory_scheduler.swap_file import SwapFile
from everram.actors.memory_scheduler.targets import Demand, Technique, choose, squeeze
from everram.runtime.environment import MachineEvent, TrackedRange
from everram.runtime.formats.page_classes import MEMORY_LABEL, Kind, PageClass, PageClasses, classify
from everram.runtime.formats.swap_table import SwapTable
from everram.runtime.memory.contract import PAGE_BYTES
from everram.runtime.memory.page_service import PageService
from everram.runtime.production.clock import SystemClock
from everram.runtime.production.disk import Folder
from everram.runtime.production.memory import KeptObject

MIB = 1 << 20
GUEST_MIB = 40
GUESTS = ("cache-heavy", "anonymous-heavy", "mixed", "mostly free")
PRESSED = ("anonymous-heavy", "anonymous-heavy", "mixed", "mostly free")
OVERCOMMIT = 1.5
SHORTER_S, SHORTER_STEPS = 4.0, 40
APART_S, WARM_S, MEASURED_S = 5.0, 10.0, 6.0
"""Guests come one after the other, and work as they do before the next one comes; all have for a while before it is
measured."""
REST_GUESTS, REST_S = 8, 6.0
RECLAIM_MIB = 256
TRIALS = 400
SEEDS = 100
GUEST = Path(__file__).with_name("_scheduler_guest.py")


@dataclass
class Guest:
    name: str
    memory: GuestMemory
    process: subprocess.Popen[bytes]
    channel: socket.socket
    report: int
    stopped: bool = False

    def count(self) -> int:
        return int.from_bytes(os.pread(self.report, 8, 0), "little")


class Objects:
    """`environment.Memory` for the page service."""

    def __init__(self) -> None:
        self.by_name: dict[str, KeptObject] = {}

    def make(self, name: str, size_bytes: int) -> KeptObject:
        fd = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.ftruncate(fd, size_bytes)
        self.by_name[name] = KeptObject(name, fd)
        return self.by_name[name]

    def names(self) -> list[str]:
        return sorted(self.by_name)

    def open(self, name: str) -> KeptObject:
        return self.by_name[name]


# -- ways to divide memory


def swap_only(pressure: Pressure, **_: bool) -> tuple[Technique, str]:
    return (Technique.NONE if pressure < Pressure.SOFT else Technique.SWAP), "swap only"


def balloon_only(pressure: Pressure, **_: bool) -> tuple[Technique, str]:
    return (Technique.NONE if pressure is Pressure.HIGH else Technique.BALLOON), "balloon only"


class Known(GuestMemory):
    """As everram has it; and what is swapped out is counted by what its workload knows of it."""

    report = -1

    def is_active(self, page: int) -> bool:
        return super().is_active(page) or os.pread(self.report, 1, PAGE_BYTES + page) == b"\1"


class Blind(Known):
    """Nothing is known of its pages but whether they were used lately, as far as their host sees that from outside."""

    dice = random.Random(5)

    def there(self) -> list[int]:
        return self._present_among(b"\1" * self.pages)

    def unused(self) -> list[int]:
        return []

    def count_unused(self) -> int:
        return 0

    def dead(self) -> list[int]:
        return []

    def unseen(self) -> list[int]:
        return self.there()

    def any_used(self) -> list[int]:
        return self.there()

    def look_at_warmth(self, *, pause: bool) -> None:
        pass

    def count_idle_cache(self) -> int:
        return 0

    def coldest(self, count: int, *, however_warm: bool = False, but_cache: bool = False) -> list[int]:
        """None is known to be; if it has to be, any."""
        present = self.there() if however_warm else []
        return sorted(self.dice.sample(present, min(count, len(present))))

    def sampled(self, now_ns: int) -> dict[PageClass, int]:
        used = self.paged.touched(self.drawn) if self.paged is not None else set()
        counts = dict.fromkeys(PageClass, 0)
        for page in self.drawn:
            swapped, present = self.swap.is_swapped(page), self.is_present(page)
            counts[classify(Kind.ANONYMOUS, page in used, present=present, swapped=swapped)] += 1
        return counts

    def redraw(self, pages: list[int], now_ns: int) -> None:
        self.drawn = pages
        if self.paged is not None:
            self.paged.forget_touches(pages)


class OnlySwap(Reclaimer):
    """Everybody gives in proportion to what it has: pages that were not used while the host watched them."""

    def _decide(self, available: int, now_ns: int) -> dict[str, int]:
        for guest in self._guests.values():
            guest.technique = Technique.SWAP if self.pressure > Pressure.HIGH else Technique.NONE
        for_all = shortage_in_use(self.pressure, available, self.limit_bytes) / PAGE_BYTES
        return squeeze([Demand(guest.guest_id, guest.resident, Usage()) for guest in self._guests.values()], for_all)

    async def _swap(self, guest: GuestMemory, pages: int) -> None:
        left = pages - await self._swap_suspects(guest, pages, answers=False)
        if left > 0 and self.pressure is Pressure.LOW:
            await self._swap_all(guest, guest.coldest(left, however_warm=True))


class OnlySwapRandom(OnlySwap):
    """Any page."""

    async def _swap(self, guest: GuestMemory, pages: int) -> None:
        await self._swap_all(guest, guest.coldest(pages, however_warm=True))


class NoBreath(Reclaimer):
    """Whoever is paused stands still until others have made room."""

    def _breathes(self, guest: GuestMemory) -> bool:
        return False


WAYS: dict[str, tuple[type[Known], type[Reclaimer], Any]] = {
    "enough": (Known, Reclaimer, choose),
    "everram": (Known, Reclaimer, choose),
    "swap_only_random": (Blind, OnlySwapRandom, swap_only),
    "swap_only_lru": (Blind, OnlySwap, swap_only),
    "balloon_only": (Known, NoBreath, balloon_only),
    "access_only": (Blind, Reclaimer, choose),
}


# -- one host


class SlowSwap(SwapFile):
    """On storage that takes as long as a cache's origin does: the file itself is in this computer's page cache."""

    async def read(self, slots: Sequence[int]) -> list[bytes]:
        await asyncio.sleep(STORAGE_S)
        return await super().read(slots)


@dataclass
class Host:
    """The scheduler of a host, with guests, in this process."""

    limit_bytes: int
    kind: type[Known] = Known
    reclaimer_kind: type[Reclaimer] = Reclaimer
    policy: Any = choose
    guests: list[Guest] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)

    async def start(self, folder: str) -> None:
        self.by_id: dict[str, GuestMemory] = {}
        self.objects = Objects()
        self.service = PageService(self.objects)  # type: ignore[arg-type]
        self.tasks: set[asyncio.Task[None]] = set()
        self.pager = GuestPager(self.by_id, self.spawn, time.monotonic_ns, self.lost.append)
        self.pager.file = await SlowSwap.open(Folder(folder), "benchmark", 4 * RECLAIM_MIB * MIB // PAGE_BYTES)
        self.service.use_pager(self.pager)
        self.reclaimer = self.reclaimer_kind(
            self.by_id, self.pager, self.limit_bytes, SystemClock(), random.Random(1), self.policy
        )
        self.loop = asyncio.create_task(self.watch())

    def spawn(self, work: Coroutine[Any, Any, None], *, name: str) -> object:
        task = asyncio.create_task(work)
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)
        return task

    async def watch(self) -> None:
        while True:
            await self.reclaimer.look()
            paused = self.reclaimer.to_pause()
            for guest in self.guests:
                if guest.stopped != (guest.memory.guest_id in paused):
                    guest.stopped = not guest.stopped
                    guest.process.send_signal(signal.SIGSTOP if guest.stopped else signal.SIGCONT)
            await asyncio.sleep(self.reclaimer.pause_s)

    async def run_guest(self, workload: str, mib: int) -> Guest:
        """Started, and what it begins with is done."""
        guest_id, pages = f"g{len(self.guests)}", mib * MIB // PAGE_BYTES
        memory = self.objects.make(f"volatile.{guest_id}", pages * PAGE_BYTES)
        table = self.objects.make(f"classes.{guest_id}", PageClasses.total_bytes(pages))
        places = self.objects.make(f"swapped.{guest_id}", SwapTable.total_bytes(pages))
        report = self.objects.make(f"report.{guest_id}", PAGE_BYTES + -(-pages // PAGE_BYTES) * PAGE_BYTES)
        mapping = table.map()
        swap = SwapTable.format(places.map(), pages)
        kept = self.kind(guest_id, workload, memory, PageClasses.format(mapping, pages), mapping, swap, pages)
        kept.report = report.descriptor
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        descriptors = [theirs.fileno(), memory.descriptor, table.descriptor, report.descriptor]
        process = subprocess.Popen(  # noqa: ASYNC220 (it takes a moment, once)
            [sys.executable, "-P", str(GUEST), *map(str, descriptors), str(pages), workload], pass_fds=descriptors
        )
        theirs.close()
        ours.setblocking(False)
        message, fds, _, _ = await self.when(ours, lambda: socket.recv_fds(ours, 1000, 1))
        address = json.loads(message)["address"]
        self.by_id[guest_id] = kept
        self.reclaimer.begin(kept)
        tracked = TrackedRange(MEMORY_LABEL, memory.name, address, pages * PAGE_BYTES)
        self.service.attach(MachineEvent("attached", guest_id, pid=process.pid, userfaultfd=fds[0], ranges=(tracked,)))
        ours.send(b"go")
        await self.when(ours, lambda: ours.recv(10))
        guest = Guest(workload, kept, process, ours, report.descriptor)
        self.guests.append(guest)
        return guest

    def sum(self, counter: str) -> int:
        return sum(getattr(guest.memory.counters, counter) for guest in self.guests)

    async def when(self, channel: socket.socket, receive: Any) -> Any:
        ready = asyncio.Event()
        asyncio.get_running_loop().add_reader(channel.fileno(), ready.set)
        await asyncio.wait_for(ready.wait(), 60)
        asyncio.get_running_loop().remove_reader(channel.fileno())
        return receive()

    async def end(self) -> None:
        self.loop.cancel()
        for guest in self.guests:
            if guest.process.poll() is not None:
                raise RuntimeError(f"{guest.name} ended: it was given back other bytes than it had stored, or worse")
            guest.process.kill()
            guest.process.wait()
            guest.channel.close()
        self.service.close()
        for task in list(self.tasks):
            task.cancel()
        assert self.pager.file is not None
        self.pager.file.close()
        for kept in self.objects.by_name.values():
            os.close(kept.descriptor)


async def overcommitted(way: str) -> dict[str, Any]:
    """The four guests at once, divided in this way."""
    kind, reclaimer, policy = WAYS[way]
    promised = GUEST_MIB * MIB * len(GUESTS)
    limit = promised * 2 if way == "enough" else int(promised / OVERCOMMIT)
    with tempfile.TemporaryDirectory() as folder:
        host = Host(limit, kind, reclaimer, policy)
        await host.start(folder)
        swap, host.pager.file = host.pager.file, host.pager.file if policy is not balloon_only else None
        for name in reversed(GUESTS):
            await asyncio.sleep(APART_S)
            await host.run_guest(name, GUEST_MIB)
        await asyncio.sleep(WARM_S)
        before, counters, out = [guest.count() for guest in host.guests], faults(host), host.sum("swapped_out")
        began = time.monotonic()
        await asyncio.sleep(MEASURED_S)
        took = time.monotonic() - began
        done = [guest.count() - was for guest, was in zip(host.guests, before, strict=True)]
        found = {
            "rates": {guest.name: count / took for guest, count in zip(host.guests, done, strict=True)},
            "refaults": faults(host) - counters,
            "refaults_per_operation": (faults(host) - counters) / max(1, sum(done)),
            "swapped_out": host.sum("swapped_out") - out,
            "latencies_ns": list(host.pager.latencies_ns),
            "over_limit_mib": max(0, -host.reclaimer.available_bytes) / MIB,
        }
        host.pager.file = swap
        await host.end()
    return found


async def pressed(way: str) -> dict[str, int]:
    """Guests of whom there is little to take but anonymous memory have worked for a while when their host gets short:
    what is taken from them then."""
    kind, reclaimer, policy = WAYS[way]
    promised = GUEST_MIB * MIB * len(PRESSED)
    least = int(promised / OVERCOMMIT)
    with tempfile.TemporaryDirectory() as folder:
        host = Host(promised * 2, kind, reclaimer, policy)
        await host.start(folder)
        for name in reversed(PRESSED):
            await host.run_guest(name, GUEST_MIB)
        await asyncio.sleep(WARM_S)
        resident = sum(guest.memory.resident for guest in host.guests) * PAGE_BYTES
        for step in range(1, SHORTER_STEPS + 1):
            host.reclaimer.limit_bytes = resident - (resident - least) * step // SHORTER_STEPS
            await asyncio.sleep(SHORTER_S / SHORTER_STEPS)
        await asyncio.sleep(MEASURED_S)
        found = {name: host.sum(name) for name in ("swapped_out", "misplaced")}
        await host.end()
    return found


def faults(host: Host) -> int:
    """Pages that had to be brought back, and objects of caches that had to be got again."""
    return sum(g.memory.counters.swapped_in + 4 * g.memory.classes.refaults for g in host.guests)


async def at_rest() -> float:
    """Part of a core that the scheduler takes for guests of whom none is short of anything."""
    with tempfile.TemporaryDirectory() as folder:
        host = Host(1 << 40)
        await host.start(folder)
        for _ in range(REST_GUESTS):
            await host.run_guest("idle", 8)
        await asyncio.sleep(1)
        began, used = time.monotonic(), time.process_time()
        await asyncio.sleep(REST_S)
        share = (time.process_time() - used) / (time.monotonic() - began)
        await host.end()
    return share


async def reclaim() -> dict[str, float]:
    """How long it takes until a host has its memory back, by each technique."""
    found = {}
    for technique, workload in (("balloon", "freed"), ("discard", "freed"), ("swap", "idle")):
        with tempfile.TemporaryDirectory() as folder:
            host = Host(1 << 40)
            await host.start(folder)
            guest = (await host.run_guest(workload, int(RECLAIM_MIB / FILL) + 2)).memory
            host.loop.cancel()
            goal, began = guest.resident - RECLAIM_MIB * MIB // PAGE_BYTES, time.monotonic()
            if technique == "balloon":
                guest.set_target(RECLAIM_MIB * MIB // PAGE_BYTES, time.monotonic_ns())
            while guest.resident > goal:
                if technique == "discard":
                    host.pager.discard(guest, guest.unused()[:4096])
                elif technique == "swap":
                    guest.classes.set_tick(guest.classes.tick + 8)
                    pages = guest.coldest(16 * BATCH_PAGES)
                    for start in range(0, len(pages), BATCH_PAGES):
                        await host.pager.swap_out(guest, pages[start : start + BATCH_PAGES])
                await asyncio.sleep(0)
            found[technique] = time.monotonic() - began
            await host.end()
    return found


# -- estimates


def intervals() -> tuple[float, float]:
    """(how often an interval holds the truth, mean width as a multiple of the formula's) over many populations."""
    dice = random.Random(8)
    covered = trials = 0
    width = formula = 0.0
    for _ in range(TRIALS):
        pages = dice.randrange(1000, 20_000)
        population = dice.choices(list(PageClass), weights=[dice.expovariate(1) for _ in PageClass], k=pages)
        truth = Counter(population)
        totals = estimate(Counter(population[page] for page in draw(pages, SAMPLE_PAGES, dice)), pages)
        for known, total in totals.items():
            covered += total.low <= truth[known] <= total.high
            trials += 1
            width += total.high - total.low
            p = truth[known] / pages
            formula += 2 * Z * pages * math.sqrt(p * (1 - p) / SAMPLE_PAGES)
    return covered / trials, width / formula


def work(ways: dict[str, Any], mean: Callable[[Sequence[float]], float]) -> dict[str, float]:
    """Of each way, as a part of what guests do with enough memory. Who has done nothing counts as one operation."""
    enough, least = ways["enough"]["rates"], 1 / MEASURED_S
    return {
        way: mean([max(found["rates"][name], least) / enough[name] for name in GUESTS]) for way, found in ways.items()
    }


async def measure(rounds: int) -> dict[str, Any]:
    all_ways = [{way: await overcommitted(way) for way in WAYS} for _ in range(rounds)]
    works = [work(ways, statistics.geometric_mean) for ways in all_ways]
    arithmetic = [work(ways, statistics.mean) for ways in all_ways]
    under_pressure = {way: await pressed(way) for way in ("everram", "swap_only_lru")}
    coverage, width = intervals()
    latencies = sorted(
        latency for ways in all_ways for way in ("everram", "swap_only_lru") for latency in ways[way]["latencies_ns"]
    )

    def against(*others: str, of: Sequence[dict[str, float]] = works) -> float:
        return statistics.median(one["everram"] / max(one[other] for other in others) for one in of)

    def of_all(what: str) -> dict[str, list[Any]]:
        return {way: [ways[way][what] for ways in all_ways] for way in WAYS}

    per_operation = of_all("refaults_per_operation")
    return {
        "throughput_vs_swap_only": against("swap_only_random", "swap_only_lru"),
        "throughput_vs_swap_only_random": against("swap_only_random"),
        "throughput_vs_swap_only_lru": against("swap_only_lru"),
        "throughput_vs_balloon_only": against("balloon_only"),
        "arithmetic_throughput_vs_swap_only_random": against("swap_only_random", of=arithmetic),
        "arithmetic_throughput_vs_swap_only_lru": against("swap_only_lru", of=arithmetic),
        "arithmetic_throughput_vs_balloon_only": against("balloon_only", of=arithmetic),
        "refaults_vs_access_only": statistics.median(
            ours / theirs for ours, theirs in zip(per_operation["everram"], per_operation["access_only"], strict=True)
        ),
        "unreclaimable_or_active_pages_swapped_fraction": misplaced(under_pressure["everram"]),
        "pages_swapped_out_in_that_run": under_pressure["everram"]["swapped_out"],
        "the_same_fraction_of_swap_only_lru": misplaced(under_pressure["swap_only_lru"]),
        "pages_swapped_out_by_swap_only_lru": under_pressure["swap_only_lru"]["swapped_out"],
        "class_interval_coverage": coverage,
        "class_interval_width_vs_formula": width,
        "rest_core_fraction": await at_rest(),
        "reclaim_256_mib_s": await reclaim(),
        "swap_in_p50_us": latencies[len(latencies) // 2] / 1000 if latencies else 0.0,
        "swap_in_p99_us": latencies[len(latencies) * 99 // 100] / 1000 if latencies else 0.0,
        "work": {way: [one[way] for one in works] for way in WAYS},
        "arithmetic_work": {way: [one[way] for one in arithmetic] for way in WAYS},
        "rates": of_all("rates"),
        "refaults": of_all("refaults"),
        "swapped_out": of_all("swapped_out"),
        "over_limit_mib": of_all("over_limit_mib"),
        "simulation": compare(SEEDS),
    }


def misplaced(found: dict[str, int]) -> float | None:
    """Of the pages that were swapped out. None: none was, so there is nothing to say."""
    return found["misplaced"] / found["swapped_out"] if found["swapped_out"] else None


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--rounds", type=int, default=3, help="of all ways; the medians are given (default 3)")


def run(rounds: int = 3) -> dict[str, Any]:
    found = asyncio.run(measure(rounds))
    found["workloads"] = {name: WORKLOADS[name] for name in GUESTS}
    found["pressed"] = (
        f"{', '.join(PRESSED)}, {GUEST_MIB} MiB each: enough for all, then within {SHORTER_S:g} s as above"
    )
    found["sizes"] = f"{len(GUESTS)} guests of {GUEST_MIB} MiB on {GUEST_MIB * len(GUESTS) / OVERCOMMIT:.0f} MiB"
    found["limits"] = {
        "throughput_vs_swap_only": 2,
        "throughput_vs_balloon_only": 1.1,
        "refaults_vs_access_only": 0.5,
        "unreclaimable_or_active_pages_swapped_fraction": 0.05,
        "class_interval_coverage": 0.93,
        "class_interval_width_vs_formula": 1.2,
        "rest_core_fraction": 0.01,
    }
    return found
