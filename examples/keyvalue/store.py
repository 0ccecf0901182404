"""Keys and values in a region: bytes to bytes, some with a time at which they expire.

    store = Store(me.transaction, me.region("kv"), transaction_bytes)
    store.now_ms = ...                                # before each batch of operations
    store.set(b"key", b"value")                       # raises Full, TooLarge: nothing was changed
    store.commit()

An entry expires at a time of the wall clock, kept with it: a monotonic clock counts from the start of one machine, so
it says nothing on the machine where the guest goes on, nor after a stop of the whole cluster. Who sets a clock back
makes entries live longer. An expired entry is deleted by whoever comes across it, and by `sweep`.
"""

from __future__ import annotations

import contextlib
import zlib
from collections.abc import Callable, Iterable

from everram.examples.keyvalue.heap import (
    GENERATION_SHIFT,
    HEAD,
    HEAD_BYTES,
    OFFSET_MASK,
    TABLE_AT,
    UNIT_SHIFT,
    UNITS,
    USED,
    Block,
    Full,
    Heap,
    Mark,
    units_for,
)
from everram.runtime.guest import LogFull, Region, Transaction

MARK_BLOCKS_MAX = 256
"""A mark copies what was changed: above this it is cheaper to commit first."""


class TooLarge(Exception):
    """More than one transaction holds. Nothing was changed."""


class Store:
    """A heap whose blocks in use are entries, found by a hash index of chains in the same region.

    `transaction_bytes`: the most that one transaction may store.
    """

    def __init__(self, transaction: Callable[[], Transaction], region: Region, transaction_bytes: int) -> None:
        self.heap = Heap(transaction, region)
        self.now_ms = 0
        self.transaction_bytes = transaction_bytes
        self.entry_bytes_max = transaction_bytes // 2
        """Key and value: a transaction takes one of these besides what is `crowded`."""
        self.crowded_bytes = transaction_bytes // 4
        self._chain_mask = self.heap.chains - 1
        self._sweep_at = 0
        self._load = region.mapping.load
        self._load_word = region.mapping.load_u64

    def __len__(self) -> int:
        """How many keys there are, those that have expired but were not come across included."""
        return self.heap.count

    @property
    def used_bytes(self) -> int:
        """Of the region that was ever needed at once, give or take: free blocks in the midst are counted."""
        return self.heap.end

    # -- reading

    def get(self, key: bytes) -> bytes | None:
        found = self._alive(key)
        if found is None:
            return None
        at, block = found
        return self.heap.body(at, block.key_bytes, block.value_bytes)

    def get_entry(self, key: bytes) -> tuple[bytes | None, int]:
        """The value, and when it expires."""
        found = self._alive(key)
        if found is None:
            return None, 0
        at, block = found
        return self.heap.body(at, block.key_bytes, block.value_bytes), block.extra

    def expires_ms(self, key: bytes) -> int | None:
        """When it expires; 0: never; None: there is no such key."""
        found = self._alive(key)
        return None if found is None else found[1].extra

    def length(self, key: bytes) -> int:
        found = self._alive(key)
        return 0 if found is None else found[1].value_bytes

    def __contains__(self, key: bytes) -> bool:
        return self._alive(key) is not None

    def scan(self, cursor: int, count: int) -> tuple[int, list[bytes]]:
        """Keys of about `count` entries from the chain `cursor` on, and where to go on; 0: that was all.

        A key that is there from the first call to the last is seen exactly once.
        """
        keys: list[bytes] = []
        chains = self.heap.chains
        looked = 0
        while cursor < chains and looked < 10 * count and len(keys) < count:
            looked += 1
            keys += (key for key, _ in self._chain(cursor))
            cursor += 1
        return (cursor if cursor < chains else 0), keys

    def keys(self) -> Iterable[bytes]:
        for chain in range(self.heap.chains):
            for key, _ in self._chain(chain):
                yield key

    def _chain(self, chain: int) -> list[tuple[bytes, Block]]:
        """What a chain holds; what has expired of it is deleted."""
        heap, now_ms = self.heap, self.now_ms
        at = self._first(TABLE_AT + 8 * chain)
        found: list[tuple[bytes, Block]] = []
        expired: list[tuple[bytes, int]] = []
        while at:
            block = heap.block(at)
            key = heap.body(at, 0, block.key_bytes)
            if block.extra and block.extra <= now_ms:
                expired.append((key, at))
            else:
                found.append((key, block))
            at = block.next
        for key, at in expired:
            if not self.crowded:
                self._remove(key, at, heap.block(at))
        return found

    # -- changing

    def set(self, key: bytes, value: bytes, expires_ms: int = 0) -> None:
        """Raises Full, TooLarge."""
        body, heap = key + value, self.heap
        if len(body) > self.entry_bytes_max:
            raise TooLarge
        found = self._find(key)
        if found is None:
            link = TABLE_AT + 8 * (zlib.crc32(key) & self._chain_mask)
            self._insert(link, len(key), body, expires_ms)
            return
        at, (size, before, following, old_ms, _, _) = found
        units, have = units_for(len(body)), size & UNITS
        if units <= have <= units + (units >> 2) + 2:
            if expires_ms or old_ms:
                heap.expiring += bool(expires_ms) - bool(old_ms)
            heap.write(at, Block(size, before, following, expires_ms, len(key), len(value)), body)
            return
        mark = None if heap.has_room(units) else self._mark()
        self._remove(key, *found)
        link = TABLE_AT + 8 * (zlib.crc32(key) & self._chain_mask)
        try:
            self._insert(link, len(key), body, expires_ms)
        except Full:
            assert mark is not None
            heap.back_to(mark)
            raise

    def set_all(self, pairs: Iterable[tuple[bytes, bytes]]) -> None:
        """All of them or, if it raises Full or TooLarge, none."""
        mark = self._mark()
        try:
            for key, value in pairs:
                self.set(key, value)
                if self.heap.changed_bytes > self.transaction_bytes:
                    raise TooLarge
        except (Full, TooLarge):
            self.heap.back_to(mark)
            raise

    def _mark(self) -> Mark:
        if len(self.heap.blocks) > MARK_BLOCKS_MAX:
            with contextlib.suppress(LogFull):
                self.heap.commit()
        return self.heap.mark()

    def set_expiry(self, key: bytes, expires_ms: int) -> None:
        """Of a key that is there; 0: it does not expire any more."""
        found = self._alive(key)
        if found is not None:
            at, block = found
            self.heap.expiring += bool(expires_ms) - bool(block.extra)
            self.heap.write(at, block._replace(extra=expires_ms))

    def delete(self, key: bytes) -> bool:
        """Whether there was such a key."""
        found = self._alive(key)
        if found is None:
            return False
        self._remove(key, *found)
        return True

    def clear(self) -> None:
        self.heap.clear()

    def sweep(self, chains: int) -> None:
        """Look at some chains for entries that have expired, going on where the last call stopped."""
        if not self.heap.expiring:
            return
        for _ in range(min(chains, self.heap.chains)):
            if self.crowded:
                break
            self._chain(self._sweep_at)
            self._sweep_at = (self._sweep_at + 1) & self._chain_mask

    # -- all or nothing

    @property
    def crowded(self) -> bool:
        """Whether to commit before more is changed."""
        return self.heap.changed_bytes > self.crowded_bytes

    def commit(self) -> bool:
        """Whether there was anything. Raises LogFull, Fenced: nothing is committed, and it may be tried again."""
        return self.heap.commit()

    def make_room(self) -> None:
        """Between two changes that need not be one: commit if that is due. Raises LogFull if it must be and cannot."""
        if self.crowded:
            try:
                self.heap.commit()
            except LogFull:
                if self.heap.changed_bytes > self.transaction_bytes // 2:
                    raise

    def rollback(self) -> None:
        self.heap.rollback()

    # -- entries

    def _first(self, link: int) -> int:
        """The first entry of a chain. Words of an earlier generation are from before a `clear`."""
        word = self.heap.words.get(link)
        if word is None:
            word = self._load_word(link)
        return (word & OFFSET_MASK) << UNIT_SHIFT if word >> GENERATION_SHIFT == self.heap.generation else 0

    def _find(self, key: bytes) -> tuple[int, Block] | None:
        """An entry, expired or not. On the way of every request: it does what `_first` and `Heap.block` do itself."""
        heap, length, load = self.heap, len(key), self._load
        blocks = heap.blocks
        link = TABLE_AT + 8 * (zlib.crc32(key) & self._chain_mask)
        word = heap.words.get(link)
        if word is None:
            word = self._load_word(link)
        if word >> GENERATION_SHIFT != heap.generation:
            return None
        at = (word & OFFSET_MASK) << UNIT_SHIFT
        while at:
            block = blocks.get(at)
            if block is None:
                block = tuple.__new__(Block, HEAD.unpack(load(at, HEAD_BYTES)))
                if block.key_bytes == length and load(at + HEAD_BYTES, length) == key:
                    return at, block
            elif block.key_bytes == length and heap.body(at, 0, length) == key:
                return at, block
            at = block.next
        return None

    def _alive(self, key: bytes) -> tuple[int, Block] | None:
        """An entry that has not expired. One that has is deleted, unless a commit has to come first."""
        found = self._find(key)
        if found is None or not found[1].extra or found[1].extra > self.now_ms:
            return found
        if not self.crowded:
            self._remove(key, *found)
        return None

    def _insert(self, link: int, key_bytes: int, body: bytes, expires_ms: int) -> None:
        heap = self.heap
        at, units, before = heap.take(units_for(len(body)))
        block = Block(units | USED, before, self._first(link), expires_ms, key_bytes, len(body) - key_bytes)
        heap.write(at, block, body)
        heap.words[link] = heap.generation << GENERATION_SHIFT | at >> UNIT_SHIFT
        heap.count += 1
        heap.expiring += bool(expires_ms)

    def _remove(self, key: bytes, at: int, block: Block) -> None:
        heap = self.heap
        link = TABLE_AT + 8 * (zlib.crc32(key) & self._chain_mask)
        earlier = self._first(link)
        if earlier == at:
            heap.words[link] = heap.generation << GENERATION_SHIFT | block.next >> UNIT_SHIFT
        else:
            while (previous := heap.block(earlier)).next != at:
                earlier = previous.next
            heap.write(earlier, previous._replace(next=block.next))
        heap.give(at)
        heap.count -= 1
        heap.expiring -= bool(block.extra)
