"""Guests' volatile memory in the simulation: pages that are missing or protected, and threads that wait for them.

    space = machine.spaces.begin(guest_id, content, domain, gate)     # one incarnation of a guest has attached
    data = await space.run(lambda: block.load(0, 100))                # as often as pages have to be waited for
    faults = HostFaults(machine.spaces, domain, gate, stream)         # of one host; `compose(..., paging=faults)`

What the kernel does with a userfaultfd, as `everram.runtime.memory.paging` uses it: a touch of a watched page that is
missing, and a store to a protected one, stop the thread and put an event into the descriptor, which a host reads once.
Who reads it and dies leaves the thread waiting until somebody wakes it; then it touches the page anew. A simulated
thread cannot be stopped in the midst of a call, so the call is cut off by `Fault` and made anew when it may go on:
loads and stores do no harm if they are begun twice.

A copy into a page fails now and then as it may in the kernel: the address space is just changing (EAGAIN), or there
is no memory for it (ENOMEM).
"""

from __future__ import annotations

import asyncio
import ctypes
import errno
import os
from collections import deque
from collections.abc import Callable
from typing import TypeVar, cast

from everram.runtime.memory.contract import PAGE_BYTES
from everram.runtime.memory.paging import PagedMemory, Pager
from everram.runtime.memory.userfaultfd import Mode
from everram.runtime.simulation.domain import Domain
from everram.runtime.simulation.entropy import Stream
from everram.runtime.simulation.loop import SimulationLoop
from everram.runtime.simulation.objects import Bytes, Gate

T = TypeVar("T")

BASE = 1 << 32
"""Where each guest has its memory mapped."""
FAULTS_PER_TURN = 16
"""As the page service reads them."""
TELL_NS = (2_000, 60_000)
"""From a thread's stop to its host's next turn."""
CHANGING, NO_MEMORY = 0.02, 0.01
"""Parts of the copies that fail."""


class Fault(Exception):
    """A touch of a page that has to be waited for."""

    def __init__(self, page: int, *, protected: bool) -> None:
        super().__init__(page)
        self.page = page
        self.protected = protected


class AddressSpace:
    """One incarnation of a guest, as far as its volatile memory is concerned."""

    def __init__(self, spaces: Spaces, guest_id: str, content: Bytes, domain: Domain, gate: Gate | None) -> None:
        pages = content.size_bytes // PAGE_BYTES
        self.guest_id = guest_id
        self.content = content
        self.pages = pages
        self.domain = domain
        self.gate = gate
        self.watched = bytearray(pages)
        self.protected = bytearray(pages)
        self.used = bytearray(pages)
        """Since its host has last unmapped them."""
        self.untold: deque[Fault] = deque()
        """In the descriptor, and read by nobody."""
        self._spaces = spaces
        self._waiting: dict[int, list[asyncio.Future[None]]] = {}

    # -- the guest's side

    async def run(self, act: Callable[[], T]) -> T:
        """What `act` gives, once no page it touches has to be waited for."""
        while True:
            try:
                return act()
            except Fault as fault:
                await self._wait(fault)

    async def _wait(self, fault: Fault) -> None:
        woken: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(fault.page, []).append(woken)
        self.untold.append(fault)
        self._spaces.told(self)
        await woken

    def reach(self, page: int, *, store: bool) -> None:
        """Raises Fault."""
        if not self.content.present[page]:
            if self.watched[page]:
                raise Fault(page, protected=False)  # protected or not: what fills it says which it is then
            self.content.present[page] = 1
        if store and self.protected[page]:
            raise Fault(page, protected=True)
        self.used[page] = 1

    @property
    def waiting(self) -> list[int]:
        """Pages with a thread that waits."""
        return sorted(self._waiting)

    # -- the kernel's side

    def wake(self, first: int, count: int) -> None:
        """Whoever waits for these pages tries again."""
        for page in [page for page in self._waiting if first <= page < first + count]:
            for woken in self._waiting.pop(page):
                if not woken.done():
                    woken.set_result(None)
        self.untold = deque(fault for fault in self.untold if not first <= fault.page < first + count)


class Spaces:
    """Of one machine: its guests' address spaces, and the host that reads their descriptors."""

    def __init__(self, loop: SimulationLoop, stream: Stream) -> None:
        self.loop = loop
        self.by_guest: dict[str, AddressSpace] = {}
        self.reader: HostFaults | None = None
        self._stream = stream

    def begin(self, guest_id: str, content: Bytes, domain: Domain, gate: Gate | None) -> AddressSpace:
        """A guest has attached with this memory."""
        space = self.by_guest[guest_id] = AddressSpace(self, guest_id, content, domain, gate)
        domain.on_death.append(lambda: self._tell_reader(lambda reader: reader.detach(space)))
        self._tell_reader(lambda reader: reader.attach(space))
        return space

    def told(self, space: AddressSpace) -> None:
        """There is something to read."""
        self._tell_reader(lambda reader: reader.read(space))

    def _tell_reader(self, tell: Callable[[HostFaults], None]) -> None:
        reader = self.reader
        if reader is not None and reader.domain.alive:
            when_ns = self.loop.now_ns + self._stream.randrange(*TELL_NS)
            self.loop.call_at_ns(when_ns, tell, reader, context=reader.domain.context)


class HostFaults:
    """One host's userfaultfds: `Faults` of its memory scheduler. What it does after its death has no effect."""

    def __init__(self, spaces: Spaces, domain: Domain, gate: Gate, stream: Stream) -> None:
        self.domain = domain
        self._spaces = spaces
        self._gate = gate
        self._stream = stream
        self._pager: Pager | None = None
        spaces.reader = self

    def use_pager(self, pager: Pager | None) -> None:
        self._pager = pager
        if pager is not None:
            for space in list(self._spaces.by_guest.values()):
                self.attach(space)

    def attach(self, space: AddressSpace) -> None:
        if self._pager is not None and space.domain.alive:
            self._pager.attached(space.guest_id, Paged(space, Kernel(space, self._gate, self._stream)))

    def detach(self, space: AddressSpace) -> None:
        if self._pager is not None and self._spaces.by_guest.get(space.guest_id) is space:
            self._pager.detached(space.guest_id)

    def read(self, space: AddressSpace) -> None:
        """Without a pager faults are read and wait: whoever comes wakes the threads, and has them told again."""
        for _ in range(FAULTS_PER_TURN):
            if not space.untold:
                return  # serving one may wake others
            fault = space.untold.popleft()
            if self._pager is not None and space.domain.alive:
                self._pager.fault(space.guest_id, fault.page, protected=fault.protected)
        if space.untold:
            self._spaces.told(space)


class Kernel:
    """`PagingKernel` of one address space, as one host calls it."""

    def __init__(self, space: AddressSpace, gate: Gate, stream: Stream) -> None:
        self._space = space
        self._gate = gate
        self._stream = stream

    def register(self, descriptor: int, address: int, length: int, mode: Mode) -> None:
        first, count = self._at(address, length)
        self._space.watched[first : first + count] = b"\1" * count

    def protect(self, descriptor: int, address: int, length: int) -> None:
        first, count = self._at(address, length)
        assert all(self._space.watched[first : first + count]), "protected before it was registered"
        self._space.protected[first : first + count] = b"\1" * count
        self._gate()

    def unprotect(self, descriptor: int, address: int, length: int) -> None:
        first, count = self._at(address, length)
        self._space.protected[first : first + count] = bytes(count)
        self._space.wake(first, count)

    def wake(self, descriptor: int, address: int, length: int) -> None:
        self._space.wake(*self._at(address, length))

    def copy(self, descriptor: int, destination: int, source: int, length: int) -> None:
        self._fill(destination, ctypes.string_at(source, length))

    def zero(self, descriptor: int, address: int, length: int) -> None:
        self._fill(address, bytes(length))

    def _fill(self, address: int, data: bytes) -> None:
        first, count = self._at(address, len(data))
        self._gate()
        draw, content = self._stream.random(), self._space.content
        if draw < CHANGING + NO_MEMORY:
            _fail(errno.EAGAIN if draw < CHANGING else errno.ENOMEM)
        if any(content.present[first : first + count]):
            _fail(errno.EEXIST)
        content.write(first * PAGE_BYTES, data)
        self._space.protected[first : first + count] = bytes(count)
        self._space.wake(first, count)
        self._gate()

    def _at(self, address: int, length: int) -> tuple[int, int]:
        self._space._spaces.loop.checkpoint()
        if not self._space.domain.alive:
            _fail(errno.ESRCH)
        return (address - BASE) // PAGE_BYTES, length // PAGE_BYTES


def _fail(number: int) -> None:
    raise OSError(number, os.strerror(number))


class Paged(PagedMemory):
    """`PagedMemory` as it is, but for what is seen of a process from outside."""

    def __init__(self, space: AddressSpace, kernel: Kernel) -> None:
        super().__init__(descriptor=0, pid=0, address=BASE, pages=space.pages, kernel=kernel)
        self._space = space

    def touched(self, pages: list[int]) -> set[int]:
        return {page for page in pages if self._space.used[page]}

    def forget_touches(self, pages: list[int]) -> None:
        for page in pages:
            self._space.used[page] = 0


class PagedMapping:
    """`VolatileMapping` of a guest: what `everram.runtime.guest.volatile` allocates from."""

    def __init__(self, space: AddressSpace) -> None:
        self._space = space

    @property
    def view(self) -> memoryview:
        return cast(memoryview, _View(self._space))

    def keep_from_children(self) -> None:
        """There are none."""

    def present(self, offset: int, length: int) -> bytes:
        return bytes(self._space.content.present[offset // PAGE_BYTES : (offset + length) // PAGE_BYTES])

    def punch(self, offset: int, length: int) -> None:
        if self._space.gate is not None:
            self._space.gate()
        self._space.content.punch(offset, length)


class _View:
    """As much of a memoryview as blocks need."""

    def __init__(self, space: AddressSpace) -> None:
        self._space = space

    def __getitem__(self, where: slice) -> _Piece:
        return _Piece(self._space, where.start, where.stop)


class _Piece:
    def __init__(self, space: AddressSpace, start: int, stop: int) -> None:
        self._space = space
        self._start = start
        self._stop = stop

    def __len__(self) -> int:
        return self._stop - self._start

    def __bytes__(self) -> bytes:
        for page in range(self._start // PAGE_BYTES, -(-self._stop // PAGE_BYTES)):
            self._space.reach(page, store=False)
        return bytes(self._space.content.content[self._start : self._stop])

    def __setitem__(self, where: slice, data: bytes) -> None:
        at = self._start
        while at < self._stop:
            end = min(self._stop, (at // PAGE_BYTES + 1) * PAGE_BYTES)
            self._store(at, data[at - self._start : end - self._start])
            at = end

    def _store(self, offset: int, data: bytes) -> None:
        """Within a page; in two halves, between which others may run."""
        space, page = self._space, offset // PAGE_BYTES
        space.reach(page, store=True)
        if space.gate is None:
            space.content.write(offset, data)
            return
        cut = space.gate.split(len(data))
        space.content.write(offset, data[:cut])
        space.gate()
        space.reach(page, store=True)
        space.content.write(offset + cut, data[cut:])
