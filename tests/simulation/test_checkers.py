"""Each checker sees what it is for, and is silent otherwise."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from everram.actors.chaos.checks import all_or_nothing, commit_order, converges, nothing_leaks, nothing_lost
from everram.actors.chaos.checks.answered import Answered
from everram.actors.chaos.checks.one_incarnation import OneIncarnation
from everram.actors.chaos.checks.reader_wakes import ReaderWakes
from everram.actors.chaos.checks.snapshots_exact import History, SnapshotsExact, Told
from everram.actors.chaos.checks.stays_frozen import StaysFrozen
from everram.actors.chaos.checks.under_lease import SLACK_NS, UnderLease
from everram.actors.chaos.journal import Found, Journal
from everram.runtime.contracts.nvm_device_pb2 import NvmStatus, SnapshotRecord
from everram.runtime.errors import Unavailable
from everram.runtime.simulation.world import World


@pytest.fixture
def world() -> Iterator[World]:
    world = World(1)
    yield world
    if not world.loop.is_closed():
        world.loop.abandon()


def journal_of(*amounts: int, open_last: bool = False) -> Journal:
    """Transfers of these amounts from account 0 to account 1; all committed, unless the last is open."""
    journal = Journal(2, 100)
    for amount in amounts:
        journal.begin(0, 1, amount).lsn = 8
    if open_last:
        journal.transfers[-1].lsn = 0
    return journal


@pytest.mark.parametrize(
    ("count", "balances", "lost", "torn", "disorder"),
    [
        (2, (70, 130), False, False, False),
        (3, (65, 135), False, False, False),
        (1, (90, 110), True, False, False),
        (3, (70, 135), False, True, True),
        (2, (65, 135), False, False, True),
        (4, (65, 135), False, False, True),
    ],
)
def test_what_a_ledger_holds(count: int, balances: tuple[int, int], lost: bool, torn: bool, disorder: bool) -> None:
    journal = journal_of(10, 20, 5, open_last=True)
    found = Found(count, balances)
    assert (nothing_lost.check(journal, found) is not None) == lost
    assert (all_or_nothing.check(journal, found) is not None) == torn
    assert (commit_order.check(journal, found) is not None) == disorder


def test_a_journal_is_settled_by_what_is_found() -> None:
    journal = journal_of(10, 20, 5, open_last=True)
    journal.settle(2)
    assert (len(journal.transfers), journal.committed) == (2, 2)
    assert journal.balances_after(2) == (70, 130)
    journal.begin(0, 1, 7)
    journal.settle(3)
    assert journal.committed == 3
    assert journal.balances_after(3) == (63, 137)


def test_two_incarnations_at_once(world: World) -> None:
    checker = OneIncarnation(world)
    checker.observe("h1", "started", "g", 1)
    checker.observe("h1", "stopped", "g", 1)
    checker.observe("h2", "started", "g", 2)
    assert not world.violations
    checker.observe("h1", "continued", "g", 1)
    assert "serves as" in world.violations[0].what


def test_an_epoch_that_comes_back(world: World) -> None:
    checker = OneIncarnation(world)
    checker.observe("h1", "started", "g", 2)
    checker.observe("h1", "ended", "g", 2)
    checker.observe("h1", "started", "g", 2)
    assert len(world.violations) == 1


def test_a_frozen_guest_that_runs(world: World) -> None:
    checker = StaysFrozen(world)
    checker.froze("g", 1)
    checker.thawing("g")
    checker.froze("g", 1)  # by somebody else, for the same reason: the thaw is still to come
    checker.observe("h1", "continued", "g", 1)
    checker.thawed("g")
    checker.froze("g", 1)
    checker.observe("h1", "ended", "g", 1)
    checker.committed("g", 2)
    assert not world.violations
    checker.froze("g", 2)
    checker.committed("g", 2)
    checker.observe("h1", "continued", "g", 2)
    assert len(world.violations) == 2


def test_a_commit_after_the_lease(world: World) -> None:
    deadline_ns = world.loop.now_ns - SLACK_NS
    checker = UnderLease(world, lambda host, guest_id: deadline_ns)
    checker.committed("h1", "g")
    assert not world.violations
    deadline_ns -= 1
    checker.committed("h1", "g")
    assert len(world.violations) == 1


@pytest.mark.parametrize(("verified", "late"), [(64, False), (56, True)])
def test_a_reader_that_does_not_wake(world: World, verified: int, late: bool) -> None:
    async def position() -> int:
        return verified

    checker = ReaderWakes(world, lambda: world, position)

    async def scenario() -> None:
        checker.committed(64)
        await asyncio.sleep(1)

    world.run(scenario())
    assert bool(world.violations) == late


@pytest.mark.parametrize(("takes_s", "late"), [(0.5, False), (2.0, True)])
def test_an_ask_without_an_end(world: World, takes_s: float, late: bool) -> None:
    async def ask() -> None:
        await asyncio.sleep(takes_s)
        raise Unavailable("gone", unknown=True)

    checker = Answered(world)

    async def scenario() -> None:
        assert await checker.watch("an ask", ask(), 1.0) is None

    world.run(scenario())
    assert checker.counts == {"unknown": 1}
    assert bool(world.violations) == late


def test_what_does_not_converge(world: World) -> None:
    began = world.loop.time()

    async def holds() -> bool:
        return world.loop.time() > began + 1

    async def never() -> bool:
        return False

    async def scenario() -> None:
        await converges.check(world, "it holds", 2.0, holds)
        assert not world.violations
        await converges.check(world, "it never holds", 2.0, never)

    world.run(scenario())
    assert [violation.property for violation in world.violations] == [converges.PROPERTY]


def state(count: int) -> Found:
    return Found(count, (-count, count))


@pytest.mark.parametrize(
    ("epoch", "lsn", "found", "wrong"),
    [
        (1, 0, state(0), False),  # nothing was committed
        (1, 150, state(1), False),
        (1, 150, state(2), True),  # that came later
        (1, 250, state(1), True),  # there was one more
        (1, 250, Found(2, (-2, 3)), True),
        (1, 300, state(3), False),  # committed, and its guest died before it was told
        (1, 300, state(4), True),
        (2, 400, state(2), False),  # what a copy went on from
        (2, 500, state(3), False),
        (2, 500, state(2), True),
    ],
)
def test_what_a_snapshot_holds(epoch: int, lsn: int, found: Found, wrong: bool) -> None:
    history = History()
    for known in ((1, 0, state(0)), (1, 100, state(1)), (1, 200, state(2)), (2, 0, state(2)), (2, 450, state(3))):
        history.note(*known)
    assert (history.wrong(epoch, lsn, found) is not None) == wrong


def test_a_snapshot_stays_what_it_is_until_it_is_removed(world: World) -> None:
    exact = SnapshotsExact(world, "g", None, stays=True)
    told = Told("m1", SnapshotRecord(region="r", name="s"))
    exact.read(told, b"x")
    exact.read(told, b"x")
    exact.missed(told, "m2")  # another memory
    assert not world.violations
    exact.read(told, b"y")
    exact.missed(told, "m1")
    assert len(world.violations) == 2
    exact.missed(Told("m1", told.record, removing=True), "m1")
    assert len(world.violations) == 2


@pytest.mark.parametrize(
    ("findings", "snapshots", "store_bytes", "leaks"),
    [([], 0, 0, False), ([], 1, 8, False), ([], 0, 8, True), (["one"], 1, 0, True)],
)
def test_what_snapshots_leave_behind(findings: list[str], snapshots: int, store_bytes: int, leaks: bool) -> None:
    wrong = nothing_leaks.check(findings, NvmStatus(snapshots=snapshots, store_bytes=store_bytes))
    assert (wrong is not None) == leaks
