"""What the memory scheduler tells of a guest, in the contract's words."""

from __future__ import annotations

from collections.abc import Collection

from everram.actors.memory_scheduler.guest_memory import GuestMemory
from everram.actors.memory_scheduler.pressure import Pressure
from everram.actors.memory_scheduler.sampling import SAMPLE_PAGES
from everram.runtime.contracts import memory_scheduler_pb2 as ms
from everram.runtime.contracts.availability_pb2 import GuestWorkingSet, MemoryFigures
from everram.runtime.formats.page_classes import PageClass
from everram.runtime.memory.contract import PAGE_BYTES


def guest_status(guest: GuestMemory, now_ns: int) -> ms.GuestMemoryStatus:
    counters = guest.counters
    return ms.GuestMemoryStatus(
        guest_id=guest.guest_id,
        name=guest.name,
        memory_bytes=guest.pages * PAGE_BYTES,
        min_bytes=guest.min_pages * PAGE_BYTES,
        max_bytes=guest.max_pages * PAGE_BYTES,
        resident_bytes=guest.resident * PAGE_BYTES,
        working_set_bytes=int(guest.usage.working_set) * PAGE_BYTES,
        ballooned_bytes=guest.balloon.held * PAGE_BYTES,
        swapped_bytes=guest.swapped * PAGE_BYTES,
        answers=guest.answers(now_ns),
        paused=guest.paused,
        technique=guest.technique.value,
        reason=guest.reason,
        swapped_in_pages=counters.swapped_in,
        swapped_out_pages=counters.swapped_out,
        ballooned_pages=counters.ballooned,
        discarded_pages=counters.discarded,
        refaults=guest.classes.refaults,
        misplaced_pages=counters.misplaced,
        waiting_pages=len(guest.broken.keys() | guest.unfilled),
        waiting=waiting(guest),
    )


def waiting(guest: GuestMemory) -> str:
    """Why a thread of it waits for a page longer than it should; empty: none does."""
    if guest.broken:
        page, why = next(iter(guest.broken.items()))
        return f"page {page} cannot be read from the swap file: {why}"
    if guest.unfilled:
        return f"page {min(guest.unfilled)} cannot be brought back: this computer has no memory left for it"
    return ""


def figures(guests: Collection[GuestMemory], usable_bytes: int, swap_bytes: int) -> MemoryFigures:
    """What guests work with, and what that leaves of `usable_bytes`; and what may still be promised."""
    sets = {guest.guest_id: guest.works_with * PAGE_BYTES for guest in guests}
    left = usable_bytes - sum(sets.values())
    sizes = {guest.guest_id: guest.pages * PAGE_BYTES for guest in guests}
    told = [GuestWorkingSet(guest_id=g, working_set_bytes=sets[g], memory_bytes=sizes[g]) for g in sorted(sets)]
    unpromised = usable_bytes + swap_bytes - sum(sizes.values())
    return MemoryFigures(available_bytes=max(0, left), guests=told, unpromised_bytes=max(0, unpromised))


def differ(new: MemoryFigures, old: MemoryFigures, least_bytes: int) -> bool:
    """Whether others should be told."""
    sets, before = ({g.guest_id: g.working_set_bytes for g in told.guests} for told in (new, old))
    if sets.keys() != before.keys() or new.unpromised_bytes != old.unpromised_bytes:
        return True
    if abs(new.available_bytes - old.available_bytes) >= least_bytes:
        return True
    return any(abs(sets[guest_id] - before[guest_id]) >= least_bytes for guest_id in sets)


def explanation(guest: GuestMemory, pressure: Pressure, now_ns: int) -> ms.MemoryExplanation:
    return ms.MemoryExplanation(
        guest=guest_status(guest, now_ns),
        classes=[
            ms.ClassEstimate(name=word(known), pages=total.pages, low=total.low, high=total.high)
            for known, total in guest.usage.totals.items()
        ],
        sampled_pages=min(SAMPLE_PAGES, guest.pages),
        samples=guest.usage.samples,
        decisions=[
            ms.MemoryDecision(
                ago_s=(now_ns - decision.until_ns) / 1e9,
                since_s=(now_ns - decision.at_ns) / 1e9,
                times=decision.times,
                pressure=decision.pressure.name.lower(),
                technique=decision.technique.value,
                target_bytes=decision.target * PAGE_BYTES,
                reclaimed_bytes=decision.reclaimed * PAGE_BYTES,
                reason=decision.reason,
                available_bytes=max(0, decision.available_bytes),
            )
            for decision in guest.history.decisions
        ],
        pressure=pressure.name.lower(),
    )


def word(known: PageClass) -> str:
    return known.name.lower().replace("_", " ")
