"""Log and regions after every crash: what was told is there, nothing is half-done, and order is kept.

A workload runs once on recorded memory; then every state that a crash could have left is recovered as the host and the
next incarnation would, and has to be exactly what some prefix of the workload's transactions makes of the regions,
at least as long as what had been told.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import pytest

from everram.runtime.guest.core import GuestCore
from everram.runtime.guest.dictionary import Dictionary
from everram.runtime.guest.records import Records
from everram.runtime.guest.region import Region
from everram.runtime.log.record import HEADER_BYTES, Record, padded
from everram.runtime.log.ring import MIN_CAPACITY_BYTES, Ring
from everram.runtime.log.writer import LogWriter
from everram.runtime.memory.contract import Mapping
from everram.runtime.simulation.entropy import Seeds
from everram.runtime.simulation.memory import CrashState, Recording, power_losses, process_crashes

GUEST_ID = "0123456789abcdef"
REGION_BYTES = 4096
LOG, FIRST, SECOND = 0, 1, 2
STATES_MAX = 200
"""Looked at for one moment of a power loss; a record of up to seven lines is enumerated completely, lines whole."""

Crashes = Callable[[Recording], Iterator[CrashState]]
Step = Callable[[GuestCore], object]
"""One transaction of a workload."""
Contents = tuple[bytes, ...]


def losses(recording: Recording) -> Iterator[CrashState]:
    return power_losses(recording, states_max=STATES_MAX, stream=Seeds(1).stream("power"))


CRASHES = pytest.mark.parametrize("crashes", [process_crashes, losses])


def new_memory() -> Recording:
    recording = Recording(bytes(Ring.total_bytes(MIN_CAPACITY_BYTES)), bytes(REGION_BYTES), bytes(REGION_BYTES))
    Ring.format(recording.map(LOG), guest_id=GUEST_ID, epoch=0, capacity_bytes=MIN_CAPACITY_BYTES)
    return recording


def incarnate(recording: Recording) -> GuestCore:
    """What the host does before a start, and the guest at its attach."""
    ring = Ring.open(recording.map(LOG))
    epoch = ring.epoch + 1
    ring.begin_epoch(epoch)
    return attach(recording, epoch)


def attach(recording: Recording, epoch: int) -> GuestCore:
    regions = [
        Region(name, number, "logged", recording.map(number + 1), REGION_BYTES)
        for number, name in enumerate(("first", "second"))
    ]
    return GuestCore(
        guest_id=GUEST_ID,
        name="test",
        epoch=epoch,
        ring=Ring.open(recording.map(LOG)),
        regions=regions,
        now_ns=lambda: 0,
    )


def regions_of(recording: Recording) -> Contents:
    return bytes(recording.contents[FIRST]), bytes(recording.contents[SECOND])


def perform(recording: Recording, core: GuestCore, steps: Sequence[Step]) -> list[Contents]:
    """Run the workload from here on recorded; what the regions hold before it and after each step."""
    recording.restart()
    contents = [regions_of(recording)]
    for number, step in enumerate(steps, 1):
        step(core)
        contents.append(regions_of(recording))
        recording.mark(number)
    return contents


def check(states: Iterator[CrashState], contents: list[Contents]) -> list[CrashState]:
    """Recover each; returns the different ones. `contents[n]` is what the first n transactions make of the regions."""
    different: dict[Contents, CrashState] = {}
    for state in states:
        told = len(state.marks)
        if state.memories not in different or len(different[state.memories].marks) < told:
            different[state.memories] = state
    for state in different.values():
        recovered = Recording(*state.memories)
        core = incarnate(recovered)
        told = len(state.marks)
        assert regions_of(recovered) in contents[told : told + 2]
        check_goes_on(recovered, core)
    return list(different.values())


def check_goes_on(recording: Recording, core: GuestCore) -> None:
    """A recovered guest commits as ever, and what it commits is recovered in its turn."""
    assert core.ring.applied == core.ring.tail == core.lsn
    before = regions_of(recording)
    step(SECOND, 8, b"afterwards")(core)
    after = regions_of(recording)
    # Take the stores back, as a crash just after the tail was published would have, and the position with them.
    recording.contents[FIRST][:], recording.contents[SECOND][:] = before
    core.ring.set_applied(core.ring.epoch_start)
    incarnate(recording)
    assert regions_of(recording) == after


def step(memory: int, offset: int, data: bytes) -> Step:
    def run(core: GuestCore) -> None:
        with core.transaction() as tx:
            tx.store(core.region("first" if memory == FIRST else "second"), offset, data)

    return run


def transfer(amount: int) -> Step:
    """Several stores, to both regions, that belong together."""

    def run(core: GuestCore) -> None:
        first, second = core.region("first"), core.region("second")
        with core.transaction() as tx:
            tx.store_u64(first, 64, tx.load_u64(first, 64) + amount)
            tx.store_u64(second, 1024, (tx.load_u64(second, 1024) - amount) % 2**64)
            tx.store(second, 60, bytes([amount]) * 9)

    return run


@CRASHES
def test_transactions(crashes: Crashes) -> None:
    recording = new_memory()
    core = incarnate(recording)
    steps = [step(FIRST, 3, b"one"), transfer(5), step(SECOND, 100, b"x" * 130), transfer(7), transfer(1)]
    contents = perform(recording, core, steps)
    assert len(set(contents)) == 6
    assert len(check(crashes(recording), contents)) > 50


@CRASHES
def test_dictionary(crashes: Crashes) -> None:
    recording = new_memory()
    core = incarnate(recording)
    held = Dictionary(core.transaction, core.region("first"))
    steps: list[Step] = [
        lambda _: held.set("a", 1),
        lambda _: held.set("b", "two" * 20),
        lambda _: held.set("a", "longer than before, so that it moves to another block"),
        lambda _: held.delete("b"),
        lambda _: held.set(b"c", b"takes up the block given back" * 2),
    ]
    contents = perform(recording, core, steps)
    for state in check(crashes(recording), contents):
        recovered = incarnate(Recording(*state.memories))
        found = Dictionary(recovered.transaction, recovered.region("first"))
        assert len(found) == len(dict(found.items())) <= 2


@CRASHES
def test_a_new_dictionary_is_whole_or_not_there(crashes: Crashes) -> None:
    recording = new_memory()
    core = incarnate(recording)
    contents = perform(recording, core, [lambda core: Dictionary(core.transaction, core.region("first"))])
    for state in check(crashes(recording), contents):
        recovered = incarnate(Recording(*state.memories))
        assert len(Dictionary(recovered.transaction, recovered.region("first"))) == 0


@CRASHES
def test_records(crashes: Crashes) -> None:
    recording = new_memory()
    core = incarnate(recording)
    held = Records(core.transaction, core.region("second"), "<q60s")

    def both(core: GuestCore) -> None:
        with core.transaction() as tx:
            held.set(0, (90, b"alice"), tx)
            held.set(3, (10, b"bob"), tx)

    steps: list[Step] = [lambda _: held.set(0, (100, b"alice")), both, lambda _: held.set(59, (-1, b"last"))]
    check(crashes(recording), perform(recording, core, steps))


@CRASHES
@pytest.mark.parametrize("left", [48, 56, 64, 120, 200, 8, 40, 2000])
def test_the_end_of_the_circle(crashes: Crashes, left: int) -> None:
    """With `left` bytes before it: a record that just fits, a pad, or a rest too short for a header."""
    recording = new_memory()
    core = incarnate(recording)
    fill(core, left)
    steps = [step(FIRST, 0, b"p" * 56), transfer(3), step(SECOND, 9, b"q")]
    check(crashes(recording), perform(recording, core, steps))


def fill(core: GuestCore, left: int) -> None:
    """Commit until there are `left` bytes to the circle's end, on the second lap."""
    ring, overhead = core.ring, 64
    target = 2 * MIN_CAPACITY_BYTES - left
    while (room := target - ring.tail) >= 8192:
        step(FIRST, 0, bytes(4096 - overhead))(core)
    if room > 4096:
        step(FIRST, 0, bytes(room // 2 // 8 * 8 - overhead))(core)
    step(FIRST, 0, bytes(target - ring.tail - overhead))(core)
    assert ring.tail == target


@CRASHES
def test_the_log_may_be_full_of_older_epochs(crashes: Crashes) -> None:
    """Whole records of earlier laps and epochs lie everywhere; none of them is taken for what comes next."""
    recording = new_memory()
    core = incarnate(recording)
    for number in range(700):
        transfer(number % 200)(core)
        if number % 50 == 0:
            core = incarnate(recording)
    check(crashes(recording), perform(recording, core, [transfer(1), transfer(2)]))


@CRASHES
def test_beginning_an_epoch_and_replaying(crashes: Crashes) -> None:
    """Crashes while recovering from a crash, each of which is recovered again."""
    recording = new_memory()
    core = incarnate(recording)
    contents = perform(recording, core, [transfer(5), transfer(9)])
    seen: set[Contents] = set()
    for state in check(crashes(recording), contents):
        again = Recording(*state.memories)
        incarnate(again)
        allowed = contents[len(state.marks) : len(state.marks) + 2]
        for second in crashes(again):
            if second.memories in seen:
                continue
            seen.add(second.memories)
            recovered = Recording(*second.memories)
            incarnate(recovered)
            assert regions_of(recovered) in allowed


@CRASHES
def test_a_recovered_prefix_stays(crashes: Crashes) -> None:
    """What the next incarnation has seen cannot be gone in the one after it."""
    recording = new_memory()
    core = incarnate(recording)
    contents = perform(recording, core, [transfer(5), transfer(9)])
    for state in check(crashes(recording), contents)[::7]:
        again = Recording(*state.memories)
        incarnate(again)
        seen = regions_of(again)
        again.restart()
        incarnate(again)
        for later in crashes(again):
            recovered = Recording(*later.memories)
            incarnate(recovered)
            assert regions_of(recovered) == seen


@CRASHES
def test_an_epoch_with_records_beyond_the_tail(crashes: Crashes) -> None:
    """A whole record that was never published is taken or left, once for all."""
    recording = new_memory()
    core = incarnate(recording)
    transfer(5)(core)
    before = regions_of(recording)
    tail = core.ring.tail
    transfer(9)(core)
    after = regions_of(recording)
    core.ring.set_applied(tail)
    core.ring.set_tail(tail)
    recording.contents[FIRST][:], recording.contents[SECOND][:] = before
    recording.restart()
    incarnate(recording)
    for state in crashes(recording):
        recovered = Recording(*state.memories)
        incarnate(recovered)
        assert regions_of(recovered) == after


@CRASHES
def test_a_ring_is_made_whole_or_not_at_all(crashes: Crashes) -> None:
    recording = Recording(bytes(Ring.total_bytes(MIN_CAPACITY_BYTES)))
    Ring.format(recording.map(LOG), guest_id=GUEST_ID, epoch=3, capacity_bytes=MIN_CAPACITY_BYTES)
    recording.mark("made")
    for state in crashes(recording):
        mapping = Recording(*state.memories).map(LOG)
        try:
            ring = Ring.open(mapping)
        except ValueError:
            assert not state.marks
        else:
            assert (ring.epoch, ring.tail, ring.guest_id) == (3, 0, GUEST_ID)


def test_the_checks_see_what_they_should() -> None:
    """Each step of a commit left out in turn is noticed: the enumeration and the oracle are not blind."""

    def told_before_drained(recording: Recording, core: GuestCore) -> None:
        core.ring.mapping.drain = lambda: None  # type: ignore[method-assign]

    def applied_unflushed(recording: Recording, core: GuestCore) -> None:
        for region in core.regions.values():
            region.mapping.flush = lambda offset, length: None  # type: ignore[method-assign]

    def record_unflushed(recording: Recording, core: GuestCore) -> None:
        mapping = core.ring.mapping
        flush = mapping.flush
        mapping.flush = lambda offset, length: flush(offset, length) if offset < 4096 else None  # type: ignore[method-assign]

    for sabotage in (told_before_drained, applied_unflushed, record_unflushed):
        recording = new_memory()
        core = incarnate(recording)
        sabotage(recording, core)
        contents = perform(recording, core, [transfer(5), transfer(9), transfer(7)])
        with pytest.raises((AssertionError, ValueError)):
            check(losses(recording), contents)


class TailBeforeRecord(LogWriter):
    """Wrong: the tail covers a record that is not there yet."""

    def append(self, record_type: int, flags: int, payload: bytes) -> int:
        self.ring.set_tail(self._tail + padded(HEADER_BYTES + len(payload)))
        return super().append(record_type, flags, payload)


class RegionsBeforeLog(LogWriter):
    """Wrong: stores reach the regions before the log has them."""

    regions: list[Mapping]

    def append(self, record_type: int, flags: int, payload: bytes) -> int:
        for store in Record(self._tail, self._epoch, record_type, flags, GUEST_ID, payload).stores():
            self.regions[store.region].persist(store.offset, store.data)
        return super().append(record_type, flags, payload)


class AppliedEarly(LogWriter):
    """Wrong: `applied` says that the stores are in the regions before they are."""

    def publish(self) -> None:
        super().publish()
        self.publish_applied()


@CRASHES
@pytest.mark.parametrize("wrong", [TailBeforeRecord, RegionsBeforeLog, AppliedEarly])
def test_wrong_writers_are_found(crashes: Crashes, wrong: type[LogWriter]) -> None:
    recording = new_memory()
    core = incarnate(recording)
    core._writer = writer = wrong(core.ring)
    if isinstance(writer, RegionsBeforeLog):
        writer.regions = [region.mapping for region in core.regions.values()]
    contents = perform(recording, core, [transfer(5), transfer(9), transfer(7)])
    with pytest.raises((AssertionError, ValueError)):
        check(crashes(recording), contents)
