"""Blocks of any size in a region of a guest, changed by one transaction for many operations.

    heap = Heap(me.transaction, region)
    at = heap.take(units)                             # raises Full
    heap.write(at, Block(...), b"body")
    heap.commit()                                     # all since the last commit, or nothing of it

Changes are kept aside as whole blocks and words, by offset, and every read looks there first: what is changed often
between two commits is stored once. Whatever is kept here outside of the region can be forgotten at any moment
(`rollback`) and read from it again, so an incarnation that finds gigabytes begins as fast as one that finds nothing.

Layout: docs/formats.md, "Key-value region". A block knows its own size and that of the block before it, so that free
neighbours become one; free blocks hang in lists by size (segregated fits, after TLSF: Masmano et al., 2004), and what
was never used lies beyond the last block.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import NamedTuple

from everram.runtime.guest import LogFull, Region, RegionError, Transaction

MAGIC = int.from_bytes(b"EVRMKEYV", "little")
VERSION = 1
MAGIC_AT, VERSION_AT, CHAINS_AT, STATE_AT, BINS_AT, TABLE_AT = 0, 8, 16, 64, 128, 4096
STATE = struct.Struct("<QQQQQ")
"""Generation, heap's end, units of the last block, keys, keys that expire."""
HEAD = struct.Struct("<IIQQII")
HEAD_BYTES = HEAD.size
WORD = struct.Struct("<Q")
UNIT_BYTES, UNIT_SHIFT = 16, 4
UNITS_MIN = 3
USED, UNITS = 1 << 31, (1 << 31) - 1
REGION_BYTES_MIN, REGION_BYTES_MAX = 16 * 1024, 32 << 30
REGION_BYTES_PER_CHAIN = 128
"""Of the table, 6 % of the region: entries are seldom smaller, so chains are about one entry long."""
GENERATION_SHIFT, OFFSET_MASK = 40, (1 << 40) - 1
GENERATION_LAST = (1 << 24) - 1
EXACT_BINS, BINS = 64, 64 + 25 * 8
"""Below 64 units a bin for each size, above it eight for each power of two."""
LOOKS_MAX = 8
"""At blocks of a bin that may be a little too small, before a larger bin is taken."""
_STORE_BYTES = 16
"""What a store costs in a log record besides its data."""
_BLOCK_BYTES, _WORD_BYTES, _STATE_BYTES = HEAD_BYTES + _STORE_BYTES, 8 + _STORE_BYTES, STATE.size + _STORE_BYTES
CLEAR_BYTES = 8192


class Full(Exception):
    """No free block is large enough. Nothing was changed."""


class Block(NamedTuple):
    """A block's head. Of a free one `next` and `extra` are its neighbours in the free list, the lengths are 0."""

    size: int
    """In units, and USED."""
    before: int
    """Units of the block that ends where this begins; 0: this is the first."""
    next: int
    """Offset of the next entry of the chain; 0: none."""
    extra: int
    """When the entry expires, in milliseconds since 1970; 0: never."""
    key_bytes: int
    value_bytes: int


class Mark(NamedTuple):
    """What was not committed at some moment."""

    blocks: dict[int, Block]
    bodies: dict[int, bytes]
    words: dict[int, int]
    body_bytes: int
    bitmap: int
    state: tuple[int, ...]


def bin_of(units: int) -> int:
    if units < EXACT_BINS:
        return units
    power = units.bit_length() - 1
    return EXACT_BINS + (power - 6) * 8 + (units >> (power - 3) & 7)


def units_for(length: int) -> int:
    """Of a block whose body has `length` bytes."""
    return max(UNITS_MIN, (HEAD_BYTES + length + UNIT_BYTES - 1) >> UNIT_SHIFT)


class Heap:
    """Fills the whole of `region`. Raises RegionError if something else lies there."""

    def __init__(self, transaction: Callable[[], Transaction], region: Region) -> None:
        self.region = region
        self._transaction = transaction
        self._load, self._load_word = region.mapping.load, region.mapping.load_u64
        self.blocks: dict[int, Block] = {}
        self.bodies: dict[int, bytes] = {}
        """Of blocks in `blocks` only."""
        self.words: dict[int, int] = {}
        self.body_bytes = 0
        """Of all in `bodies`."""
        magic = region.load_u64(MAGIC_AT)
        if not magic:
            self._format()
        elif magic != MAGIC or region.load_u64(VERSION_AT) != VERSION:
            raise RegionError(f"region {region.name} holds something else than keys and values of version {VERSION}")
        self.chains = region.load_u64(CHAINS_AT)
        self.begin = TABLE_AT + 8 * self.chains
        self._read_state()
        if self.generation == GENERATION_LAST:
            self._clear_table()  # an earlier incarnation died over it

    def _format(self) -> None:
        region = self.region
        if not REGION_BYTES_MIN <= region.size_bytes <= REGION_BYTES_MAX:
            raise RegionError(
                f"region {region.name} has {region.size_bytes} bytes: keys and values take "
                f"{REGION_BYTES_MIN} to {REGION_BYTES_MAX}"
            )
        chains = 1 << (region.size_bytes // REGION_BYTES_PER_CHAIN).bit_length() - 1
        with self._transaction() as tx:
            tx.store(region, MAGIC_AT, struct.pack("<QQQ", MAGIC, VERSION, chains))
            tx.store(region, STATE_AT, STATE.pack(1, TABLE_AT + 8 * chains, 0, 0, 0))

    def _read_state(self) -> None:
        self._committed: tuple[int, ...] = STATE.unpack(self._load(STATE_AT, STATE.size))
        self.generation: int
        self.count: int
        self.expiring: int
        self.generation, self.end, self._last_units, self.count, self.expiring = self._committed
        heads = struct.unpack(f"<{BINS}Q", self._load(BINS_AT, 8 * BINS))
        self._bitmap = sum(1 << number for number, head in enumerate(heads) if head)

    # -- reading

    def word(self, at: int) -> int:
        found = self.words.get(at)
        return self._load_word(at) if found is None else found

    def block(self, at: int) -> Block:
        return self.blocks.get(at) or tuple.__new__(Block, HEAD.unpack(self._load(at, HEAD_BYTES)))

    def body(self, at: int, offset: int, length: int) -> bytes:
        """Some bytes of what follows a block's head."""
        found = self.bodies.get(at)
        return self._load(at + HEAD_BYTES + offset, length) if found is None else found[offset : offset + length]

    @property
    def changed_bytes(self) -> int:
        """What a commit would take in the log now."""
        return self.body_bytes + len(self.blocks) * _BLOCK_BYTES + len(self.words) * _WORD_BYTES + _STATE_BYTES

    # -- changing

    def write(self, at: int, block: Block, body: bytes | None = None) -> None:
        """Change a block's head; its body stays what it is if none is given."""
        self.blocks[at] = block
        if body is not None:
            self.body_bytes += len(body) - len(self.bodies.get(at, b""))
            self.bodies[at] = body

    def has_room(self, units: int) -> bool:
        """Whether `take` finds a block without anything being given up first."""
        return self.end + (units << UNIT_SHIFT) <= self.region.size_bytes or bool(self._find_free(units))

    def take(self, units: int) -> tuple[int, int, int]:
        """A block of at least `units`: its offset, its size, the size of the block before it. Raises Full."""
        at = self._find_free(units)
        if not at:
            return self._take_new(units)
        block = self.block(at)
        self._unlink(at, block)
        have = block.size
        if have - units >= UNITS_MIN:
            rest = at + (units << UNIT_SHIFT)
            self._link(rest, have - units, units)
            self._set_before(rest, have - units)
            have = units
        self.blocks[at] = Block(have | USED, block.before, 0, 0, 0, 0)
        return at, have, block.before

    def _take_new(self, units: int) -> tuple[int, int, int]:
        at = self.end
        if at + (units << UNIT_SHIFT) > self.region.size_bytes:
            raise Full
        before = self._last_units
        self.end = at + (units << UNIT_SHIFT)
        self._last_units = units
        return at, units, before

    def give(self, at: int) -> None:
        """Give a block up; it becomes one with free neighbours."""
        block = self.block(at)
        units, before = block.size & UNITS, block.before
        self._forget(at)
        after = at + (units << UNIT_SHIFT)
        if after < self.end and not (following := self.block(after)).size & USED:
            self._unlink(after, following)
            self._forget(after)
            units += following.size
        if before and not (earlier := self.block(at - (before << UNIT_SHIFT))).size & USED:
            at -= before << UNIT_SHIFT
            self._unlink(at, earlier)
            self._forget(at)
            units += earlier.size
            before = earlier.before
        if at + (units << UNIT_SHIFT) == self.end:
            self.end, self._last_units = at, before
        else:
            self._link(at, units, before)
            self._set_before(at, units)

    def _find_free(self, units: int) -> int:
        number = bin_of(units)
        bits = self._bitmap >> number
        if bits & 1:
            at = self.word(BINS_AT + 8 * number)
            for _ in range(LOOKS_MAX):
                block = self.block(at)
                if block.size >= units:
                    return at
                at = block.next
                if not at:
                    break
        bits &= ~1
        if not bits:
            return 0
        return self.word(BINS_AT + 8 * (number + (bits & -bits).bit_length() - 1))

    def _link(self, at: int, units: int, before: int) -> None:
        """Make a free block of this place, at the front of its list."""
        number = bin_of(units)
        head = BINS_AT + 8 * number
        first = self.word(head)
        if first:
            self.blocks[first] = self.block(first)._replace(extra=at)
        self.blocks[at] = Block(units, before, first, 0, 0, 0)
        self.words[head] = at
        self._bitmap |= 1 << number

    def _unlink(self, at: int, block: Block) -> None:
        if block.next:
            self.blocks[block.next] = self.block(block.next)._replace(extra=block.extra)
        if block.extra:
            self.blocks[block.extra] = self.block(block.extra)._replace(next=block.next)
            return
        number = bin_of(block.size)
        self.words[BINS_AT + 8 * number] = block.next
        if not block.next:
            self._bitmap &= ~(1 << number)

    def _set_before(self, at: int, units: int) -> None:
        """Tell the block behind the one at `at` what size that has now."""
        after = at + (units << UNIT_SHIFT)
        if after < self.end:
            self.blocks[after] = self.block(after)._replace(before=units)
        else:
            self._last_units = units

    def _forget(self, at: int) -> None:
        """This place is no block's beginning any more, so nothing may be stored there as if it were."""
        self.blocks.pop(at, None)
        self.body_bytes -= len(self.bodies.pop(at, b""))

    def clear(self) -> None:
        """Give up everything: the chains' words are of an earlier generation from now on, which is one store."""
        self.blocks, self.bodies, self.body_bytes = {}, {}, 0
        self.words = {at: 0 for at in range(BINS_AT, BINS_AT + 8 * BINS, 8) if self._load_word(at)}
        self.end, self._last_units, self.count, self.expiring = self.begin, 0, 0, 0
        self._bitmap = 0
        self.generation += 1
        if self.generation == GENERATION_LAST:
            try:
                self.commit()
                self._clear_table()
            except LogFull as error:
                raise RegionError(f"region {self.region.name} is half cleared: start again to go on") from error

    def _clear_table(self) -> None:
        """Generations are used up: begin with the first again, once no chain can be mistaken for one of it.

        Nothing is ever in the heap under the last generation, so whoever finds it goes on here.
        """
        for at in range(TABLE_AT, TABLE_AT + 8 * self.chains, CLEAR_BYTES):
            with self._transaction() as tx:
                tx.store(self.region, at, bytes(min(CLEAR_BYTES, TABLE_AT + 8 * self.chains - at)))
        self.generation = 1
        self.commit()

    # -- all or nothing

    def _current_state(self) -> tuple[int, ...]:
        return self.generation, self.end, self._last_units, self.count, self.expiring

    def commit(self) -> bool:
        """Whether there was anything. Raises LogFull, Fenced: all is still kept aside then, for another try."""
        state = self._current_state()
        if not self.blocks and not self.words and state == self._committed:
            return False
        region, bodies, pack = self.region, self.bodies, HEAD.pack
        tx = self._transaction()
        store = tx.store
        for at, block in self.blocks.items():
            body = bodies.get(at)
            store(region, at, pack(*block) if body is None else pack(*block) + body)
        for at, word in self.words.items():
            store(region, at, WORD.pack(word))
        if state != self._committed:
            store(region, STATE_AT, STATE.pack(*state))
        tx.commit()
        self.blocks, self.bodies, self.words, self.body_bytes = {}, {}, {}, 0
        self._committed = state
        return True

    def rollback(self) -> None:
        """Forget everything since the last commit."""
        self.blocks, self.bodies, self.words, self.body_bytes = {}, {}, {}, 0
        self._read_state()

    def mark(self) -> Mark:
        blocks, bodies, words = dict(self.blocks), dict(self.bodies), dict(self.words)
        return Mark(blocks, bodies, words, self.body_bytes, self._bitmap, self._current_state())

    def back_to(self, mark: Mark) -> None:
        """Forget everything since `mark`, which must be later than the last commit. A mark is good for one return."""
        self.blocks, self.bodies, self.words, self.body_bytes, self._bitmap, state = mark
        self.generation, self.end, self._last_units, self.count, self.expiring = state
