"""Memory that remembers how it was written, and can say everything a crash might have left of it.

    recording = Recording(bytes(4096), bytes(8192))          # two memories, recorded in one order
    work_on(recording.map(0), recording.map(1))
    recording.mark("told")                                   # from here on, the caller knows
    for state in power_losses(recording, states_max=1000, stream=stream):
        recover(Recording(*state.memories))

Two kinds of crash. When a process dies, memory keeps every store up to some point, the last one perhaps in part. When
power fails, what was flushed before a drain is certain, and of everything else each cache line keeps what the first
few words stored to it made of it, independently of all other lines: caches write lines back when they like, but never
half an aligned word. Both are enumerated completely, or drawn from where there are too many.

For a simulated machine's memory, whose processes die in the midst of a run, see `everram.runtime.simulation.objects`.
"""

from __future__ import annotations

import itertools
import math
import sys
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass, field

from everram.runtime.memory.contract import CACHE_LINE_BYTES, Mapping
from everram.runtime.simulation.entropy import Stream

WORD_BYTES = 8
"""What the processor stores as a whole, if it is aligned."""


@dataclass(frozen=True, slots=True)
class _Store:
    memory: int
    offset: int
    data: bytes


@dataclass(frozen=True, slots=True)
class _Flush:
    memory: int
    offset: int
    length: int


@dataclass(frozen=True, slots=True)
class _Drain:
    pass


@dataclass(frozen=True, slots=True)
class _Mark:
    what: Hashable


@dataclass(frozen=True, slots=True)
class CrashState:
    """What one crash left, and the marks that were set before it."""

    memories: tuple[bytes, ...] = field(repr=False)
    marks: tuple[Hashable, ...]


class Recording:
    """Memories with the contents given, and every store, flush and drain to them since, in one order."""

    def __init__(self, *contents: bytes, before_store: Callable[[], None] | None = None) -> None:
        """`before_store` is called before each store, and may raise: the store then does not happen."""
        self.contents = [bytearray(content) for content in contents]
        self.before_store = before_store
        self.restart()

    def restart(self) -> None:
        """Forget what was recorded: what is there now is certain."""
        self.journal: list[_Store | _Flush | _Drain | _Mark] = []
        self.initial = tuple(bytes(content) for content in self.contents)

    def map(self, memory: int) -> SimMapping:
        """A mapping of memory number `memory`; there may be several."""
        return SimMapping(self, memory)

    def mark(self, what: Hashable) -> None:
        """Note that this has happened: crash states carry the marks that were set before the crash."""
        self.journal.append(_Mark(what))


class SimMapping(Mapping):
    """`contract.Mapping` of one recorded memory."""

    def __init__(self, recording: Recording, memory: int) -> None:
        self.size_bytes = len(recording.contents[memory])
        self._recording = recording
        self._memory = memory
        self._content: bytearray | None = recording.contents[memory]

    def load(self, offset: int, length: int) -> bytes:
        return bytes(self._check(offset, length)[offset : offset + length])

    def load_u64(self, offset: int) -> int:
        content = self._check_word(offset)
        return int.from_bytes(content[offset : offset + WORD_BYTES], "little")

    def store(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        self._store(self._check(offset, len(data)), offset, bytes(data))

    def store_u64(self, offset: int, value: int) -> None:
        self._store(self._check_word(offset), offset, value.to_bytes(WORD_BYTES, "little"))

    def flush(self, offset: int, length: int) -> None:
        self._check(offset, length)
        self._recording.journal.append(_Flush(self._memory, offset, length))

    def drain(self) -> None:
        self._check(0, 0)
        self._recording.journal.append(_Drain())

    def close(self) -> None:
        self._content = None

    def _store(self, content: bytearray, offset: int, data: bytes) -> None:
        recording = self._recording
        if recording.before_store is not None:
            recording.before_store()
        content[offset : offset + len(data)] = data
        recording.journal.append(_Store(self._memory, offset, data))

    def _check(self, offset: int, length: int) -> bytearray:
        if self._content is None:
            raise ValueError("the mapping is closed")
        if offset < 0 or length < 0 or offset + length > self.size_bytes:
            raise IndexError(f"{length} bytes at {offset} in a mapping of {self.size_bytes}")
        return self._content

    def _check_word(self, offset: int) -> bytearray:
        if offset % WORD_BYTES:
            raise IndexError(f"a word at {offset} is not aligned")
        return self._check(offset, WORD_BYTES)


def process_crashes(recording: Recording, *, cuts_max: int = sys.maxsize) -> Iterator[CrashState]:
    """Every state that the death of the storing process can leave: before all stores, and after each word of each; of
    a store with more words than `cuts_max`, after so many of them, evenly spread, the last among them."""
    contents = [bytearray(content) for content in recording.initial]
    marks: list[Hashable] = []
    yield _state(contents, marks)
    for event in recording.journal:
        if isinstance(event, _Mark):
            marks.append(event.what)
            yield _state(contents, marks)
        elif isinstance(event, _Store):
            pieces = list(_cut(event, WORD_BYTES))
            for left, piece in zip(reversed(range(len(pieces))), pieces, strict=True):
                contents[piece.memory][piece.offset : piece.offset + len(piece.data)] = piece.data
                if left % -(-len(pieces) // cuts_max) == 0:
                    yield _state(contents, marks)


def power_losses(recording: Recording, *, states_max: int, stream: Stream) -> Iterator[CrashState]:
    """Every state that a loss of power can leave; where a moment has more than `states_max`, those that tear no store
    within a line and some that do, or where even those are too many, `states_max` drawn ones.

    Looked at are the moments just before a drain and at marks, for they include all others: that a store has not
    happened yet and that nothing of it was written back are the same.
    """
    lines = _Lines(recording.initial)
    marks: list[Hashable] = []
    for event in recording.journal:
        if isinstance(event, _Store):
            lines.store(event)
        elif isinstance(event, _Flush):
            lines.flush(event)
        else:
            if lines.changed:
                yield from (_state(kept, marks) for kept in lines.outcomes(states_max, stream))
            if isinstance(event, _Mark):
                marks.append(event.what)
                lines.changed = True  # the same outcomes count anew: more was told before them
            else:
                lines.drain()
    yield from (_state(kept, marks) for kept in lines.outcomes(states_max, stream))


class _Lines:
    """The cache between the stores and the memory: for each line the words that are not certain yet, oldest first."""

    def __init__(self, initial: tuple[bytes, ...]) -> None:
        self.certain = [bytearray(content) for content in initial]
        self.pending: dict[tuple[int, int], _Line] = {}
        self.changed = True
        """Whether there are outcomes that have not been looked at."""

    def store(self, event: _Store) -> None:
        self.changed = True
        for part in _cut(event, CACHE_LINE_BYTES):
            line = self.pending.setdefault((part.memory, part.offset // CACHE_LINE_BYTES), _Line())
            line.words.extend(_cut(part, WORD_BYTES))
            line.whole.append(len(line.words))

    def flush(self, event: _Flush) -> None:
        first, last = event.offset // CACHE_LINE_BYTES, (event.offset + event.length - 1) // CACHE_LINE_BYTES
        for number in range(first, last + 1):
            if line := self.pending.get((event.memory, number)):
                line.flushed = len(line.words)

    def drain(self) -> None:
        for key, line in list(self.pending.items()):
            _apply(self.certain, line.words[: line.flushed])
            line.drained()
            if not line.words:
                del self.pending[key]
        # Fewer outcomes than before, and all of them were looked at.
        self.changed = False

    def outcomes(self, states_max: int, stream: Stream) -> Iterator[list[bytearray]]:
        lines = list(self.pending.values())
        for choice in _choices(lines, states_max, stream):
            contents = [bytearray(content) for content in self.certain]
            for line, count in zip(lines, choice, strict=True):
                _apply(contents, line.words[:count])
            yield contents


@dataclass(slots=True)
class _Line:
    words: list[_Store] = field(default_factory=list)
    """Or less than words, where a store begins or ends within one."""
    whole: list[int] = field(default_factory=lambda: [0])
    """How many words there were before and after each store."""
    flushed: int = 0
    """How many of the words the next drain makes certain."""

    def drained(self) -> None:
        del self.words[: self.flushed]
        self.whole = [0, *(count - self.flushed for count in self.whole if count > self.flushed)]
        self.flushed = 0


def _choices(lines: list[_Line], states_max: int, stream: Stream) -> Iterator[tuple[int, ...]]:
    """For each line, how many of its words are written back."""
    drawn = 0
    if math.prod(len(line.words) + 1 for line in lines) <= states_max:
        yield from itertools.product(*(range(len(line.words) + 1) for line in lines))
    elif math.prod(len(line.whole) for line in lines) <= states_max:
        yield from itertools.product(*(line.whole for line in lines))
        drawn = states_max // 4
    else:
        drawn = states_max
    for _ in range(drawn):
        yield tuple(stream.randrange(len(line.words) + 1) for line in lines)


def _apply(contents: list[bytearray], pieces: list[_Store]) -> None:
    for piece in pieces:
        contents[piece.memory][piece.offset : piece.offset + len(piece.data)] = piece.data


def _cut(event: _Store, unit_bytes: int) -> Iterator[_Store]:
    """The parts of a store that lie in different aligned units, in order of address."""
    at, end = event.offset, event.offset + len(event.data)
    while at < end:
        stop = min(end, (at // unit_bytes + 1) * unit_bytes)
        yield _Store(event.memory, at, event.data[at - event.offset : stop - event.offset])
        at = stop


def _state(contents: list[bytearray], marks: list[Hashable]) -> CrashState:
    return CrashState(tuple(bytes(content) for content in contents), tuple(marks))
