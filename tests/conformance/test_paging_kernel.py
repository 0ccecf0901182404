"""What the simulation takes the kernel to do with missing and protected pages, and what the kernel does: one body."""

from __future__ import annotations

import ctypes
import errno
import json
import os
import select
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from everram.runtime.memory import userfaultfd
from everram.runtime.memory.contract import PAGE_BYTES
from everram.runtime.memory.paging import PagingKernel
from everram.runtime.memory.userfaultfd import FaultFlag, Mode
from everram.runtime.production.memory import KeptObject
from everram.runtime.simulation import paging
from everram.runtime.simulation.entropy import Seeds
from everram.runtime.simulation.loop import SimulationLoop
from everram.runtime.simulation.objects import Bytes, Gate
from everram.runtime.simulation.paging import BASE, AddressSpace, Fault, Kernel, Spaces

PAGES = 8
CONTENT = b"c" * PAGE_BYTES
GUEST = """
import json, socket, sys
from everram.runtime.memory import userfaultfd
from everram.runtime.memory.mapped import Mapped
from everram.runtime.memory.userfaultfd import Feature

channel, memory, pages = socket.socket(fileno=int(sys.argv[1])), int(sys.argv[2]), int(sys.argv[3])
mapping, uffd = Mapped(memory, pages * 4096), userfaultfd.make()
userfaultfd.handshake(uffd, Feature.PAGEFAULT_FLAG_WP | Feature.WP_SHMEM | Feature.MISSING_SHMEM)
socket.send_fds(channel, [json.dumps(mapping.address).encode()], [uffd])
while request := channel.recv(10):
    page = int(request[1:])
    if request[:1] == b"s":
        mapping.view[page * 4096] = ord("s")
    channel.send(mapping.view[page * 4096 : page * 4096 + 1])
"""


class Model:
    """As the simulation has it."""

    descriptor, address = 0, BASE

    def __init__(self) -> None:
        self._loop = SimulationLoop(Seeds(1).stream("loop"))
        self._spaces = Spaces(self._loop, Seeds(1).stream("spaces"))
        self.memory = Bytes(PAGES * PAGE_BYTES)
        self._space = AddressSpace(self._spaces, "g", self.memory, self._loop.system, None)
        self.kernel: PagingKernel = Kernel(self._space, Gate(self._loop, Seeds(1).stream("gate")), Seeds(1).stream("k"))
        self._doing: Callable[[], str] = str
        self._fault: Fault | None = None

    def begin(self, what: str, page: int) -> str:
        self._doing = lambda: self._touch(what, page)
        return self.next()

    def next(self) -> str:
        """As if it had been woken."""
        try:
            return self._doing()
        except Fault as fault:
            return "protected" if fault.protected else "missing"

    def _touch(self, what: str, page: int) -> str:
        self._space.reach(page, store=what == "s")
        if what == "s":
            self.memory.write(page * PAGE_BYTES, b"s")
        return chr(self.memory.content[page * PAGE_BYTES])

    def punch(self, page: int) -> None:
        self.memory.punch(page * PAGE_BYTES, PAGE_BYTES)

    def close(self) -> None:
        self._loop.close()


class Real:
    """A process whose memory this one pages."""

    kernel: PagingKernel = userfaultfd

    def __init__(self) -> None:
        self._file = os.memfd_create("paged", os.MFD_CLOEXEC)
        os.ftruncate(self._file, PAGES * PAGE_BYTES)
        self._memory = KeptObject("paged", self._file)
        self._channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        arguments = [sys.executable, "-c", GUEST, str(theirs.fileno()), str(self._file), str(PAGES)]
        self._guest = subprocess.Popen(arguments, pass_fds=(theirs.fileno(), self._file))
        theirs.close()
        message, (self.descriptor,), _, _ = socket.recv_fds(self._channel, 100, 1)
        self.address: int = json.loads(message)

    def begin(self, what: str, page: int) -> str:
        self._channel.send(f"{what}{page}".encode())
        return self.next()

    def next(self) -> str:
        ready, _, _ = select.select([self._channel, self.descriptor], [], [], 20)
        if self.descriptor in ready:
            (fault,) = userfaultfd.read_faults(self.descriptor, 10)
            return "protected" if fault.flags & FaultFlag.PROTECTED else "missing"
        assert ready, "neither a fault nor an end of what the guest does"
        return self._channel.recv(1).decode()

    def punch(self, page: int) -> None:
        self._memory.punch(page * PAGE_BYTES, PAGE_BYTES)

    def close(self) -> None:
        self._guest.kill()
        self._guest.wait()
        self._channel.close()
        os.close(self.descriptor)
        os.close(self._file)


@pytest.fixture(params=[Model, pytest.param(Real, marks=[pytest.mark.process, pytest.mark.needs("userfaultfd")])])
def guest(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.setattr(paging, "CHANGING", 0)
    monkeypatch.setattr(paging, "NO_MEMORY", 0)
    made = request.param()
    yield made
    made.close()


@pytest.mark.timeout(60)
def test_pages_that_are_missing_or_protected(guest: Any) -> None:
    kernel, descriptor = guest.kernel, guest.descriptor
    source = ctypes.cast(ctypes.c_char_p(CONTENT), ctypes.c_void_p).value or 0

    def at(page: int) -> int:
        return int(guest.address) + page * PAGE_BYTES

    def protect(page: int) -> None:
        kernel.protect(descriptor, at(page), PAGE_BYTES)

    def unprotect(page: int) -> None:
        kernel.unprotect(descriptor, at(page), PAGE_BYTES)

    def copy(page: int) -> None:
        kernel.copy(descriptor, at(page), source, PAGE_BYTES)

    assert guest.begin("l", 0) == "\0", "nobody watches yet, so a page appears"
    assert guest.begin("s", 1) == "s"
    kernel.register(descriptor, at(0), PAGES * PAGE_BYTES, Mode.MISSING | Mode.WRITE_PROTECT)

    assert guest.begin("l", 0) == "\0", "it is there"
    assert guest.begin("l", 2) == "missing"
    kernel.zero(descriptor, at(2), PAGE_BYTES)
    assert guest.next() == "\0"

    protect(1)
    assert guest.begin("l", 1) == "s", "only stores are told"
    assert guest.begin("s", 1) == "protected"
    kernel.wake(descriptor, at(1), PAGE_BYTES)
    assert guest.next() == "protected", "told again to whoever comes"
    unprotect(1)
    assert guest.next() == "s"

    protect(1)
    guest.punch(1)
    assert guest.begin("s", 1) == "missing", "a store, too: there is nothing that could be protected"
    copy(1)
    assert guest.next() == "s"
    protect(3)
    assert guest.begin("s", 3) == "missing", "nor where there never was"
    copy(3)
    assert guest.next() == "s"

    protect(1)
    guest.punch(1)
    assert guest.begin("l", 1) == "missing"
    copy(1)
    assert guest.next() == "c"
    assert guest.begin("s", 1) == "s", "and does not outlast a copy"

    with pytest.raises(OSError) as refused:
        copy(1)
    assert refused.value.errno == errno.EEXIST
    assert guest.begin("l", 1) == "s", "what is there stays"
    guest.punch(2)
    assert guest.begin("s", 2) == "missing"
    copy(2)
    assert guest.next() == "s"
