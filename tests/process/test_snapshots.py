"""Snapshots of guests that write all the time, on real clusters whose hosts are killed: each is one instant, for ever.

The guest stores the numbers 1, 2, 3, ... to places that follow from the number: number n is first stored to a mapped
region, plainly, and then committed to a logged one together with the LSN behind transaction n - 1 (0
after a start). So what a region
has to hold when it holds number n at the latest is known, and what of both there is at one instant, too.
"""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import json
import os
import random
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import NamedTuple, TypeVar

import pytest

from everram.actors.nvm_device.storage import HEADER_BYTES, TRAILERS_BYTES
from everram.runtime.client import Cluster, Host
from everram.runtime.contracts import common_pb2 as pb
from everram.runtime.contracts import nvm_device_pb2 as nvm
from everram.runtime.errors import DataLoss, DeadlineExceeded, EverramError, NotFound, Unavailable
from everram.runtime.memory.contract import PAGE_BYTES
from tests.user import PATIENCE_S, User, user_in

PAGES = 128
REGION_BYTES = PAGES * 4096
WORDS_PER_PAGE = 8
SLOTS = PAGES * WORDS_PER_PAGE
STEP = 1237
"""Number n goes to slot n * STEP % SLOTS: neighbours in time lie far apart. Odd, so that it reaches all slots."""
HISTORY_AT = REGION_BYTES
HISTORY = 1 << 14
"""So many LSNs are kept in the logged region behind the slots."""
SNAPSHOTS = 20
SEED = 5

pytestmark = [pytest.mark.process, pytest.mark.needs("userfaultfd"), pytest.mark.timeout(120)]

T = TypeVar("T")

GUEST = f"""
from everram.runtime import guest

me = guest.attach()
plain, logged = me.region("plain").view.cast("Q"), me.region("logged")

def at(n):
    slot = n * {STEP} % {SLOTS}
    return slot // {WORDS_PER_PAGE} * 4096 + slot % {WORDS_PER_PAGE} * 512

n, lsn = logged.load_u64(8), 0
print("begins after", n, flush=True)
while True:
    n += 1
    plain[at(n) // 8] = n
    with me.transaction() as tx:
        tx.store_u64(logged, at(n), n)
        tx.store_u64(logged, 8, n)
        tx.store_u64(logged, {HISTORY_AT} + 8 * ((n - 1) % {HISTORY}), lsn)
    lsn = tx.lsn
"""

SCRIBBLER = """
import random, sys
from everram.runtime import guest

words = guest.attach().region("plain").view.cast("Q")
dice = random.Random(1)
print("begins", flush=True)
while True:
    words[dice.randrange(len(words))] += 1
"""

IDLE = """
import time
from everram.runtime import guest

me = guest.attach()
kept = me.region("kept")
for at in range(0, len(kept), 4096):
    with me.transaction() as tx:
        tx.store(kept, at, b"x" * 4096)
print("full", flush=True)
while True:
    time.sleep(1000)
"""


class Everram(User):
    """With one cluster of one host."""

    async def begin(self, program: str, *regions: str) -> None:
        arguments = [word for region in regions for word in ("--region", region)]
        self.run("run", "-d", "--name", "writer", *arguments, "--", "python", "-c", program)
        await until(lambda: asyncio.to_thread(lambda: "begins" in self.run("logs", "writer")), "the guest writes")


@pytest.fixture
def everram(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Everram]:
    with user_in(tmp_path, Everram) as user:
        for name in ("XDG_RUNTIME_DIR", "EVERRAM_DIR"):
            monkeypatch.setenv(name, user.environment[name])
        yield user


async def until(condition: Callable[[], Awaitable[object]], what: str) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not await condition():  # noqa: ASYNC110 - of other processes
            await asyncio.sleep(0.02)


class Device:
    """The NVM device of the one host, as a patient client asks it."""

    def __init__(self, host: Host, guest_id: str) -> None:
        self.host = host
        self.guest_id = guest_id

    async def insist(self, act: Callable[[], Awaitable[T]]) -> T:
        """Ask again while the host is being restarted."""
        async with asyncio.timeout(PATIENCE_S):
            while True:
                try:
                    return await act()
                except (Unavailable, DeadlineExceeded):
                    await asyncio.sleep(0.02)

    def snapshot(self, region: str, name: str) -> nvm.SnapshotName:
        return nvm.SnapshotName(guest_id=self.guest_id, region=region, name=name)

    async def take(self, name: str, *regions: str) -> dict[str, nvm.SnapshotRecord]:
        named = [nvm.RegionName(guest_id=self.guest_id, region=region) for region in regions]
        request = nvm.SnapshotRequest(regions=named, name=name)
        taken = await self.host.nvm_device.snapshot(request, timeout_s=PATIENCE_S)
        return {record.region: record for record in taken.snapshots}

    async def read(self, region: str, name: str, size_bytes: int) -> bytes:
        pieces = []
        for offset in range(0, size_bytes, 1 << 20):
            length = min(1 << 20, size_bytes - offset)
            request = nvm.ReadSnapshotRequest(snapshot=self.snapshot(region, name), offset=offset, length=length)
            pieces.append((await self.host.nvm_device.read_snapshot(request, timeout_s=PATIENCE_S)).data)
        return b"".join(pieces)

    async def hashes(self, names: dict[tuple[str, str], int]) -> dict[tuple[str, str], str]:
        """(region, name) -> SHA-256 of all that each holds; `names` says how many bytes that are."""
        found = {}
        for (region, name), size_bytes in names.items():
            content = await self.insist(lambda r=region, n=name, s=size_bytes: self.read(r, n, s))  # type: ignore[misc]
            found[region, name] = hashlib.sha256(content).hexdigest()
        return found

    async def status(self) -> nvm.NvmStatus:
        return await self.insist(lambda: self.host.nvm_device.status(pb.Empty()))

    async def findings(self) -> list[str]:
        asked = await self.insist(lambda: self.host.nvm_device.check(pb.Empty(), timeout_s=PATIENCE_S))
        return list(asked.findings)

    async def kill_host_in(self, act: Callable[[], Awaitable[object]], seconds: float) -> bool:
        """Kill the host so long after it was asked; whether it had answered before."""
        pid = (await self.insist(lambda: self.host.host.status(pb.Empty()))).pid
        asking = asyncio.ensure_future(act())
        await asyncio.wait([asking], timeout=seconds)
        os.kill(pid, signal.SIGKILL)
        try:
            await asking
        except (Unavailable, DeadlineExceeded):
            return False
        return True

    async def is_usable(self) -> bool:
        """Whether no region of the guest is being reverted."""
        asked = nvm.RegionFilter(guest_id=self.guest_id)
        return not any(
            one.reverting for one in (await self.insist(lambda: self.host.nvm_device.list_regions(asked))).regions
        )


@asynccontextmanager
async def device() -> AsyncIterator[Device]:
    async with await Cluster.connect() as cluster:
        host, guest = await cluster.find_guest("writer")
        yield Device(host, guest.guest_id)


# -- what a region has to hold ----------------------------------------------------------------------------------------


def expected(last: int) -> dict[int, int]:
    """Offset -> number, of every slot, when `last` was the last number."""
    inverse = pow(STEP, -1, SLOTS)
    found = {}
    for slot in range(SLOTS):
        number = last - (last - slot * inverse) % SLOTS
        found[slot // WORDS_PER_PAGE * 4096 + slot % WORDS_PER_PAGE * 512] = max(number, 0)
    return found


class Instant(NamedTuple):
    last: int
    """The last number of the region."""
    lsn: int
    """Of a logged region: at which its snapshot was taken."""
    history: dict[int, int]
    """Number -> LSN behind its transaction."""


def seen_plain(content: bytes) -> int:
    """The last number in a mapped region. Its stores are those of a prefix, each once, and nothing else is there."""
    words = memoryview(content).cast("Q")
    last = max(words)
    wanted = expected(last)
    assert {at: words[at // 8] for at in wanted} == wanted
    assert sum(word != 0 for word in words) == sum(number != 0 for number in wanted.values())
    return last


def seen_logged(content: bytes, record: nvm.SnapshotRecord) -> Instant:
    words = memoryview(content).cast("Q")
    last = words[1]
    wanted = expected(last)
    assert {at: words[at // 8] for at in wanted} == wanted
    first = max(1, last - HISTORY + 1)
    history = {number: words[HISTORY_AT // 8 + number % HISTORY] for number in range(first, last)}
    return Instant(last, record.lsn, history)


def check_instants(instants: list[Instant]) -> None:
    """Each holds exactly the transactions before its LSN: a later one knows where they ended."""
    for before, after in itertools.pairwise(instants):
        if before.last in after.history and before.last + 1 in after.history:
            assert after.history[before.last] <= before.lsn < after.history[before.last + 1]
    known = sum(before.last in after.history for before, after in itertools.pairwise(instants))
    assert known >= len(instants) // 2, "the guest has forgotten too much to say"


# -- tests ------------------------------------------------------------------------------------------------------------


async def test_snapshots_of_a_writing_guest_are_instants_whatever_happens_afterwards(everram: Everram) -> None:
    dice = random.Random(SEED)
    everram.run("up", "--hosts", "1", "--memory", "512MiB", "--nvm", "256MiB", "-d")
    logged_bytes = REGION_BYTES + 8 * HISTORY
    await everram.begin(GUEST, f"plain={REGION_BYTES}B,mapped", f"logged={logged_bytes}B")
    sizes: dict[tuple[str, str], int] = {}
    instants: list[Instant] = []

    async def take(names: list[str]) -> None:
        async with device() as asked:
            for name in names:
                taken = await asked.take(name, "plain", "logged")
                sizes["plain", name], sizes["logged", name] = REGION_BYTES, logged_bytes
                seen = seen_logged(await asked.read("logged", name, logged_bytes), taken["logged"])
                last = seen_plain(await asked.read("plain", name, REGION_BYTES))
                assert last - seen.last in (0, 1), "both regions are of one instant"
                instants.append(seen)

    names = [f"s{number:02}" for number in range(SNAPSHOTS)]
    await take(names[: SNAPSHOTS // 2])
    check_instants(instants)
    async with device() as asked:
        before = await asked.hashes(sizes)
    everram.run("down")
    everram.run("up", "-d")
    async with device() as asked:
        await until(lambda: running(asked), "the guest runs again")
        assert await asked.hashes(sizes) == before, "they outlive a machine that was switched off"
    instants.clear()
    async with device() as asked:
        for number in range(2):  # a host that dies as it takes one: told or not, its guest writes on
            name = f"cut{number}"
            sizes |= {("plain", name): REGION_BYTES, ("logged", name): logged_bytes}
            if not await asked.kill_host_in(partial(asked.take, name, "plain", "logged"), dice.uniform(0, 0.02)):
                found = await asked.insist(lambda: asked.host.nvm_device.snapshots(nvm.SnapshotFilter()))
                regions = {record.region for record in found.snapshots if record.name == name}
                assert regions in (set(), {"plain", "logged"}), "of all regions or of none"
                if not regions:
                    del sizes["plain", name], sizes["logged", name]
    await take(names[SNAPSHOTS // 2 :])
    check_instants(instants)
    assert len({instant.last for instant in instants}) == len(instants), "the guest wrote all the time"

    async with device() as asked:
        taken = await asked.hashes(sizes)
        assert {name: taken[name] for name in before} == before
        everram.run("stop", "writer")
        purge = lambda: asked.host.nvm_device.purge(nvm.PurgeRequest(), timeout_s=PATIENCE_S)  # noqa: E731
        cut_off = [not await asked.kill_host_in(purge, dice.uniform(0.001, 0.03)) for _ in range(3)]
        assert any(cut_off)
        assert await asked.hashes(sizes) == taken, "half of it on storage, and read through all the same"
        await asked.insist(purge)
        status = await asked.status()
        assert (status.store_bytes, status.storage_bytes > 0) == (0, True)
        assert await asked.hashes(sizes) == taken
        assert not await asked.findings()

        target = dice.choice(names)
        revert = lambda: asked.host.nvm_device.revert(asked.snapshot("plain", target), timeout_s=PATIENCE_S)  # noqa: E731
        await asked.kill_host_in(revert, dice.uniform(0.01, 0.1))
        await until(asked.is_usable, "a reversion that was cut off ends by itself")
        everram.run("region", "revert", f"plain@{target}")
        await asked.insist(lambda: asked.take("reverted", "plain"))
        sizes["plain", "reverted"] = REGION_BYTES
        assert await asked.hashes(sizes) == taken | {("plain", "reverted"): taken["plain", target]}
        assert not await asked.findings()
        everram.run("start", "writer")

        left = list(sizes)
        dice.shuffle(left)
        while left:
            going = [left.pop() for _ in range(min(len(left), dice.randrange(3, 9)))]
            named = nvm.SnapshotNames(snapshots=[asked.snapshot(region, name) for region, name in going])
            remove = lambda n=named: asked.host.nvm_device.remove_snapshots(n, timeout_s=PATIENCE_S)  # noqa: E731
            if dice.random() < 0.3:
                await asked.kill_host_in(remove, dice.uniform(0, 0.03))
            try:
                await asked.insist(remove)
            except NotFound:
                await remove_one_by_one(asked, named)
            for key in going:
                del sizes[key]
            if left:
                assert (await asked.hashes({left[0]: sizes[left[0]]}))[left[0]] == taken.get(
                    left[0], taken["plain", target]
                )
        assert not await asked.findings()

        async def all_returned() -> bool:
            status = await asked.status()
            return (status.snapshots, status.store_bytes, status.storage_bytes) == (0, 0, 0)

        await until(all_returned, "all space is returned")
        assert not await asked.findings()


async def remove_one_by_one(asked: Device, named: nvm.SnapshotNames) -> None:
    """Some of them are gone: the host died in the midst of it."""
    for snapshot in named.snapshots:
        one = nvm.SnapshotNames(snapshots=[snapshot])
        try:
            await asked.insist(lambda o=one: asked.host.nvm_device.remove_snapshots(o))  # type: ignore[misc]
        except NotFound:
            pass


@pytest.mark.parametrize("without", ["", "userfaultfd"], ids=["traps", "saves"])
async def test_a_guest_whose_stores_nobody_traps_saves_what_snapshots_need_itself(
    everram: Everram, monkeypatch: pytest.MonkeyPatch, without: str
) -> None:
    """First without userfaultfd on the whole computer; then of a guest alone, on a computer that has it."""
    dice = random.Random(SEED)
    logged_bytes = REGION_BYTES + 8 * HISTORY
    if not without:
        everram.run("up", "--hosts", "1", "--memory", "512MiB", "--nvm", "256MiB", "-d")
    everram.environment["EVERRAM_WITHOUT"] = "userfaultfd"
    if without:
        everram.run("up", "--hosts", "1", "--memory", "512MiB", "--nvm", "256MiB", "-d")
        assert "not permitted" in everram.run("doctor")
    await everram.begin(GUEST, f"plain={REGION_BYTES}B,mapped", f"logged={logged_bytes}B")
    async with device() as asked:
        warning = json.loads(everram.run("status", "--json"))["hosts"][0]["nvm"]["warning"]
        status = await asked.status()
        told = "1 guest could not make a userfaultfd" in warning
        assert (told, status.untracked_guests) == (not without, int(not without))
        sizes: dict[tuple[str, str], int] = {}
        instants: list[Instant] = []
        for number in range(6):
            name = f"s{number}"
            taken = await asked.insist(lambda n=name: asked.take(n, "logged"))
            content = await asked.insist(lambda n=name: asked.read("logged", n, logged_bytes))
            instants.append(seen_logged(content, taken["logged"]))
            sizes["logged", name] = logged_bytes
            if number % 3 == 0:
                await asked.kill_host_in(lambda n=number: asked.take(f"cut{n}", "logged"), dice.uniform(0, 0.02))
                await asked.insist(asked.status)
            elif number % 3 == 1:
                begun = everram.run("logs", "writer").count("begins")
                everram.run("fault", "writer", "guest-kill")
                again = lambda b=begun: asyncio.to_thread(  # noqa: E731
                    lambda: everram.run("logs", "writer").count("begins") > b
                )
                await until(again, "the guest writes again")
        assert len({instant.last for instant in instants}) == len(instants), "the guest wrote all the time"
        hashes = await asked.hashes(sizes)
        everram.run("stop", "writer")
        await asked.insist(lambda: asked.host.nvm_device.purge(nvm.PurgeRequest(), timeout_s=PATIENCE_S))
        assert await asked.hashes(sizes) == hashes
        if without:
            await check_an_idle_guest_costs_nothing(everram, asked)
        everram.run("region", "revert", "logged@s2")
        taken = await asked.insist(lambda: asked.take("reverted", "logged"))
        content = await asked.read("logged", "reverted", logged_bytes)
        assert hashlib.sha256(content).hexdigest() == hashes["logged", "s2"]
        assert not await asked.findings()
        found = (await asked.host.nvm_device.snapshots(nvm.SnapshotFilter())).snapshots
        everram.run("region", "rm", *(f"logged@{record.name}" for record in found))
        assert not await asked.findings()
        status = await asked.status()
        assert (status.snapshots, status.store_bytes, status.storage_bytes) == (0, 0, 0)


async def check_an_idle_guest_costs_nothing(everram: Everram, asked: Device) -> None:
    """No block is copied for a snapshot of a logged region before its guest stores something."""
    everram.run("run", "-d", "--name", "idle", "--region", "kept=1MiB", "--", "python", "-c", IDLE)
    await until(lambda: asyncio.to_thread(lambda: "full" in everram.run("logs", "idle")), "its region is full")
    before = (await asked.status()).store_bytes
    for number in range(2):
        everram.run("region", "snapshot", "kept", "--name", f"k{number}")
    assert (await asked.status()).store_bytes == before
    everram.run("rm", "--regions", "--force", "idle")


async def running(asked: Device) -> bool:
    from everram.runtime.contracts.hypervisor_pb2 import GuestName

    guest = await asked.insist(lambda: asked.host.hypervisor.inspect(GuestName(guest="writer")))
    return guest.state == pb.RUNNING


async def test_a_full_device_makes_writers_wait_and_says_what_to_do(everram: Everram) -> None:
    everram.run(*("up", "--hosts", "1", "--memory", "96MiB", "--nvm", "24MiB", "--storage", "1MiB", "-d"))
    await everram.begin(SCRIBBLER, "plain=6MiB,mapped")
    async with device() as asked:
        number = 0

        async def is_stuck() -> bool:
            nonlocal number
            purging = await asked.host.nvm_device.control_purge(nvm.PurgeControl())
            if (await asked.status()).waiting_writers and "no place on storage is free" in purging.trouble:
                return True
            try:
                await asked.take(f"s{number}", "plain")
                number += 1
            except EverramError as error:
                assert "are free, too little: purge old blocks" in error.message
            await asyncio.sleep(0.1)
            return False

        await until(is_stuck, "the writer waits")
        warning = json.loads(everram.run("status", "--json"))["hosts"][0]["nvm"]["warning"]
        assert "wait until there is room" in warning
        assert "everram region rm REGION@SNAP" in warning
        assert warning in everram.run("status")
        assert await running(asked), "it is not frozen, it waits"
        assert not await asked.findings()
        content = await asked.read("plain", "s0", 6 << 20)
        everram.run("region", "rm", *(f"plain@s{one}" for one in range(1, number)))
        await until(lambda: is_content(asked), "the writer goes on, and nobody is warned any more")
        assert await asked.read("plain", "s0", 6 << 20) == content
        assert not await asked.findings()

        # -- what users get wrong
        assert "there is no snapshot 'nix' of this region (there is: s0)" in everram.refused(
            "region", "revert", "plain@nix"
        )
        assert "there is a snapshot 's0' of this region" in everram.refused(
            "region", "snapshot", "plain", "--name", "s0"
        )
        assert "writer runs: `everram stop writer` first" in everram.refused("region", "rm", "plain")
        assert "is no snapshot: write REGION@SNAPSHOT" in everram.refused("region", "export", "plain", "/dev/null")
        assert 'there is no region "nix"' in everram.refused("region", "snapshot", "nix")
        assert await running(asked)

        # -- a byte on the disk that is another one
        file = next(everram.dir.rglob("nvm/purged"))
        with file.open("r+b") as storage:
            slot = first_slot(file.read_bytes())
            storage.seek(slot + 100)
            byte = storage.read(1)
            storage.seek(slot + 100)
            storage.write(bytes([byte[0] ^ 1]))
        with pytest.raises(DataLoss, match="does not match its checksum"):
            await asked.read("plain", "s0", 6 << 20)
        assert "does not match its checksum" in everram.refused(
            "region", "export", "plain@s0", str(everram.dir / "out")
        )
        assert not (everram.dir / "out").exists()
        checked, out, err = everram.try_run("region", "check")
        assert checked == 1
        assert "does not match its checksum" in out, err
        everram.run("region", "rm", "plain@s0")
        assert not await asked.findings()
        everram.run("rm", "--force", "--regions", "writer")
        status = await asked.status()
        assert (status.snapshots, status.store_bytes, status.storage_bytes, status.warning) == (0, 0, 0, "")


async def is_content(asked: Device) -> bool:
    status = await asked.status()
    return not status.waiting_writers and not status.warning


def first_slot(content: bytes) -> int:
    """Offset of the first slot of a storage file that holds anything."""
    slots = range(HEADER_BYTES + TRAILERS_BYTES, len(content), PAGE_BYTES)
    return next(at for at in slots if any(content[at : at + PAGE_BYTES]))
