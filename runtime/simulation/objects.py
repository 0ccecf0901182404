"""The memory objects of a simulated machine: `environment.Memory`, with mappings in whose midst a process may die.

An object is shared by all its mappings and belongs to the machine: hosts and guests come and go, the bytes stay until
the object is removed or `Objects.wipe` ends the machine's memory. Each mapping belongs to one process and passes a
`Gate` before and after every store: there the process may be killed (its later stores never happen) or preempted
(others run half-way through its callback, as they do on another processor). A store of more than a word is two, with
a gate between.
"""

from __future__ import annotations

import asyncio
import mmap
import struct
from collections.abc import Callable, Iterable

from everram.runtime.environment import MemoryObject
from everram.runtime.errors import AlreadyExists, InvalidArgument, NotFound, ResourceExhausted
from everram.runtime.memory.contract import PAGE_BYTES, Mapping
from everram.runtime.simulation.domain import CURRENT, Killed, State
from everram.runtime.simulation.entropy import Stream
from everram.runtime.simulation.loop import SimulationLoop, SimulationStuck

WORD_BYTES = 8
_WORD = struct.Struct("<Q")
_load_word = _WORD.unpack_from

PREEMPTION_NS, LONG_PREEMPTION_NS, LONG_PREEMPTIONS = 200_000, 5_000_000, 0.1
"""How long a process may wait in the middle of a callback, mostly and in the given part of the cases: a cache miss in
the one, another process on its processor in the other."""

GATES_PER_CALLBACK_MAX = 20_000
"""A callback that passes more gates than this spins: nothing else would ever run again."""

CREATE_LATENCY_S = 100e-6
"""A round trip to the machine, which keeps the new object's descriptor."""


class Gate:
    """What happens to a process at its stores: counts them, preempts at some, kills at one.

    `preemption_mean` is the mean number of gates between two preemptions (0: none), `kill_at` the number of the gate at
    which the process dies (0: none), counted from 1; `on_kill` is told.
    """

    def __init__(
        self,
        loop: SimulationLoop,
        stream: Stream,
        *,
        preemption_mean: int = 0,
        kill_at: int = 0,
        on_kill: Callable[[], None] | None = None,
    ) -> None:
        self.passed = 0
        self.kill_at = kill_at
        self._loop = loop
        self._stream = stream
        self._preemption_mean = preemption_mean
        self._preempt_at = self._next()
        self._on_kill = on_kill
        self._callback = 0
        """Number of the callback that passed last, and which gate was its first."""
        self._callback_began = 0

    def split(self, length: int) -> int:
        """Where a store of `length` bytes is cut in two."""
        return self._stream.randrange(length + 1) if length > WORD_BYTES else length

    def __call__(self) -> None:
        """Raises Killed in a process that is dead, or dies here; SimulationStuck in one that never waits."""
        domain = CURRENT.get()
        if domain is not None and domain.state is State.DEAD:
            raise Killed
        self.passed = passed = self.passed + 1
        if self._callback != self._loop.steps:
            self._callback, self._callback_began = self._loop.steps, passed
        elif passed - self._callback_began > GATES_PER_CALLBACK_MAX:
            raise SimulationStuck(f"{self._loop.current_domain().name} spins: it stores and stores and never waits")
        if passed == self.kill_at:
            if self._on_kill is not None:
                self._on_kill()
            self._loop.kill(self._loop.current_domain())
            self._loop.checkpoint()
        if passed == self._preempt_at:
            self._preempt_at = self._next()
            longest_ns = LONG_PREEMPTION_NS if self._stream.random() < LONG_PREEMPTIONS else PREEMPTION_NS
            self._loop.preempt(self._stream.randrange(1_000, longest_ns))

    def _next(self) -> int:
        if not self._preemption_mean:
            return 0
        return self.passed + 1 + self._stream.randrange(2 * self._preemption_mean)


class Objects:
    """What a machine keeps: every object by name."""

    def __init__(self, capacity_bytes: int) -> None:
        self.capacity_bytes = capacity_bytes
        self.by_name: dict[str, Bytes] = {}
        self.made = 0
        """How many there ever were."""
        self.gone = False
        """Whether the machine has died: nobody reaches its memory any more."""

    def wipe(self) -> None:
        """The machine lost its power: even what is still mapped reads as zeros."""
        for kept in self.by_name.values():
            kept.wipe()
        self.by_name.clear()
        self.gone = True


LAZY_BYTES = 64 * 1024
"""From this size on pages are the kernel's, which makes them when they are first touched: most never are."""

Content = bytearray | mmap.mmap


def zeros(size_bytes: int) -> Content:
    return mmap.mmap(-1, size_bytes, mmap.MAP_PRIVATE) if size_bytes >= LAZY_BYTES else bytearray(size_bytes)


class Bytes:
    """One object's content. `present` has one byte a page: 0 for a hole."""

    __slots__ = ("content", "identity", "present", "resizable", "size_bytes")
    volatile = False
    """Whether stores have to be flushed and drained before a power loss spares them."""

    def __init__(self, size_bytes: int, *, resizable: bool = False, identity: int = 0) -> None:
        self.size_bytes = size_bytes
        self.identity = identity
        self.resizable = resizable
        self.content = zeros(size_bytes)
        self.present = bytearray(-(-size_bytes // PAGE_BYTES))

    def __deepcopy__(self, memo: object) -> Bytes:
        """What a crash leaves, for whoever goes on from there several times."""
        assert type(self) is Bytes, "what else there is in caches would be lost"
        copy = Bytes(self.size_bytes, resizable=self.resizable, identity=self.identity)
        for offset, length in self.extents():
            copy.write(offset, self.content[offset : offset + length])
        return copy

    def resize(self, size_bytes: int) -> None:
        pages = -(-size_bytes // PAGE_BYTES)
        resized = zeros(size_bytes)
        for offset, length in self.extents(0, size_bytes):
            resized[offset : offset + length] = self.content[offset : offset + length]
        self.content, self.size_bytes = resized, size_bytes
        self.present = self.present[:pages].ljust(pages, b"\0")

    def wipe(self) -> None:
        """All of it reads as zeros, for whoever has it mapped, too."""
        for offset, length in self.extents():
            self.content[offset : offset + length] = bytes(length)

    def check(self, offset: int, length: int) -> None:
        if offset < 0 or length < 0 or offset + length > self.size_bytes:
            raise IndexError(f"{length} bytes at {offset} are not inside {self.size_bytes}")

    def write(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        length = len(data)
        end = offset + length
        if offset < 0 or end > self.size_bytes:
            self.check(offset, length)
        self.content[offset:end] = data
        first, last = offset // PAGE_BYTES, (end - 1) // PAGE_BYTES
        if first == last:
            self.present[first] = 1
        elif length:
            self.present[first : last + 1] = b"\1" * (last + 1 - first)

    def write_back(self, offset: int, length: int) -> None:
        """A flushed and drained range: nothing to do on DRAM, which the machine keeps as it is."""

    def punch(self, offset: int, length: int) -> None:
        self.check(offset, length)
        if offset % PAGE_BYTES or length % PAGE_BYTES:
            raise IndexError("a hole is made of whole pages")
        self.content[offset : offset + length] = bytes(length)
        self.present[offset // PAGE_BYTES : (offset + length) // PAGE_BYTES] = bytes(length // PAGE_BYTES)

    def extents(self, start: int = 0, end: int | None = None) -> list[tuple[int, int]]:
        found: list[tuple[int, int]] = []
        size_bytes = self.size_bytes if end is None else min(end, self.size_bytes)
        pages = -(-size_bytes // PAGE_BYTES)
        first = self.present.find(1, start // PAGE_BYTES, pages)
        while first >= 0:
            hole = self.present.find(0, first, pages)
            hole = pages if hole < 0 else hole
            offset = first * PAGE_BYTES
            found.append((offset, min(hole * PAGE_BYTES, size_bytes) - offset))
            first = self.present.find(1, hole, pages)
        return found


class GatedMapping(Mapping):
    """`contract.Mapping` of one process."""

    def __init__(self, content: Bytes, gate: Gate | None = None) -> None:
        self._flushed: list[tuple[int, int]] = []
        """What the next `drain` waits for: (offset, length); nothing on DRAM."""
        self.size_bytes = content.size_bytes
        self._bytes: Bytes | None = content
        self._gate = gate

    def load(self, offset: int, length: int) -> bytes:
        kept = self._bytes or self._open()
        if offset < 0 or length < 0 or offset + length > kept.size_bytes:
            kept.check(offset, length)
        return bytes(kept.content[offset : offset + length])

    def load_u64(self, offset: int) -> int:
        kept = self._bytes
        if kept is None or offset < 0 or offset % WORD_BYTES or offset + WORD_BYTES > kept.size_bytes:
            self._check_word(offset)
        assert kept is not None, "an open mapping has its bytes"
        word: int = _load_word(kept.content, offset)[0]
        return word

    def load_words(self, numbers: Iterable[int]) -> list[int]:
        kept = self._open()
        content = kept.content
        words = []
        for number in numbers:
            if not 0 <= number * WORD_BYTES < kept.size_bytes - WORD_BYTES + 1:
                self._check_word(number * WORD_BYTES)
            words.append(_load_word(content, number * WORD_BYTES)[0])
        return words

    def store(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        kept, gate = self._bytes or self._open(), self._gate
        kept.check(offset, len(data))
        if gate is None:
            kept.write(offset, data)
            return
        gate()
        cut = gate.split(len(data))
        kept.write(offset, data[:cut])
        if cut < len(data):
            gate()
            kept.write(offset + cut, data[cut:])
        gate()

    def store_u64(self, offset: int, value: int) -> None:
        kept, gate = self._bytes or self._open(), self._gate
        self._check_word(offset)
        if gate is not None:
            gate()
        kept.write(offset, _WORD.pack(value))
        if gate is not None:
            gate()

    def flush(self, offset: int, length: int) -> None:
        kept = self._bytes or self._open()
        kept.check(offset, length)
        if kept.volatile:
            self._flushed.append((offset, length))

    def drain(self) -> None:
        kept = self._bytes or self._open()
        if self._flushed:
            for offset, length in self._flushed:
                kept.write_back(offset, length)
            self._flushed.clear()

    def close(self) -> None:
        self._bytes = None

    def _open(self) -> Bytes:
        if self._bytes is None:
            raise ValueError("the mapping is closed")
        return self._bytes

    def _check_word(self, offset: int) -> None:
        self._open().check(offset, WORD_BYTES)
        if offset % WORD_BYTES:
            raise IndexError(f"a word at {offset} is not aligned")


class SimulatedObject:
    """`environment.MemoryObject` as one process has it open."""

    def __init__(self, name: str, content: Bytes, gate: Gate | None) -> None:
        self.name = name
        self.identity = content.identity
        self.resizable = content.resizable
        self._bytes = content
        self._gate = gate

    @property
    def size_bytes(self) -> int:
        return self._bytes.size_bytes

    @property
    def content(self) -> Bytes:
        return self._bytes

    def map(self) -> GatedMapping:
        if not self.size_bytes:
            raise InvalidArgument(f"memory {self.name} is empty: there is nothing to map")
        return GatedMapping(self._bytes, self._gate)

    def read(self, offset: int, length: int) -> bytes:
        self._bytes.check(offset, length)
        return bytes(self._bytes.content[offset : offset + length])

    def read_into(self, offset: int, target: memoryview) -> None:
        target[:] = self.read(offset, len(target))

    def view(self, offset: int, length: int) -> memoryview:
        return memoryview(self.read(offset, length))

    def window(self) -> memoryview:
        return memoryview(self._bytes.content).toreadonly()

    def write(self, offset: int, data: bytes | memoryview) -> None:
        if self._gate is not None:
            self._gate()
        self._bytes.write(offset, data)

    def extents(self, start: int = 0, end: int | None = None) -> list[tuple[int, int]]:
        return self._bytes.extents(start, end)

    @property
    def present_bytes(self) -> int:
        return sum(length for _, length in self.extents())

    def present_pages(self) -> bytes:
        present = bytearray(-(-self.size_bytes // PAGE_BYTES))
        for offset, length in self.extents():
            first, last = offset // PAGE_BYTES, -(-(offset + length) // PAGE_BYTES)
            present[first:last] = b"\1" * (last - first)
        return bytes(present)

    def is_present(self, offset: int) -> bool:
        return bool(self.extents(offset, offset + PAGE_BYTES))

    def punch(self, offset: int, length: int) -> None:
        self._bytes.punch(offset, length)


class SimulatedMemory:
    """`environment.Memory` of one host incarnation; all its stores pass `gate`."""

    def __init__(self, objects: Objects, gate: Gate | None = None) -> None:
        self._objects = objects
        self._gate = gate
        self.capacity_bytes = objects.capacity_bytes

    def names(self) -> list[str]:
        return sorted(self._objects.by_name)

    def open(self, name: str) -> MemoryObject:
        kept = self._objects.by_name.get(name)
        if kept is None:
            raise NotFound(f"the machine keeps no memory named {name}")
        return SimulatedObject(name, kept, self._gate)

    async def create(self, name: str, size_bytes: int, *, resizable: bool = False) -> MemoryObject:
        await asyncio.sleep(CREATE_LATENCY_S)
        if name in self._objects.by_name:
            raise AlreadyExists(f"the machine keeps a memory named {name} already")
        self._check_room(size_bytes)
        self._objects.made += 1
        self._objects.by_name[name] = Bytes(size_bytes, resizable=resizable, identity=self._objects.made)
        return self.open(name)

    def resize(self, name: str, size_bytes: int) -> None:
        kept = self._objects.by_name.get(name)
        if kept is None:
            raise NotFound(f"the machine keeps no memory named {name}")
        if not kept.resizable or size_bytes < 0:
            raise InvalidArgument(f"memory {name} cannot be made {size_bytes} bytes long")
        if self._gate is not None:
            self._gate()
        self._check_room(size_bytes - kept.size_bytes)
        kept.resize(size_bytes)

    def _check_room(self, more_bytes: int) -> None:
        if sum(kept.size_bytes for kept in self._objects.by_name.values()) + max(0, more_bytes) > self.capacity_bytes:
            raise ResourceExhausted(f"the machine has less than {more_bytes} bytes of memory left; free some first")

    async def remove(self, name: str) -> None:
        await asyncio.sleep(CREATE_LATENCY_S)
        self._objects.by_name.pop(name, None)
