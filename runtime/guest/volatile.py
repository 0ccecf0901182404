"""A guest's volatile memory: blocks, a cache that knows clean from dirty, and a balloon that gives pages back.

    memory = me.memory                               # of a guest that was run with --memory SIZE
    block = memory.allocate(1 << 20)                 # whole pages; raises OutOfMemory
    block.store(0, b"...")
    cache = memory.cache()
    cache.put("thumbnail-7", data)                   # clean: it may be gone the next time
    data = cache.get("thumbnail-7")                  # None: get it again from where it came from

It ends with the process and is never saved. The host may have less memory than all its guests were promised; then it
asks for pages, and this gives up first what is free, then clean cache that was not used for longest, then what the
program sheds itself (`on_pressure`). What the balloon holds is taken back at once by an allocation that needs it, also
while no host is there to be asked. What the guest says of its pages (`formats.page_classes`) is kept up by these calls
as they happen, so there is always an answer, and it is right as long as the program keeps to them.

Without I/O but for the memory itself; `agent` listens to the host. Threads may share it.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Protocol

from everram.runtime.formats.page_classes import OPEN, Kind, PageClasses
from everram.runtime.guest.errors import Detached, OutOfMemory, RegionError
from everram.runtime.guest.page_runs import PageRuns, Run
from everram.runtime.memory.contract import PAGE_BYTES

BALLOON_STEP_PAGES = 4096
"""Given up while the lock is held; then others may allocate."""


class VolatileMapping(Protocol):
    """Memory that can be given back."""

    @property
    def view(self) -> memoryview: ...

    def keep_from_children(self) -> None:
        """Forked children do not have it."""

    def present(self, offset: int, length: int) -> bytes:
        """One byte for each page: 1 if there is memory behind it."""

    def punch(self, offset: int, length: int) -> None:
        """Give whole pages back; they read as zeros afterwards."""


class Block:
    """Some pages, `size_bytes` of which were asked for, addressed from 0. Raises RegionError outside, or once freed."""

    __slots__ = ("_memory", "kind", "runs", "size_bytes")

    def __init__(self, memory: Volatile, runs: list[Run], size_bytes: int, kind: int) -> None:
        self._memory = memory
        self.runs = runs
        self.size_bytes = size_bytes
        self.kind = kind

    def load(self, offset: int = 0, length: int | None = None) -> bytes:
        """A copy; to the block's end if no length is given."""
        length = self.size_bytes - offset if length is None else length
        return b"".join(bytes(piece) for piece in self._pieces(offset, length))

    def store(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        done = 0
        for piece in self._pieces(offset, len(data)):
            piece[:] = data[done : done + len(piece)]
            done += len(piece)

    @property
    def view(self) -> memoryview:
        """The memory itself, without a copy, for a block in one piece; release it before the block is freed.

        What is done with it is not seen, so the host finds out by itself whether it is in use.
        """
        if len(self.runs) != 1:
            raise RegionError("this block lies in several pieces: use load and store instead of its view")
        (first, count), memory = self.runs[0], self._memory
        self.kind |= OPEN
        memory.classes.set_kind(first, count, self.kind)
        return memory.bytes[first * PAGE_BYTES : first * PAGE_BYTES + self.size_bytes]

    def _pieces(self, offset: int, length: int) -> list[memoryview]:
        if self._memory.detached:
            self._memory.check_attached()
        if offset < 0 or length < 0 or offset + length > self.size_bytes:
            raise RegionError(f"{length} bytes at {offset} lie outside a block of {self.size_bytes} bytes")
        memory, pieces = self._memory, []
        for first, count in self.runs:
            start, end = max(0, offset), min(count * PAGE_BYTES, offset + length)
            if start < end:
                low, high = start // PAGE_BYTES, -(-end // PAGE_BYTES)
                memory.classes.touch(first + low, high - low)
                pieces.append(memory.bytes[first * PAGE_BYTES + start : first * PAGE_BYTES + end])
            offset -= count * PAGE_BYTES
        return pieces


class Volatile:
    """What `me.memory` gives."""

    def __init__(self, mapping: VolatileMapping, classes: PageClasses) -> None:
        self.bytes = mapping.view
        self.classes = classes
        self.on_pressure: Callable[[int], int] | None = None
        """Asked for so many pages once nothing else is left to give; frees what it can and says how much."""
        self._mapping = mapping
        self._lock = threading.RLock()
        self._free = PageRuns([(0, classes.pages)])
        self._balloon = PageRuns()
        self._caches: list[Cache] = []
        self.detached = False
        """In a forked child."""
        # A child's faults would be served by nobody: it would read zeros where pages are swapped out, and leave them.
        mapping.keep_from_children()
        # An earlier process of this guest may have left something.
        mapping.punch(0, classes.pages * PAGE_BYTES)
        classes.set_kind(0, classes.pages, Kind.FREE)
        classes.set_ballooned(0)
        classes.set_wanted(0)
        classes.set_kept()

    @property
    def size_bytes(self) -> int:
        return self.classes.pages * PAGE_BYTES

    @property
    def free_bytes(self) -> int:
        """What can be had without giving up anything but the balloon."""
        with self._lock:
            return (self._free.pages + self._balloon.pages) * PAGE_BYTES

    @property
    def ballooned_bytes(self) -> int:
        return self._balloon.pages * PAGE_BYTES

    def allocate(self, size_bytes: int, *, pinned: bool = False) -> Block:
        """What it holds before it is stored to is not defined. `pinned`: never to be paged out. Raises OutOfMemory."""
        return self._allocate(size_bytes, Kind.PINNED if pinned else Kind.ANONYMOUS)

    def _allocate(self, size_bytes: int, kind: Kind) -> Block:
        pages = -(-size_bytes // PAGE_BYTES)
        if pages <= 0:
            raise RegionError(f"a block of {size_bytes} bytes cannot be made")
        with self._lock:
            self.check_attached()
            if pages > self._free.pages:
                self._deflate(pages - self._free.pages, wanted=True)
            if pages > self._free.pages:
                self._evict(pages - self._free.pages)
            if pages > self._free.pages:
                raise OutOfMemory(
                    f"{size_bytes} bytes of memory asked for, {self._free.pages * PAGE_BYTES} of {self.size_bytes} are "
                    "free: free something, or run the guest with more --memory"
                )
            runs = self._free.take(pages)
            for first, count in runs:
                self.classes.set_kind(first, count, kind)  # before it is used: a host never drops what is in use
                self.classes.touch(first, count)
            return Block(self, runs, size_bytes, kind)

    def free(self, block: Block) -> None:
        """The block must not be used any more."""
        with self._lock:
            self.check_attached()
            for first, count in block.runs:
                self.classes.set_kind(first, count, Kind.FREE)
                self._free.add(first, count)
            block.runs, block.size_bytes = [], 0

    def cache(self) -> Cache:
        """A new cache in this memory: it grows as far as there is room, and gives way to blocks."""
        made = Cache(self)
        with self._lock:
            self._caches.append(made)
        return made

    def set_kind(self, block: Block, kind: Kind) -> None:
        block.kind = kind | (block.kind & OPEN)
        for first, count in block.runs:
            self.classes.set_kind(first, count, block.kind)

    # -- the balloon

    def obey(self) -> bool:
        """One step towards the balloon that the host asks for; whether there is more to do. Called by the agent."""
        with self._lock:
            if self.detached:
                return False
            target, held = min(self.classes.target, self.classes.pages), self._balloon.pages
            if target < held:
                self._deflate(held - target, wanted=False)
                self.classes.set_wanted(0)
                return False
            step = min(target - held, BALLOON_STEP_PAGES)
            if not step:
                self.classes.set_wanted(0)
                return False
            given = self._inflate(step)
            if given < step:
                self._evict_clean(step - given)
                given += self._inflate(step - given)
        if given < step and self.on_pressure is not None and self.on_pressure(step - given) > 0:
            with self._lock:
                given += self._inflate(step - given)
        return given == step and self.classes.target > self._balloon.pages

    def _inflate(self, pages: int) -> int:
        """Move free pages with memory behind them into the balloon; how many there were."""
        given = 0
        for first, count in self._backed_free(pages):
            self._free.take_run(first, count)
            self.classes.set_kind(first, count, Kind.BALLOONED)
            self._mapping.punch(first * PAGE_BYTES, count * PAGE_BYTES)
            self._balloon.add(first, count)
            given += count
        self.classes.set_ballooned(self._balloon.pages)
        return given

    def _backed_free(self, pages: int) -> list[Run]:
        """Free pages with memory behind them: the host may have taken some by itself."""
        found: list[Run] = []
        for first, count in self._free.runs():
            present, at = self._mapping.present(first * PAGE_BYTES, count * PAGE_BYTES), 0
            while pages and (at := present.find(1, at)) >= 0:
                stop = present.find(0, at)
                stop = min(count if stop < 0 else stop, at + pages)
                found.append((first + at, stop - at))
                pages -= stop - at
                at = stop
        return found

    def _deflate(self, pages: int, *, wanted: bool) -> None:
        """Take pages back; there is no memory behind them until they are stored to. `wanted`: the host has to learn
        that it gets less than it asked for."""
        pages = min(pages, self._balloon.pages)
        if not pages:
            return
        for first, count in self._balloon.take(pages):
            self.classes.set_kind(first, count, Kind.FREE)
            self._free.add(first, count)
        self.classes.set_ballooned(self._balloon.pages)
        if wanted:
            self.classes.set_wanted(self.classes.wanted + pages)

    def _evict(self, pages: int) -> None:
        """Clean cache for an allocation."""
        self._evict_clean(pages)

    def _evict_clean(self, pages: int) -> int:
        freed = 0
        for cache in self._caches:
            freed += cache.give_up(pages - freed)
        return freed

    # -- a forked child

    def detach(self) -> None:
        self.detached = True
        self._lock = threading.RLock()

    def check_attached(self) -> None:
        """Raises Detached."""
        if self.detached:
            raise Detached("this process is a forked child of a guest: its memory is its parent's")


class Cache:
    """Objects by key, in the order of their last use. A clean one may go at any time; a dirty one only when it was
    written back (`clean`) or removed. Made by `Volatile.cache`."""

    def __init__(self, memory: Volatile) -> None:
        self._memory = memory
        self._lock = memory._lock
        self._clean: OrderedDict[Hashable, Block] = OrderedDict()
        self._dirty: OrderedDict[Hashable, Block] = OrderedDict()
        self._gone: OrderedDict[Hashable, None] = OrderedDict()
        """Keys that were given up for the balloon, the last of them: getting one of those again is a refault."""

    def __len__(self) -> int:
        return len(self._clean) + len(self._dirty)

    def get(self, key: Hashable) -> bytes | None:
        """None if it is not there any more."""
        with self._lock:
            if (block := self._clean.get(key)) is not None:
                self._clean.move_to_end(key)
            elif (block := self._dirty.get(key)) is not None:
                self._dirty.move_to_end(key)
            return None if block is None else block.load()

    def put(self, key: Hashable, data: bytes | bytearray | memoryview, *, dirty: bool = False) -> bool:
        """Whether there was room for it; for a dirty one there has to be. Raises OutOfMemory for that."""
        with self._lock:
            self.remove(key)
            try:
                block = self._memory._allocate(max(1, len(data)), Kind.DIRTY if dirty else Kind.BUFFER)
            except OutOfMemory:
                if dirty:
                    raise
                return False
            block.size_bytes = len(data)
            try:
                block.store(0, data)
            except BaseException:  # an interrupt, too: the pages would be nobody's
                self._memory.free(block)
                raise
            (self._dirty if dirty else self._clean)[key] = block
            if key in self._gone:
                del self._gone[key]
                self._memory.classes.set_refaults(self._memory.classes.refaults + 1)
            return True

    def clean(self, key: Hashable) -> None:
        """It was written back to where it comes from."""
        with self._lock:
            if (block := self._dirty.pop(key, None)) is not None:
                self._memory.set_kind(block, Kind.BUFFER)
                self._clean[key] = block

    def dirty(self) -> list[Hashable]:
        """Keys of what was not written back yet, the longest unused first."""
        with self._lock:
            return list(self._dirty)

    def remove(self, key: Hashable) -> None:
        with self._lock:
            block = self._clean.pop(key, None) or self._dirty.pop(key, None)
            if block is not None:
                self._memory.free(block)

    def give_up(self, pages: int) -> int:
        """Free clean objects, the longest unused first, until so many pages are free; how many became so."""
        freed = 0
        with self._lock:
            while freed < pages and self._clean:
                key, block = self._clean.popitem(last=False)
                freed += sum(count for _, count in block.runs)
                self._memory.free(block)
                self._gone[key] = None
                if len(self._gone) > KEYS_REMEMBERED:
                    self._gone.popitem(last=False)
        return freed


KEYS_REMEMBERED = 65_536
"""Of what was given up, to tell refaults: some MiB at most."""
