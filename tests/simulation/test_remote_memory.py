"""Remote memory on a simulated cluster: owners that die, leaders that change in the middle of every operation, files
that are shortened and removed under those who have them open."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

import pytest

from everram.actors.chaos.checks import namespace_intact
from everram.actors.chaos.cluster import Cluster, announce
from everram.actors.chaos.file_client import FileClient
from everram.actors.remote_memory.owned import FILES_MAX
from everram.actors.remote_memory.refusals import errno_in
from everram.runtime.contracts import common_pb2 as pb
from everram.runtime.contracts import remote_memory_pb2 as rm
from everram.runtime.contracts.availability_contract import AvailabilityRef
from everram.runtime.contracts.power_monitor_contract import PowerMonitorRef
from everram.runtime.contracts.power_monitor_pb2 import SaveRequest
from everram.runtime.contracts.remote_memory_contract import MemoryAgentRef, RemoteMemoryRef
from everram.runtime.coordination.api import Delete, Put, Range, prefix
from everram.runtime.coordination.directory import HOSTS as HOSTS_ROOT
from everram.runtime.coordination.directory import encode, guest_key
from everram.runtime.coordination.file_directory import INODES, dropped_prefix
from everram.runtime.coordination.file_directory import ROOT as FILES_ROOT
from everram.runtime.errors import EverramError, NotFound, Unavailable
from everram.runtime.node import Node
from everram.runtime.simulation.entropy import Stream
from everram.runtime.simulation.world import World

T = TypeVar("T")
ASK_S = 30.0
BOUND_S = 30.0
HOSTS = ("h1", "h2", "h3")


class Client(FileClient):
    """A program beside one host, as patient as a person."""

    def __init__(self, rig: Rig, host: str) -> None:
        super().__init__(rig.ask, host, ASK_S)


class Rig:
    def __init__(self, seed: int) -> None:
        self.world = World(seed)
        self.cluster = Cluster(self.world, hosts=3, programs={})
        self.directory = self.world.coordination.client("test")

    async def ask(self, host: str, act: Callable[[Node], Awaitable[T]]) -> T:
        """Patiently: the host may have just died, or not be there yet."""
        until_s = self.world.now_s + BOUND_S
        while True:
            try:
                return await self.cluster.ask("test", host, act, ASK_S)
            except Unavailable as error:
                if error.unknown or self.world.now_s > until_s:
                    raise
            await asyncio.sleep(0.05)

    async def leader(self) -> str:
        while True:
            for host in HOSTS:
                if self.cluster.node(host) is not None:
                    try:
                        status = await self.cluster.ask(
                            "test", host, lambda node: node.ref(AvailabilityRef).status(pb.Empty()), 1.0
                        )
                    except EverramError:
                        continue
                    if status.held and status.leader == host:
                        return host
            await asyncio.sleep(0.05)

    async def complete(self) -> bool:
        return len((await self.directory.range(prefix(HOSTS_ROOT)))[1]) == len(HOSTS)

    async def manager_messages(self) -> int:
        count = 0
        for host in HOSTS:
            status = await self.ask(host, lambda node: node.ref(RemoteMemoryRef).status(pb.Empty()))
            count += status.messages
        return count

    async def until(self, met: Callable[[], Awaitable[bool]], what: str) -> None:
        until_s = self.world.now_s + BOUND_S
        while not await met():
            assert self.world.now_s < until_s, f"not in {BOUND_S:g} s: {what}"
            await asyncio.sleep(0.05)

    def memories(self, host: str) -> list[str]:
        names = self.cluster.machines[host].objects.by_name
        return [name for name in sorted(names) if name.startswith(("file.", "vfile."))]


def simulate(body: Callable[[Rig], Coroutine[Any, Any, None]], seed: int = 1) -> None:
    rig = Rig(seed)
    failed: list[BaseException] = []

    async def scenario() -> None:
        rig.cluster.start()
        await announce(rig.world)
        try:
            await rig.until(rig.complete, "every host is in the directory")
            async with asyncio.timeout(600):
                await body(rig)
        except BaseException as error:
            failed.append(error)

    rig.world.run(scenario())
    if failed:
        raise failed[0]
    assert not rig.world.violations, rig.world.violations


async def refused(work: Awaitable[object]) -> int | None:
    with pytest.raises(EverramError) as caught:
        await work
    return errno_in(caught.value)


def test_after_open_nobody_is_asked_anything() -> None:
    async def body(rig: Rig) -> None:
        one, two = Client(rig, "h1"), Client(rig, "h2")
        file = await one.make("a", b"x" * 10_000, host="h3")
        await one.close(file)
        mine, other = await one.open("a", write=True), await two.open("a", write=True)
        owner = Client(rig, "h3")
        before = await rig.manager_messages(), (await owner.status()).owner_messages
        for number in range(20):
            await one.write(mine, number * 8, number.to_bytes(8, "little"))
            assert await two.read(other, number * 8, 8) == number.to_bytes(8, "little")
            await two.write(other, 9_000, number.to_bytes(2, "little"))
            assert await one.read(mine, 9_000, 2) == number.to_bytes(2, "little")
        assert (await rig.manager_messages(), (await owner.status()).owner_messages) == before
        assert (await one.status()).one_sided_writes >= 20
        assert len(await two.read(other, 9_999)) == 1
        assert await two.read(other, 10_000) == b""

    simulate(body)


def test_files_of_this_host_and_of_others_are_the_same_to_a_program() -> None:
    async def body(rig: Rig) -> None:
        client = Client(rig, "h1")
        for host in HOSTS:
            file = await client.make(host, b"abc", host=host)
            await client.write(file, 10, b"z")
            assert await client.read(file) == b"abc" + bytes(7) + b"z"
            await client.truncate(file, 2)
            await client.truncate(file, 5)
            assert await client.read(file) == b"ab\0\0\0", "what was cut off does not come back"
            await client.close(file)
            node = await client.stat(host)
            assert (node.host, node.size_bytes, node.lost) == (host, 5, "")
            appender = await client.open(host, write=True, append=True)
            assert (await client.write(appender, 0, b"end")).offset == 5
            assert await refused(client.open("nothing")) == errno.ENOENT
            assert await refused(client.open(host, create=True, exclusive=True)) == errno.EEXIST
            reader = await client.open(host)
            assert await refused(client.write(reader, 0, b"x")) == errno.EBADF
        assert await client.names() == list(HOSTS)
        assert await refused(client.open("h1/x")) == errno.ENOTDIR

    simulate(body)


def test_appends_of_several_hosts_never_overwrite_each_other() -> None:
    async def body(rig: Rig) -> None:
        clients = [Client(rig, host) for host in HOSTS]
        files = [await client.make("log", append=True, host="h2") for client in clients]

        async def append(client: Client, file: rm.OpenFile) -> None:
            for number in range(10):
                await client.write(file, 0, f"{client.host}:{number:02} ".encode())

        await asyncio.gather(*(append(client, file) for client, file in zip(clients, files, strict=True)))
        reader = await clients[0].open("log")
        words = (await clients[0].read(reader)).split()
        assert sorted(words) == sorted(f"{host}:{number:02}".encode() for host in HOSTS for number in range(10))

    simulate(body)


def test_shortening_gives_new_rkeys_and_removing_makes_holders_stale() -> None:
    async def body(rig: Rig) -> None:
        one, two = Client(rig, "h1"), Client(rig, "h2")
        file = await one.make("a", b"secret" * 100, host="h1")
        other = await two.open("a", write=True)
        await two.read(other)
        await one.truncate(file, 3)
        assert await two.read(other) == b"sec", "it learns of the new generation and size from the owner"
        await two.write(other, 3, b"ond")
        assert await one.read(file) == b"second"
        await two.remove("a")  # h2 has it open, and may go on
        assert await two.read(other) == b"second"
        assert await refused(one.open("a")) == errno.ENOENT
        await two.close(other)
        assert await refused(one.read(file)) == errno.ESTALE
        assert not rig.memories("h1")
        again = await one.make("a", b"other", host="h1")
        held = await two.open("a")
        await one.close(again)
        await one.remove("a")
        assert await refused(two.read(held)) == errno.ESTALE
        assert not rig.memories("h1")

    simulate(body)


def test_renaming_over_an_open_file_leaves_it_to_its_holder() -> None:
    async def body(rig: Rig) -> None:
        client = Client(rig, "h1")
        old = await client.make("a", b"old", host="h2")
        new = await client.make("b", b"new", host="h3")
        await client.rename("b", "a")
        assert await client.names() == ["a"]
        assert await client.read(old) == b"old"
        await client.close(old)
        assert await client.read(new) == b"new"
        assert not rig.memories("h2")

    simulate(body)


def test_the_death_of_an_owner_takes_its_files_and_nothing_else() -> None:
    async def body(rig: Rig) -> None:
        leader = await rig.leader()
        user, owner = [host for host in HOSTS if host != leader]
        client = Client(rig, user)
        await client.mkdir("d")
        lost = await client.make("d/lost", b"x" * 100, host=owner)
        kept = await client.make("d/kept", b"y" * 100, host=leader)
        await rig.cluster.lose(owner)
        assert await refused(client.read(lost)) == errno.ESTALE
        assert await refused(client.write(lost, 0, b"z")) == errno.ESTALE
        assert await refused(client.open("d/lost")) == errno.ESTALE
        assert "ESTALE" in (await client.stat("d/lost")).lost
        assert await client.read(kept) == b"y" * 100
        assert await client.names("d") == ["kept", "lost"]
        await rig.cluster.raise_again(owner)
        await rig.until(lambda: _answers(rig, owner), "the owner is back, empty")
        assert await refused(client.read(lost)) == errno.ESTALE
        await client.remove("d/lost")
        assert await client.names("d") == ["kept"]

        async def nothing_left() -> bool:
            return not (await rig.directory.range(prefix(dropped_prefix(owner))))[1]

        await rig.until(nothing_left, "the owner has dropped what was removed")

    for seed in (1, 2):
        simulate(body, seed)


async def _answers(rig: Rig, host: str) -> bool:
    try:
        await rig.cluster.ask("test", host, lambda node: node.ref(MemoryAgentRef).status(pb.Empty()), 1.0)
    except EverramError:
        return False
    return True


def test_the_host_software_of_an_owner_may_die_and_an_open_file_goes_on() -> None:
    async def body(rig: Rig) -> None:
        client = Client(rig, "h1")
        file = await client.make("a", b"before", host="h2")
        rig.cluster.machines["h2"].kill_host()
        for number in range(50):
            await client.write(file, 0, number.to_bytes(6, "little"))
            assert await client.read(file) == number.to_bytes(6, "little")
            await asyncio.sleep(0.01)

    for seed in (1, 2):
        simulate(body, seed)


def test_an_owner_that_cannot_be_reached_is_a_timeout_and_a_healed_one_goes_on() -> None:
    async def body(rig: Rig) -> None:
        leader = await rig.leader()
        user, owner = [host for host in HOSTS if host != leader]
        client = Client(rig, user)
        file = await client.make("a", b"here", host=owner)
        rig.world.fabric.cut(user, owner)
        assert await refused(client.read(file)) == errno.ETIMEDOUT
        rig.world.fabric.heal()
        assert await client.read(file) == b"here"

    simulate(body)


OPERATIONS: dict[str, Callable[[Client], Awaitable[object]]] = {
    "mkdir": lambda client: client.mkdir("new"),
    "create": lambda client: client.make("new", b"!", host="h1"),
    "rename": lambda client: client.rename("old", "new"),
    "unlink": lambda client: client.remove("old"),
    "resolve": lambda client: client.stat("old"),
    "list": lambda client: client.names(),
}


@pytest.mark.parametrize("operation", OPERATIONS)
def test_the_leader_dies_in_the_middle_of_every_operation(operation: str) -> None:
    """Whenever that is, the operation happens once."""

    def at(delay_ms: float, seed: int) -> None:
        async def body(rig: Rig) -> None:
            leader = await rig.leader()
            client = Client(rig, next(host for host in HOSTS if host != leader))
            owner = next(host for host in HOSTS if host not in (leader, client.host))
            await client.close(await client.make("old", b"old", host=owner))
            acting = asyncio.ensure_future(
                OPERATIONS[operation](client) if operation != "create" else client.make("new", b"!", host=owner)
            )
            await asyncio.sleep(delay_ms / 1000)
            burial = rig.cluster.lose(leader)
            await acting
            await burial
            expected = {"rename": ["new"], "unlink": [], "resolve": ["old"], "list": ["old"]}
            assert await client.names() == expected.get(operation, ["new", "old"])
            await rig.until(lambda: _one_memory_a_file(rig, owner), "every file has its memory, and nothing else has")

        simulate(body, seed)

    delays_ms = (0.3, 1.5, 4) if operation in ("resolve", "list") else (0, 0.3, 0.8, 1.5, 2.5, 4, 6, 9)
    for seed, delay_ms in enumerate(delays_ms, start=1):
        at(delay_ms, seed)


async def _one_memory_a_file(rig: Rig, host: str) -> bool:
    _, inodes = await rig.directory.range(prefix(INODES))
    files = {pair.key.removeprefix(INODES).decode() for pair in inodes if f'"host":"{host}"'.encode() in pair.value}
    return files == {name.partition(".")[2] for name in rig.memories(host)}


def test_files_end_with_their_creators() -> None:
    async def body(rig: Rig) -> None:
        await rig.directory.put(Put(guest_key("g1"), encode({"name": "g"})))
        client, other = Client(rig, "h1"), Client(rig, "h2")
        await client.make("session", b"s", host="h2", creator="session")
        await client.make("guest", b"g", host="h2", creator="guest:g1")
        await client.make("for-ever", b"e", host="h2")
        assert await other.names() == ["for-ever", "guest", "session"]
        await client.end()

        async def left(names: list[str]) -> bool:
            return await other.names() == names

        await rig.until(lambda: left(["for-ever", "guest"]), "the session's file has ended")
        rig.cluster.machines["h1"].kill_host()
        await asyncio.sleep(1)
        await rig.directory.txn((), (Delete(guest_key("g1")),))
        await rig.until(lambda: left(["for-ever"]), "the guest's file has ended")
        await rig.until(lambda: _one_memory_a_file(rig, "h2"), "and their memory with them")
        crashed = Client(rig, "h3")
        await crashed.make("session", b"s", host="h1", creator="session")
        rig.cluster.machines["h3"].kill_host()
        await rig.until(lambda: left(["for-ever"]), "sessions end with their host")

    simulate(body)


def test_a_session_outlives_coordination() -> None:
    async def body(rig: Rig) -> None:
        client = Client(rig, "h1")
        file = await client.make("a", b"s", host="h2", creator="session")
        for _ in range(3):
            rig.world.kill_coordination()
            await asyncio.sleep(2)
        assert await client.read(file) == b"s"
        assert await client.names() == ["a"]
        await client.remove("a")
        await client.close(file)
        await rig.until(lambda: _one_memory_a_file(rig, "h2"), "what is dropped is still followed")

    simulate(body)


def test_a_file_of_a_guest_that_is_gone_goes_at_once() -> None:
    async def body(rig: Rig) -> None:
        client = Client(rig, "h1")
        await client.make("a", host="h2", creator="guest:nobody")

        async def gone() -> bool:
            return not await client.names()

        await rig.until(gone, "the file has followed its creator")
        assert await refused(client.make("b", creator="somebody")) == errno.EINVAL

    simulate(body)


def test_memory_that_was_never_named_is_given_back_by_the_next_host() -> None:
    async def body(rig: Rig) -> None:
        await Client(rig, "h1").make("a", host="h2")
        memory_id = rig.cluster.memory_ids["h2"]
        key = rm.FileKey(id="0123456789abcdef", memory_id=memory_id)
        await rig.ask("h2", lambda node: node.ref(MemoryAgentRef).make(key))
        assert len(rig.memories("h2")) == 2
        rig.cluster.machines["h2"].kill_host()
        await rig.until(lambda: _one_memory_a_file(rig, "h2"), "only what has a name is left")
        assert len(rig.memories("h2")) == 1

    simulate(body)


def test_a_host_keeps_so_many_files() -> None:
    async def body(rig: Rig) -> None:
        memory_id = rig.cluster.memory_ids["h2"]
        for number in range(FILES_MAX):
            key = rm.FileKey(id=f"{number:016x}", memory_id=memory_id)
            await rig.ask("h2", lambda node, key=key: node.ref(MemoryAgentRef).make(key))  # type: ignore[misc]
        client = Client(rig, "h1")
        assert await refused(client.make("a", host="h2")) == errno.ENOSPC
        assert await client.names() == []

    simulate(body)


def test_persistent_files_are_saved_and_volatile_ones_are_not() -> None:
    async def body(rig: Rig) -> None:
        leader = await rig.leader()
        user, owner = [host for host in HOSTS if host != leader]
        client = Client(rig, user)
        kept = await client.make("kept", b"k" * 5_001, host=owner, persistent=True)
        lost = await client.make("lost", b"l", host=owner)
        empty = await client.make("empty", host=owner, persistent=True)
        await rig.ask(owner, lambda node: node.ref(PowerMonitorRef).save(SaveRequest(cause="down"), timeout_s=ASK_S))
        rig.cluster.power_off(owner)
        await asyncio.sleep(3)
        rig.cluster.power_on(owner)
        await rig.until(lambda: _answers(rig, owner), "the owner is back")
        assert await client.read(kept) == b"k" * 5_001
        assert await client.read(empty) == b""
        await client.write(kept, 5_001, b"more")
        assert await refused(client.read(lost)) == errno.ESTALE
        assert "ESTALE" in (await client.stat("lost")).lost

    simulate(body)


def test_while_memory_is_saved_nothing_is_answered_for_that_would_not_be_in_the_image() -> None:
    async def body(rig: Rig) -> None:
        local, remote = Client(rig, "h2"), Client(rig, "h1")
        mine = await local.make("a", b"before", host="h2", persistent=True)
        theirs = await remote.open("a", write=True)
        await remote.write(theirs, 0, b"BEFORE")

        async def quiesce(on: bool) -> None:
            await rig.ask("h2", lambda node: node.ref(MemoryAgentRef).quiesce(rm.QuiesceFiles(on=on)))

        await quiesce(True)
        for client, file in ((local, mine), (remote, theirs)):
            assert await refused(client.write(file, 0, b"after!")) in (None, errno.ETIMEDOUT)
        await quiesce(False)
        assert await local.read(mine) == await remote.read(theirs) == b"BEFORE"
        await remote.write(theirs, 0, b"again ")
        assert await local.read(mine) == b"again "

    simulate(body)


def test_a_host_has_a_limit() -> None:
    async def body(rig: Rig) -> None:
        client = Client(rig, "h1")
        file = await client.make("a", host="h2")
        await client.truncate(file, 16 << 20)
        assert await refused(client.truncate(file, (16 << 20) + 1)) == errno.ENOSPC
        local = await client.make("b", host="h1")
        assert await refused(client.write(local, 16 << 20, b"x")) == errno.ENOSPC
        assert await client.read(local) == b""

    simulate(body)


class Writer:
    """One program that makes, writes, reads, shortens, renames and removes files of its own, each full of its tag."""

    def __init__(self, rig: Rig, number: int, stream: Stream) -> None:
        self.rig, self.number, self.stream = rig, number, stream
        self.client = Client(rig, HOSTS[number % 3])
        self.made = 0
        self.reads = self.refusals = 0

    async def run(self, until_s: float) -> None:
        while self.rig.world.now_s < until_s:
            try:
                await self._once()
            except EverramError:
                self.refusals += 1  # whatever broke, the next one begins anew
                self.client.session = ""
            await asyncio.sleep(self.stream.uniform(0, 0.05))

    async def _once(self) -> None:
        client, draw = self.client, self.stream
        self.made += 1
        tag = (self.number << 32 | self.made).to_bytes(8, "little")
        path = f"w{self.number}-{self.made}"
        creator = draw.choice(["", "session"])
        file = await client.make(path, host=draw.choice(HOSTS), creator=creator, persistent=draw.random() < 0.5)
        for _ in range(draw.randrange(1, 8)):
            await client.write(file, 8 * draw.randrange(200), tag * draw.randrange(1, 100))
            if draw.random() < 0.3:
                await client.truncate(file, 8 * draw.randrange(300))
            data = await client.read(file, 0, 4096)
            self.reads += 1
            words = {data[at : at + 8] for at in range(0, len(data), 8)}
            assert words <= {tag, bytes(8)}, f"{path} has bytes that nobody wrote to it"
        if draw.random() < 0.5:
            await client.rename(path, f"{path}-renamed")
            path += "-renamed"
        if draw.random() < 0.5:
            await client.close(file)
        if draw.random() < 0.6:
            await client.remove(path)


async def break_things(rig: Rig, draw: Stream, until_s: float) -> None:
    while rig.world.now_s < until_s:
        await asyncio.sleep(draw.uniform(0.2, 2))
        host = draw.choice(HOSTS)
        match draw.randrange(6):
            case 0 | 1:
                rig.cluster.machines[host].kill_host()
            case 2:
                rig.world.kill_coordination()
            case 3:
                rig.world.fabric.cut(host, draw.choice(HOSTS))
                await asyncio.sleep(draw.uniform(0.1, 3))
                rig.world.fabric.heal()
            case 4:
                rig.cluster.machines[host].hang_host()
            case _:
                await rig.cluster.lose(host)
                await asyncio.sleep(draw.uniform(0, 4))
                await rig.cluster.raise_again(host)
    rig.world.fabric.heal()


def test_files_keep_to_themselves_whatever_breaks() -> None:
    """No read ever finds another file's bytes, and in the end memory and namespace are one: four writers for a while,
    where a seed of the scenario "files" has three for a moment."""

    async def body(rig: Rig) -> None:
        draw = rig.world.stream("test")
        until_s = rig.world.now_s + 12
        writers = [Writer(rig, number, rig.world.stream(f"writer/{number}")) for number in range(4)]
        async with asyncio.TaskGroup() as tasks:
            for writer in writers:
                tasks.create_task(writer.run(until_s))
            tasks.create_task(break_things(rig, draw, until_s))
        assert sum(writer.reads for writer in writers) > 20
        await rig.until(rig.complete, "every host is back")
        for host in HOSTS:
            rig.cluster.machines[host].kill_host()  # memory that was never named goes with a new start
        await asyncio.sleep(20)
        await rig.until(rig.complete, "every host is back")
        await rig.until(lambda: _is_whole(rig), "files and memory are one")

    simulate(body, 1)


async def _is_whole(rig: Rig) -> bool:
    """Every name leads to a file and back, every living file has its memory, and there is no other memory."""
    pairs = rig.world.coordination.durable.pairs(FILES_ROOT)
    assert namespace_intact.broken(pairs) is None
    memories = {host: (rig.cluster.memory_ids.get(host, ""), rig.memories(host)) for host in HOSTS}
    return namespace_intact.unsettled(pairs, memories, restored=False) is None


def test_only_the_leader_answers() -> None:
    async def body(rig: Rig) -> None:
        leader = await rig.leader()
        for host in HOSTS:
            asked = rig.cluster.ask("test", host, lambda node: node.ref(RemoteMemoryRef).stat(rm.NodeKey(id="1")), 5.0)
            if host == leader:
                assert (await asked).folder
            else:
                with pytest.raises(Unavailable, match=leader):
                    await asked

    simulate(body)


def test_names_are_made_once() -> None:
    async def body(rig: Rig) -> None:
        clients = [Client(rig, host) for host in HOSTS]
        await asyncio.gather(*(client.make("a", host="h1") for client in clients))
        assert len(rig.memories("h1")) == 1
        tries = await asyncio.gather(*(client.mkdir("d") for client in clients), return_exceptions=True)
        assert sorted(type(one).__name__ for one in tries) == ["AlreadyExists", "AlreadyExists", "NoneType"]
        with pytest.raises(NotFound, match="ENODEV"):
            await clients[0].make("b", host="h9")
        assert await clients[0].names() == ["a", "d"]
        assert (await rig.directory.range(Range(b"everram-files/dropped/h1/")))[1] == []

    simulate(body)
