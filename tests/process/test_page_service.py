"""The page service under the real kernel: guests that write, hosts that are killed, and a count that is exact.

The test is the machine: it keeps the memory and a duplicate of the guest's userfaultfd, starts hosts and kills them.
"""

from __future__ import annotations

import json
import mmap
import os
import random
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest

from everram.runtime.formats.pages import PageTable, State
from everram.runtime.memory.contract import PAGE_BYTES
from everram.runtime.memory.mapped import Mapped

pytestmark = [pytest.mark.process, pytest.mark.needs("userfaultfd"), pytest.mark.timeout(60)]

PAGES = 2048
STEP_TIMEOUT_S = 20

GUEST = """
import ctypes, json, mmap, os, random, socket, sys, threading
from everram.runtime.memory import userfaultfd
channel = socket.socket(fileno=int(sys.argv[1]))
arena, size = int(sys.argv[2]), int(sys.argv[3])
memory = mmap.mmap(arena, size)
words = memoryview(memory).cast("Q")
address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
uffd = userfaultfd.make()
socket.send_fds(channel, [json.dumps({"address": address}).encode()], [uffd])

def scribble(seed, pages, stores):
    dice = random.Random(seed)
    for n in range(stores):
        words[dice.choice(pages) * 512 + seed] = n + 1

while request := channel.recv(1 << 16):
    do = json.loads(request)
    if do["do"] == "store":
        for page in do["pages"]:
            words[page * 512 + 500] += 1
    elif do["do"] == "load":
        found = [words[page * 512 + 7] for page in do["pages"]]
        channel.send(json.dumps(found).encode())
        continue
    elif do["do"] == "system call":
        reader, writer = os.pipe()
        os.write(writer, b"by the kernel")
        at = do["page"] * 4096
        os.readv(reader, [memoryview(memory)[at:at + 13]])
    elif do["do"] == "scribble":
        threads = [threading.Thread(target=scribble, args=(s, do["pages"], do["stores"])) for s in range(do["threads"])]
        [thread.start() for thread in threads]
        [thread.join() for thread in threads]
    channel.send(b"done")
"""

HOST = """
import asyncio, json, socket, sys
from everram.runtime.environment import MachineEvent, TrackedRange
from everram.runtime.memory.absent import Fill
from everram.runtime.memory.mapped import Mapped
from everram.runtime.memory.page_service import PageService

uffd, table, size, address, pages, lacking, served, channel = map(int, sys.argv[1:9])

class Elsewhere:
    # Every page but each fourth is full of its number; every eighth is brought later.
    def __init__(self, service): self.service, self.gone = service, set()
    def may_lack(self, arena): return True
    def is_absent(self, arena, page): return page % 4 != 3 and page not in self.gone
    def content(self, page):
        run = [page, page + 1] if self.is_absent("", page + 1) else [page]
        return Fill(page, b"".join(n.to_bytes(8, "little") * 512 for n in run))
    def fill(self, arena, page):
        if page % 8 or page == 0: return self.content(page)
        asyncio.get_running_loop().call_later(0.001, lambda: self.service.supply(arena, self.content(page)))
    def filled(self, arena, pages): self.gone.update(pages)

class Memory:
    name = "pages.g.scratch"
    def names(self): return [self.name]
    def open(self, name): return self
    def map(self): return Mapped(table, size)

async def main():
    service = PageService(Memory())
    if lacking:
        service.absent.append(Elsewhere(service))
    loop = asyncio.get_running_loop()
    tracked = TrackedRange("scratch", "region.g.scratch", address, pages)
    service.attach(MachineEvent("attached", "g", userfaultfd=uffd, ranges=(tracked,), served=bool(served)))
    control = socket.socket(fileno=channel)
    control.setblocking(False)
    await loop.sock_sendall(control, b"serving")
    while request := await loop.sock_recv(control, 100):
        if request == b"reset":
            service.reset("g", "scratch")
        await loop.sock_sendall(control, b"%d" % service.written_pages("g", "scratch"))

asyncio.run(main())
"""


@dataclass
class Machine:
    """Keeps the memory and the descriptors of one guest, and one host at a time."""

    arena: int
    table: int
    guest: subprocess.Popen[bytes]
    guest_channel: socket.socket
    uffd: int
    address: int
    host: subprocess.Popen[bytes] | None = None
    host_channel: socket.socket | None = None
    served: bool = False
    """Whether a host has served the guest: its successors protect nothing again."""
    pages: PageTable = field(init=False)

    def __post_init__(self) -> None:
        self.pages = PageTable.open(Mapped(self.table, PageTable.total_bytes(PAGES)))

    def start_host(self, *, lacking: bool = False) -> None:
        self.host_channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.host_channel.settimeout(STEP_TIMEOUT_S)
        # The host gets a duplicate of its own; when it dies, this one keeps the guest from going on with zeros.
        numbers = [self.uffd, self.table, PageTable.total_bytes(PAGES), self.address, PAGES * PAGE_BYTES]
        numbers += [int(lacking), int(self.served)]
        self.host = subprocess.Popen(
            [sys.executable, "-c", HOST, *map(str, numbers), str(theirs.fileno())],
            pass_fds=[self.uffd, self.table, theirs.fileno()],
        )
        theirs.close()
        assert self.host_channel.recv(100) == b"serving"
        self.served = True

    def ask_host(self, request: bytes) -> int:
        assert self.host_channel is not None
        self.host_channel.send(request)
        return int(self.host_channel.recv(100))

    def kill_host(self) -> None:
        if self.host is not None and self.host_channel is not None:
            self.host.send_signal(signal.SIGKILL)
            self.host.wait(STEP_TIMEOUT_S)
            self.host_channel.close()
            self.host = None

    def tell_guest(self, **request: Any) -> None:
        self.guest_channel.send(json.dumps(request).encode())

    def guest_is_done(self, timeout_s: float) -> bool:
        readable, _, _ = select.select([self.guest_channel], [], [], timeout_s)
        return bool(readable) and self.guest_channel.recv(100) == b"done"

    def guest_does(self, **request: Any) -> None:
        self.tell_guest(**request)
        assert self.guest_is_done(STEP_TIMEOUT_S)

    def written(self) -> set[int]:
        return {page for page in range(PAGES) if self.pages.get(page) & State.WRITTEN}

    def content(self) -> list[int]:
        with mmap.mmap(self.arena, PAGES * PAGE_BYTES, prot=mmap.PROT_READ) as memory:
            return list(memoryview(bytes(memory)).cast("Q"))

    def end(self) -> None:
        self.kill_host()
        self.guest.kill()
        self.guest.wait(STEP_TIMEOUT_S)
        self.guest_channel.close()
        self.pages.close()
        for descriptor in (self.arena, self.table, self.uffd):
            os.close(descriptor)


def new_memory(name: str, size_bytes: int) -> int:
    descriptor = os.memfd_create(name, os.MFD_CLOEXEC)
    os.ftruncate(descriptor, size_bytes)
    return descriptor


@pytest.fixture
def machine() -> Iterator[Machine]:
    arena = new_memory("region.g.scratch", PAGES * PAGE_BYTES)
    table = new_memory("pages.g.scratch", PageTable.total_bytes(PAGES))
    mapping = Mapped(table, PageTable.total_bytes(PAGES))
    PageTable.format(mapping, PAGES)
    mapping.close()
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.settimeout(STEP_TIMEOUT_S)
    arguments = [str(theirs.fileno()), str(arena), str(PAGES * PAGE_BYTES)]
    guest = subprocess.Popen([sys.executable, "-c", GUEST, *arguments], pass_fds=[theirs.fileno(), arena])
    theirs.close()
    message, (uffd,), _, _ = socket.recv_fds(ours, 1000, 1)
    machine = Machine(arena, table, guest, ours, uffd, json.loads(message)["address"])
    yield machine
    machine.end()


def test_written_pages_are_counted_exactly(machine: Machine) -> None:
    machine.start_host()
    machine.guest_does(do="store", pages=[0, 5, 5, 6, 7, PAGES - 1])
    assert machine.written() == {0, 5, 6, 7, PAGES - 1}
    assert machine.ask_host(b"count") == 5
    machine.guest_does(do="system call", page=9)
    assert machine.ask_host(b"count") == 6
    content = machine.content()
    assert content[9 * 512].to_bytes(8, "little") == b"by the k"
    assert [content[page * 512 + 500] for page in (0, 5, 6, 8)] == [1, 2, 1, 0]


def test_reset_counts_from_zero_while_the_guest_runs(machine: Machine) -> None:
    machine.start_host()
    machine.guest_does(do="store", pages=list(range(100)))
    assert machine.ask_host(b"reset") == 0
    machine.guest_does(do="store", pages=[3, 200])
    assert machine.written() == {3, 200}


def test_random_writes_are_counted_exactly_over_killed_hosts(machine: Machine) -> None:
    """Threads of the guest write all the time; hosts die in the midst of serving their faults."""
    dice = random.Random(7)
    pages = sorted(dice.sample(range(PAGES), PAGES * 3 // 4))
    threads, stores = 4, 6000
    machine.start_host()
    machine.tell_guest(do="scribble", pages=pages, threads=threads, stores=stores)
    kills = 0
    while not machine.guest_is_done(0.002 + dice.random() * 0.01):
        machine.kill_host()
        kills += 1
        machine.start_host()
        assert kills < 200
    assert kills >= 2, "the guest was done before its host died; give it more to do"
    expected_words, expected_pages = scribbled(pages, threads, stores)
    content = machine.content()
    assert {at: word for at, word in enumerate(content) if word} == expected_words
    assert machine.written() == expected_pages
    assert machine.ask_host(b"count") == len(expected_pages)


def scribbled(pages: list[int], threads: int, stores: int) -> tuple[dict[int, int], set[int]]:
    """What the guest's threads leave, and the pages they touch."""
    words: dict[int, int] = {}
    touched = set()
    for seed in range(threads):
        dice = random.Random(seed)
        for n in range(stores):
            page = dice.choice(pages)
            words[page * 512 + seed] = n + 1
            touched.add(page)
    return words, touched


def test_a_guest_waits_for_the_next_host_and_loses_nothing(machine: Machine) -> None:
    machine.start_host()
    machine.guest_does(do="store", pages=[1])
    machine.kill_host()
    machine.tell_guest(do="store", pages=[1, 2])
    assert not machine.guest_is_done(0.3)
    assert machine.written() == {1}
    machine.start_host()
    assert machine.guest_is_done(STEP_TIMEOUT_S)
    assert machine.written() == {1, 2}
    assert [machine.content()[page * 512 + 500] for page in (1, 2)] == [2, 1]


def test_a_host_that_read_a_fault_and_died_leaves_no_thread_behind(machine: Machine) -> None:
    machine.start_host()
    machine.kill_host()
    machine.tell_guest(do="store", pages=[4])
    deadline = time.monotonic() + STEP_TIMEOUT_S
    os.set_blocking(machine.uffd, False)
    message = b""
    while not message and time.monotonic() < deadline:
        select.select([machine.uffd], [], [], 1)
        message = os.read(machine.uffd, 32)
    assert len(message) == 32
    machine.start_host()
    assert machine.guest_is_done(STEP_TIMEOUT_S)
    assert machine.written() == {4}


def test_a_new_mapping_of_a_region_goes_on_with_its_table(machine: Machine) -> None:
    """What an earlier incarnation of the guest wrote stays counted, and is not protected again."""
    machine.pages.set(3, State.WRITTEN)
    machine.start_host()
    machine.guest_does(do="store", pages=[3, 4])
    assert machine.written() == {3, 4}


def test_missing_pages_are_brought_for_loads_stores_and_system_calls(machine: Machine) -> None:
    machine.start_host(lacking=True)
    machine.tell_guest(do="load", pages=[0, 1, 3, 16, 20])
    assert json.loads(machine.guest_channel.recv(1000)) == [0, 1, 0, 16, 20]
    assert machine.written() == set(), "what was only brought is not written"
    machine.guest_does(do="store", pages=[5, 7, 24, 1])
    machine.guest_does(do="system call", page=13)
    assert machine.written() == {1, 5, 7, 13, 24}
    content = machine.content()
    assert [content[page * 512 + 500] for page in (5, 7, 24, 1)] == [6, 1, 25, 2]
    assert [content[page * 512 + 499] for page in (5, 7, 24, 1)] == [5, 0, 24, 1]
    assert content[13 * 512 + 2] == 13, "beside what the kernel wrote"
    assert content[40 * 512] == 0, "nobody has touched it"


def test_missing_pages_under_threads_and_killed_hosts(machine: Machine) -> None:
    """A successor knows nothing of what was brought before it, and puts nothing over what was written since."""
    pages = list(range(400))
    machine.start_host(lacking=True)
    machine.tell_guest(do="scribble", pages=pages, threads=3, stores=3000)
    for _ in range(3):
        if machine.guest_is_done(0.01):
            break
        machine.kill_host()
        machine.start_host(lacking=True)
    else:
        assert machine.guest_is_done(STEP_TIMEOUT_S)
    words, touched = scribbled(pages, 3, 3000)
    content = machine.content()
    assert machine.written() == touched
    for page in touched:
        brought = page if page % 4 != 3 else 0
        found = content[page * 512 : page * 512 + 512]
        assert found == [words.get(page * 512 + at, brought) for at in range(512)]
