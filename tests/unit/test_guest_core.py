"""Transactions, leases, recovery and waiting of a guest, on memory that a test holds in its hand."""

from __future__ import annotations

import asyncio
import threading

import pytest

from everram.runtime.guest import (
    AsyncGuest,
    Detached,
    Fenced,
    Guest,
    LogCorrupt,
    LogFull,
    RegionError,
    Timeout,
    aio,
    shell,
)
from everram.runtime.guest.core import GuestCore
from everram.runtime.guest.region import Region
from everram.runtime.log.record import HEADER_BYTES
from everram.runtime.log.ring import DATA_OFFSET, MIN_CAPACITY_BYTES, Destination, Ring
from everram.runtime.memory.heap import HeapMapping
from everram.runtime.simulation.memory import Recording

REGION_BYTES = 4096


class Memory:
    """What a machine keeps of one guest: its log, a logged region "data" and a mapped one "scratch"."""

    def __init__(self) -> None:
        self.log = HeapMapping(Ring.total_bytes(MIN_CAPACITY_BYTES))
        self.data, self.scratch = HeapMapping(REGION_BYTES), HeapMapping(REGION_BYTES)
        self.ring = Ring.format(self.log, guest_id="g", epoch=0, capacity_bytes=MIN_CAPACITY_BYTES)
        self.now_ns = 1000

    def start(self) -> GuestCore:
        """The next incarnation."""
        self.ring.begin_epoch(self.ring.epoch + 1)
        return self.attach(self.ring.epoch)

    def attach(self, epoch: int) -> GuestCore:
        return GuestCore(
            guest_id="g",
            name="bank",
            epoch=epoch,
            ring=Ring.open(self.log),
            regions=[
                Region("data", 0, "logged", self.data, REGION_BYTES),
                Region("scratch", 1, "mapped", self.scratch, REGION_BYTES),
            ],
            now_ns=lambda: self.now_ns,
        )


@pytest.fixture
def memory() -> Memory:
    return Memory()


def fill(core: GuestCore) -> None:
    """Until there is no room left for a store of 1000 bytes."""
    with pytest.raises(LogFull, match="nothing was written"):
        for _ in range(100):
            with core.transaction() as tx:
                tx.store(core.region("data"), 0, bytes(1000))


# -- transactions


def test_a_transaction_takes_place_at_its_end(memory: Memory) -> None:
    core = memory.start()
    data = core.region("data")
    with core.transaction() as tx:
        tx.store(data, 10, bytearray(b"hello"))
        tx.store_u64(data, 64, 7)
        assert data[8:17] == bytes(9)
        assert tx.lsn == 0
        assert core.lsn == memory.ring.tail == 0
    assert (data[8:17], data.load_u64(64)) == (b"\0\0hello\0\0", 7)
    assert tx.lsn == core.lsn == memory.ring.tail == memory.ring.applied > 0


def test_it_reads_its_own_writes_latest_first(memory: Memory) -> None:
    core = memory.start()
    data = core.region("data")
    with core.transaction() as first:
        first.store(data, 0, b"0123456789")
    with core.transaction() as tx:
        tx.store(data, 2, b"abcd")
        tx.store(data, 4, memoryview(b"XY"))
        assert tx.load(data, 0, 10) == b"01abXY6789"
        assert tx.load(data, 3, 2) == b"bX"
        assert tx.load(data, 8, 2) == b"89"
        tx.store_u64(data, 16, 2**64 - 1)
        assert tx.load_u64(data, 16) == 2**64 - 1
    assert data.load(0, 10) == b"01abXY6789"


def test_what_a_caller_does_to_its_buffer_later_is_not_part_of_it(memory: Memory) -> None:
    core = memory.start()
    buffer = bytearray(b"before")
    with core.transaction() as tx:
        tx.store(core.region("data"), 0, buffer)
        buffer[:] = b"after!"
    assert core.region("data")[0:6] == b"before"


def test_an_exception_discards(memory: Memory) -> None:
    core = memory.start()
    with pytest.raises(KeyError), core.transaction() as tx:
        tx.store(core.region("data"), 0, b"never")
        raise KeyError
    assert core.region("data")[0:5] == bytes(5)
    assert tx.lsn == memory.ring.tail == 0
    assert tx.commit() == 0, "what was discarded stays discarded"


def test_without_stores_it_is_nothing(memory: Memory) -> None:
    core = memory.start()
    with core.transaction() as tx:
        pass
    assert tx.lsn == memory.ring.tail == 0


def test_begin_and_commit_without_a_block(memory: Memory) -> None:
    me = Guest(memory.start())
    tx = me.begin()
    tx.store(me.region("data"), 0, b"x")
    assert tx.commit() == tx.lsn == memory.ring.tail
    tx.store(me.region("data"), 1, b"y")
    tx.discard()
    assert tx.commit() == memory.ring.tail
    assert me.region("data")[0:2] == b"x\0"


@pytest.mark.parametrize(("offset", "data"), [(-1, b"x"), (REGION_BYTES, b"x"), (REGION_BYTES - 1, b"xy")])
def test_outside_the_region(memory: Memory, offset: int, data: bytes) -> None:
    core = memory.start()
    tx = core.transaction()
    with pytest.raises(RegionError, match="outside region data"):
        tx.store(core.region("data"), offset, data)
    with pytest.raises(RegionError, match="outside region data"):
        tx.load(core.region("data"), offset, len(data))


def test_each_kind_is_written_in_its_own_way(memory: Memory) -> None:
    core = memory.start()
    with pytest.raises(RegionError, match="transactions do not cover it"):
        core.transaction().store(core.region("scratch"), 0, b"x")
    with pytest.raises(RegionError, match=r"with me\.transaction"):
        core.region("data").store(0, b"x")
    core.region("scratch").store(5, b"plain")
    assert memory.scratch.load(5, 5) == b"plain"
    with pytest.raises(RegionError, match="outside"):
        core.region("scratch").store(REGION_BYTES, b"x")


def test_a_transaction_larger_than_a_record(memory: Memory) -> None:
    core = memory.start()
    with pytest.raises(RegionError, match="split it"), core.transaction() as tx:
        for _ in range(MIN_CAPACITY_BYTES // REGION_BYTES):
            tx.store(core.region("data"), 0, bytes(REGION_BYTES))
    assert memory.ring.tail == 0


def test_an_unknown_region(memory: Memory) -> None:
    with pytest.raises(RegionError, match=r"no region ledger \(it has: data, scratch\)"):
        memory.start().region("ledger")


def test_a_region_is_read_like_bytes(memory: Memory) -> None:
    core = memory.start()
    data = core.region("data")
    with core.transaction() as tx:
        tx.store(data, 0, b"0123456789")
    assert len(data) == REGION_BYTES
    assert (data[3], data[-1], data[2:5], data[:10:3], data[5:2]) == (51, 0, b"234", b"0369", b"")
    assert bytes(data[4090:5000]) == bytes(6)
    with pytest.raises(RegionError):
        data[REGION_BYTES]


def test_threads_may_each_have_one_open(memory: Memory) -> None:
    core = memory.start()
    data = core.region("data")
    ready = threading.Barrier(4)

    def work(place: int) -> None:
        for number in range(1, 51):
            with core.transaction() as tx:
                tx.store_u64(data, 64 * place, number)
                if number == 1:
                    ready.wait(10)
                tx.store_u64(data, 64 * place + 8, number)

    threads = [threading.Thread(target=work, args=(place,)) for place in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [data.load_u64(64 * place + 8 * half) for place in range(4) for half in range(2)] == [50] * 8
    assert memory.ring.applied == memory.ring.tail == core.lsn


# -- recovery


def test_the_next_incarnation_finds_everything(memory: Memory) -> None:
    core = memory.start()
    with core.transaction() as tx:
        tx.store(core.region("data"), 0, b"kept")
    again = memory.start()
    assert (again.epoch, again.replayed, again.lsn) == (2, 0, tx.lsn)
    assert again.region("data")[0:4] == b"kept"


def test_what_was_committed_but_not_applied_is_replayed(memory: Memory) -> None:
    core = memory.start()
    with core.transaction() as tx:
        tx.store(core.region("data"), 0, b"kept")
    memory.ring.set_applied(0)
    memory.data.store(0, b"\0\0pt")
    again = memory.start()
    assert again.replayed == 1
    assert again.region("data")[0:4] == b"kept"
    assert memory.ring.applied == tx.lsn


def test_a_damaged_log_is_refused_and_nothing_applied(memory: Memory) -> None:
    core = memory.start()
    for data in (b"one", b"two"):
        with core.transaction() as tx:
            tx.store(core.region("data"), 0, data)
    memory.ring.set_applied(0)
    memory.data.store(0, b"...")
    memory.log.store(DATA_OFFSET + core.lsn - 8, b"T")
    with pytest.raises(LogCorrupt, match=r"guest bank: .*damaged"):
        memory.attach(1)
    assert memory.data.load(0, 3) == b"..."


def test_an_incarnation_whose_epoch_is_over_cannot_begin(memory: Memory) -> None:
    memory.start()
    memory.start()
    with pytest.raises(Fenced, match="epoch 1 of guest bank is over, 2 has begun"):
        memory.attach(1)


class Interrupt(BaseException):
    """What a signal's handler raises."""


def test_a_commit_interrupted_anywhere_is_whole_or_nothing_at_once() -> None:
    """And goes on afterwards as if nothing had been."""
    for at in range(1, 11):
        recording = Recording(bytes(Ring.total_bytes(MIN_CAPACITY_BYTES)), bytes(REGION_BYTES))
        ring = Ring.format(recording.map(0), guest_id="g", epoch=1, capacity_bytes=MIN_CAPACITY_BYTES)
        region = Region("data", 0, "logged", recording.map(1), REGION_BYTES)
        core = GuestCore(guest_id="g", name="g", epoch=1, ring=ring, regions=[region], now_ns=lambda: 0)
        stores = 0

        def interrupt(at: int = at) -> None:
            nonlocal stores
            stores += 1
            if stores == at:
                raise Interrupt

        recording.before_store = interrupt
        try:
            with core.transaction() as tx:
                for place in range(3):
                    tx.store_u64(region, 64 * place, 1)
        except Interrupt:
            assert tx.lsn == 0
        assert stores == 9 if at > 9 else stores >= at, "a commit of three stores makes nine"
        recording.before_store = None
        values = [region.load_u64(64 * place) for place in range(3)]
        assert values in ([0] * 3, [1] * 3)
        assert ring.applied == ring.tail == core.lsn
        with core.transaction() as tx:
            tx.store_u64(region, 64, 2)
        assert [region.load_u64(64 * place) for place in range(3)] == [values[0], 2, values[2]]
        assert ring.applied == ring.tail == tx.lsn


def test_a_commit_interrupted_twice_is_finished_by_the_next(memory: Memory) -> None:
    core = memory.start()
    data = core.region("data")
    real, interrupts = data.mapping.persist, 2

    def persist(offset: int, content: bytes | bytearray | memoryview) -> None:
        nonlocal interrupts
        if offset == 64 and interrupts:
            interrupts -= 1
            raise Interrupt
        real(offset, content)

    data.mapping.persist = persist  # type: ignore[method-assign]
    with pytest.raises(Interrupt), core.transaction() as tx:
        tx.store_u64(data, 0, 1)
        tx.store_u64(data, 64, 1)
    assert memory.ring.applied < memory.ring.tail
    with core.transaction() as tx:
        tx.store_u64(data, 128, 2)
    assert [data.load_u64(at) for at in (0, 64, 128)] == [1, 1, 2]
    assert memory.ring.applied == memory.ring.tail == tx.lsn


# -- the lease


def test_a_commit_needs_a_lease(memory: Memory) -> None:
    core = memory.start()
    memory.ring.set_lease_deadline_ns(2000)
    memory.now_ns = 1999
    with core.transaction() as tx:
        tx.store(core.region("data"), 0, b"in time")
    memory.now_ns = 2000
    before = memory.log.load(0, memory.log.size_bytes)
    with pytest.raises(Fenced, match="lease of guest bank has run out"), core.transaction() as late:
        late.store(core.region("data"), 0, b"too late")
    assert memory.log.load(0, memory.log.size_bytes) == before
    assert core.region("data")[0:8] == b"in time\0"
    with pytest.raises(Fenced):
        Guest(core).wait_replicated(tx.lsn, timeout_s=1)
    memory.ring.set_lease_deadline_ns(3000)
    with core.transaction() as tx:
        tx.store(core.region("data"), 0, b"renewed")


def test_a_detached_core_writes_nothing(memory: Memory) -> None:
    core = memory.start()
    core.detach()
    with pytest.raises(Detached, match="forked child"), core.transaction() as tx:
        tx.store(core.region("data"), 0, b"x")
    with pytest.raises(Detached):
        core.replicated(0)
    assert memory.ring.tail == 0


# -- waiting


def commit_one(core: GuestCore) -> int:
    with core.transaction() as tx:
        tx.store(core.region("data"), 0, b"x")
    return tx.lsn


def test_no_copies_asked_for_is_satisfied(memory: Memory) -> None:
    core = memory.start()
    lsn = commit_one(core)
    assert core.replicated(lsn)
    assert not core.replicated(lsn + 8), "nothing is there yet"
    Guest(core).wait_replicated(lsn, timeout_s=0)


def test_copies_asked_for_but_none_there_are_never_satisfied(memory: Memory) -> None:
    core = memory.start()
    lsn = commit_one(core)
    memory.ring.set_copies(1)
    assert not core.replicated(lsn)
    memory.ring.set_destination(0, Destination(False, "not required", 2**40))
    assert not core.replicated(lsn)


def test_a_copy_that_cannot_be_reached_holds_back_waits_and_not_the_log(memory: Memory) -> None:
    core = memory.start()
    memory.ring.set_copies(1)
    memory.ring.set_destination(0, Destination(True, "away", 0, active=False))
    for _ in range(100):
        with core.transaction() as tx:
            tx.store(core.region("data"), 0, bytes(1000))
    assert memory.ring.freed > 0
    assert not core.replicated(tx.lsn)
    memory.ring.set_destination(1, Destination(False, "being built", tx.lsn))
    assert not core.replicated(tx.lsn)
    memory.ring.set_slot_state(1, active=True, required=True)
    assert not core.replicated(tx.lsn)
    memory.ring.set_slot_state(0, active=False, required=False)
    assert core.replicated(tx.lsn)


def test_every_required_copy_has_to_hold_it(memory: Memory) -> None:
    core = memory.start()
    lsn = commit_one(core)
    memory.ring.set_copies(2)
    memory.ring.set_destination(2, Destination(True, "a", lsn))
    memory.ring.set_destination(5, Destination(True, "b", lsn - 8))
    assert not core.replicated(lsn)
    memory.ring.set_durable(5, lsn)
    assert core.replicated(lsn)


def test_waiting_ends_by_a_copy_or_as_unknown(memory: Memory) -> None:
    me = Guest(memory.start())
    lsn = commit_one(me.core)
    memory.ring.set_copies(1)
    with pytest.raises(Timeout, match="it may be"):
        me.wait_replicated(lsn, timeout_s=0.01)
    memory.ring.set_destination(0, Destination(True, "a", 0))
    later = threading.Timer(0.02, memory.ring.set_durable, (0, lsn))
    later.start()
    me.wait_replicated(lsn, timeout_s=10)
    later.join()


@pytest.mark.parametrize("looks", [1, shell.LOOKS_AT_ONCE, shell.LOOKS_AT_ONCE + 3, 40])
def test_a_wait_first_looks_then_sleeps_shortly_then_longer(
    memory: Memory, monkeypatch: pytest.MonkeyPatch, looks: int
) -> None:
    me = Guest(memory.start())
    lsn = commit_one(me.core)
    answers = iter([False] * looks + [True])
    slept: list[float] = []
    monkeypatch.setattr(me.core, "replicated", lambda _: next(answers))
    monkeypatch.setattr(shell.time, "sleep", slept.append)
    me.wait_replicated(lsn, timeout_s=10)
    short = min(max(0, looks - shell.LOOKS_AT_ONCE), shell.SHORT_POLLS)
    long = max(0, looks - shell.LOOKS_AT_ONCE - shell.SHORT_POLLS)
    assert slept == [shell.SHORT_POLL_S] * short + [shell.POLL_S] * long


@pytest.mark.parametrize("loop", [False, True])
async def test_a_wait_ends_with_the_lease(memory: Memory, loop: bool) -> None:
    core = memory.start()
    lsn = commit_one(core)
    memory.ring.set_copies(1)
    memory.ring.set_lease_deadline_ns(2000)
    looks = 0

    def now_ns() -> int:
        nonlocal looks
        looks += 1
        return 1000 if looks < 5 else 2000

    core._now_ns = now_ns
    with pytest.raises(Fenced):
        if loop:
            await AsyncGuest(core).wait_replicated(lsn, timeout_s=10)
        else:
            Guest(core).wait_replicated(lsn, timeout_s=10)
    assert looks == 5


async def test_waiting_on_a_loop(memory: Memory) -> None:
    me = AsyncGuest(memory.start())
    async with me.transaction() as tx:
        tx.store(me.region("data"), 0, b"x")
    memory.ring.set_copies(1)
    with pytest.raises(Timeout, match="it may be"):
        await me.wait_replicated(tx.lsn, timeout_s=0.01)
    memory.ring.set_destination(0, Destination(True, "a", 0))
    asyncio.get_running_loop().call_later(0.02, memory.ring.set_durable, 0, tx.lsn)
    await me.wait_replicated(tx.lsn, timeout_s=10)


# -- a full log


def test_a_full_log_is_an_error_of_the_core(memory: Memory) -> None:
    core = memory.start()
    memory.ring.set_destination(0, Destination(True, "behind", 0))
    fill(core)
    before = memory.ring.tail
    assert before + 1000 + HEADER_BYTES > MIN_CAPACITY_BYTES
    memory.ring.set_durable(0, before)
    with core.transaction() as tx:
        tx.store(core.region("data"), 0, bytes(1000))
    assert tx.lsn > before


def test_the_blocking_form_waits_for_room(memory: Memory, monkeypatch: pytest.MonkeyPatch) -> None:
    me = Guest(memory.start())
    memory.ring.set_destination(0, Destination(True, "behind", 0))
    fill(me.core)
    before = memory.ring.tail
    later = threading.Timer(0.02, memory.ring.set_durable, (0, before))
    later.start()
    with me.transaction() as tx:
        tx.store(me.region("data"), 0, bytes(1000))
    later.join()
    assert tx.lsn > before
    fill(me.core)
    monkeypatch.setattr(shell, "ROOM_WAIT_S", 0.01)
    with pytest.raises(LogFull), me.transaction() as tx:
        tx.store(me.region("data"), 0, bytes(1000))


async def test_the_form_for_loops_waits_for_room(memory: Memory, monkeypatch: pytest.MonkeyPatch) -> None:
    me = AsyncGuest(memory.start())
    memory.ring.set_destination(0, Destination(True, "behind", 0))
    fill(me.core)
    before = memory.ring.tail
    asyncio.get_running_loop().call_later(0.02, memory.ring.set_durable, 0, before)
    async with me.transaction() as tx:
        tx.store(me.region("data"), 0, bytes(1000))
    assert tx.lsn > before
    fill(me.core)
    with pytest.raises(LogFull), me.transaction() as tx:
        tx.store(me.region("data"), 0, bytes(1000))
    monkeypatch.setattr(aio, "ROOM_WAIT_S", 0.01)
    with pytest.raises(LogFull):
        async with me.transaction() as tx:
            tx.store(me.region("data"), 0, bytes(1000))
    with pytest.raises(KeyError):
        async with me.transaction() as tx:
            tx.store(me.region("data"), 0, b"discarded")
            raise KeyError
