"""Attaching as a real process does it, against a small machine that says what the test tells it."""

from __future__ import annotations

import array
import json
import os
import socket
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from everram.runtime.log.reader import LogReader
from everram.runtime.log.ring import MAGIC, MIN_CAPACITY_BYTES, Ring
from everram.runtime.memory.mapped import Mapped

GUEST_ID = "0123456789abcdef"
REGION_BYTES = 8192
LIMIT_S = 30.0
"""Nothing here takes so long, even on a loaded computer."""


class FakeMachine:
    """Keeps one guest's memory, answers attaches with `answer`, and notes what it was sent."""

    def __init__(self, folder: Path) -> None:
        self.path = str(folder / "machine.sock")
        self.log_fd = self._memory(Ring.total_bytes(MIN_CAPACITY_BYTES))
        self.region_fd = self._memory(REGION_BYTES)
        self.bell_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self.log = Mapped(self.log_fd, Ring.total_bytes(MIN_CAPACITY_BYTES))
        self.region = Mapped(self.region_fd, REGION_BYTES)
        self.ring = Ring.format(self.log, guest_id=GUEST_ID, epoch=1, capacity_bytes=MIN_CAPACITY_BYTES)
        self.answer: dict[str, Any] | None = {
            "ok": True,
            "epoch": 1,
            "recovered": False,
            "tracking": False,
            "grants": [
                {"label": "log", "role": "log", "size_bytes": self.log.size_bytes, "tracked": False},
                {"label": "data", "role": "logged", "size_bytes": REGION_BYTES, "tracked": False},
            ],
        }
        self.descriptors = [self.log_fd, self.region_fd, self.bell_fd]
        self.heard: list[dict[str, Any]] = []
        self.ended = threading.Event()
        """An attached process has gone."""
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._listener.bind(self.path)
        self._listener.listen()
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _memory(self, size_bytes: int) -> int:
        descriptor = os.memfd_create("test", os.MFD_CLOEXEC)
        os.ftruncate(descriptor, size_bytes)
        return descriptor

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            with connection:
                while data := connection.recv(65536):
                    self.heard.append(json.loads(data))
                    if self.answer is None:
                        break
                    if self.heard[-1]["do"] == "attach":
                        rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", self.descriptors))
                        connection.sendmsg([json.dumps(self.answer).encode()], [rights] if self.descriptors else [])
                    else:
                        connection.send(b'{"ok": true, "go": true}')
            self.ended.set()

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(LIMIT_S)
        assert not self._thread.is_alive()
        self.log.close()
        self.region.close()
        for descriptor in (self.log_fd, self.region_fd, self.bell_fd):
            os.close(descriptor)

    def run(self, program: str, **variables: str) -> str:
        """What a guest's process that runs this prints."""
        environment = {
            "EVERRAM_ATTACH": self.path,
            "EVERRAM_GUEST": GUEST_ID,
            "EVERRAM_NAME": "bank",
            "EVERRAM_EPOCH": "1",
            "EVERRAM_PORT": "4711",
        }
        return run(program, **(environment | variables))


def run(program: str, **variables: str) -> str:
    text = "from everram.runtime import guest\n" + textwrap.dedent(program)
    ended = subprocess.run(
        [sys.executable, "-W", "error", "-c", text],
        env={"PATH": os.environ["PATH"], **variables},
        capture_output=True,
        check=False,
        text=True,
        timeout=LIMIT_S,
    )
    assert (ended.returncode, ended.stderr) == (0, "")
    return ended.stdout.strip()


REPORT = """
try:
    guest.attach()
except guest.GuestError as error:
    print(f"{type(error).__name__}: {error}")
"""


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[FakeMachine]:
    fake = FakeMachine(tmp_path)
    yield fake
    fake.close()


def test_a_process_gets_its_memory_and_holds_it_for_life(machine: FakeMachine) -> None:
    printed = machine.run("""
        me = guest.attach()
        region = me.region("data")
        with me.transaction() as tx:
            tx.store(region, 100, b"kept")
            assert tx.load(region, 99, 6) == b"\\0kept\\0" and region[99:105] == bytes(6)
        assert region[100:104] == b"kept" and region.view.readonly
        print(me.name, me.guest_id, me.epoch, me.port, me.recovered, tx.lsn)
    """)
    (record,) = LogReader(machine.ring, 0).run(4096)
    assert printed == f"bank {GUEST_ID} 1 4711 False {record.end}"
    assert machine.ring.applied == machine.ring.tail == record.end
    assert machine.region.load(100, 4) == b"kept"
    assert machine.heard == [{"everram": 1, "do": "attach", "guest": GUEST_ID, "epoch": 1, "saves": True}]
    assert machine.ended.wait(LIMIT_S)


def test_the_next_process_replays_what_the_last_one_committed(machine: FakeMachine) -> None:
    machine.run("""
        me = guest.attach()
        me.records("data", "<q")[3] = (77,)
    """)
    machine.region.store(24, bytes(8))
    machine.ring.set_applied(0)
    machine.ring.begin_epoch(2)
    assert machine.answer is not None
    machine.answer.update(epoch=2, recovered=True)
    program = 'me = guest.attach(); print(me.records("data", "<q")[3], me.recovered, me.core.replayed)'
    assert machine.run(program, EVERRAM_EPOCH="2") == "(77,) True 1"


def test_the_connection_stays_open_while_the_process_lives(machine: FakeMachine) -> None:
    machine.run("""
        import gc
        guest.attach()
        gc.collect()
        from everram.runtime.guest import process
        assert process._holds[0].connection.fileno() >= 0
        assert process._holds[0].connection.get_inheritable() is False
    """)
    assert machine.ended.wait(LIMIT_S)


def test_attaching_twice_is_the_same_hold(machine: FakeMachine) -> None:
    assert machine.run("print(guest.attach().core is guest.attach().core is guest.attach_async().core)") == "True"
    assert len(machine.heard) == 1


@pytest.mark.parametrize("variables", [{}, {"EVERRAM_ATTACH": "/x", "EVERRAM_GUEST": "g", "EVERRAM_EPOCH": "one"}])
def test_outside_of_a_guest(variables: dict[str, str]) -> None:
    assert run(REPORT, **variables) == (
        "NotAGuest: this program was not started by everram: start it with `everram run -- PROGRAM`"
    )


def test_no_machine(tmp_path: Path) -> None:
    path = str(tmp_path / "gone.sock")
    printed = run(REPORT, EVERRAM_ATTACH=path, EVERRAM_GUEST=GUEST_ID, EVERRAM_EPOCH="1")
    assert printed == f"NotAGuest: the machine at {path} does not answer (No such file or directory): was it stopped?"


def test_a_refusal_is_in_the_machines_words(machine: FakeMachine) -> None:
    machine.answer = {"ok": False, "error": "process 7 is attached already", "code": 9}
    assert machine.run(REPORT) == "NotAGuest: this process may not attach: process 7 is attached already"


def test_a_machine_that_hangs_up(machine: FakeMachine) -> None:
    machine.answer = None
    assert machine.run(REPORT).startswith("NotAGuest: ")


def test_a_refused_process_keeps_nothing_open(machine: FakeMachine) -> None:
    machine.answer = {"ok": False, "error": "no"}  # with descriptors, as no machine should
    assert machine.run(f"""
import os
before = sorted(os.listdir("/proc/self/fd"))
{REPORT}
print(sorted(os.listdir("/proc/self/fd")) == before)
    """).endswith("\nTrue")


def test_no_log_granted(machine: FakeMachine) -> None:
    assert machine.answer is not None
    del machine.answer["grants"][0], machine.descriptors[0]
    assert machine.run(REPORT) == (
        "NotAGuest: the machine granted no log and doorbell: it is of another version than this library"
    )


def test_a_damaged_log(machine: FakeMachine) -> None:
    machine.log.store(0, b"SOMEDISK")
    assert machine.run(REPORT) == "LogCorrupt: guest bank: there is no log ring: it begins with b'SOMEDISK'"
    machine.log.store(0, MAGIC)
    machine.ring.set_tail(64)
    assert machine.run(REPORT).startswith("LogCorrupt: guest bank: ")
    assert machine.ring.tail == 64, "a damaged log is left as it was found"


def test_a_later_incarnation_has_begun(machine: FakeMachine) -> None:
    machine.ring.begin_epoch(2)
    assert machine.run(REPORT).startswith("Fenced: epoch 1 of guest bank is over, 2 has begun")


def test_a_forked_child_may_not_write(machine: FakeMachine) -> None:
    printed = machine.run("""
        import os
        me = guest.attach()
        counter = me.records("data", "<q")
        counter[0] = (1,)
        child = os.fork()
        if not child:
            assert counter[0] == (1,)
            for write in (lambda: counter.set(0, (2,)), guest.attach, lambda: me.core.replicated(0)):
                try:
                    write()
                except guest.Detached as error:
                    print(error, flush=True)
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        counter[1] = (3,)
        print(counter[0], counter[1])
    """)
    lines = printed.splitlines()
    assert len(lines) == 4
    assert all("forked child" in line for line in lines[:3])
    assert lines[3] == "(1,) (3,)"


def test_a_child_forked_while_another_thread_commits_gets_an_error_too(machine: FakeMachine) -> None:
    """The child's copy of the commit lock would stay locked for ever, and its copy of the commit is not its own."""
    assert machine.run("""
        import os, signal
        me = guest.attach()
        counter = me.records("data", "<q")
        counter[0] = (1,)
        with me.core._committing:
            me.core._unfinished = [(0, 0, b"not yours")]
            child = os.fork()
            me.core._unfinished = ()
            if not child:
                signal.alarm(10)
                try:
                    counter[0] = (2,)
                except guest.Detached:
                    os._exit(int(counter[0] != (1,)))
                os._exit(2)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    """).endswith("0")


def test_fork_before_attaching_is_no_fork_of_a_guest(machine: FakeMachine) -> None:
    assert (
        machine.run("""
        import os
        child = os.fork()
        if not child:
            guest.attach().records("data", "<q")[0] = (5,)
            os._exit(0)
        os.waitpid(child, 0)
    """)
        == ""
    )
    assert machine.region.load_u64(0) == 5


def test_a_sleeping_reader_is_woken(machine: FakeMachine) -> None:
    reader = LogReader(machine.ring, 0)
    machine.run('guest.attach().records("data", "<q")[0] = (5,)')
    with pytest.raises(BlockingIOError):
        os.eventfd_read(machine.bell_fd)
    reader.run(4096)
    assert reader.announce_sleep()
    machine.ring.begin_epoch(2)
    assert machine.answer is not None
    machine.answer.update(epoch=2)
    machine.run('guest.attach().records("data", "<q")[0] = (6,)', EVERRAM_EPOCH="2")
    assert os.eventfd_read(machine.bell_fd) == 1


def test_the_lease_is_looked_at(machine: FakeMachine) -> None:
    printed = machine.run("""
        import time
        me = guest.attach()
        counter, ring = me.records("data", "<q"), me.core.ring
        counter[0] = (1,)
        ring.set_lease_deadline_ns(time.monotonic_ns() + 10**12)
        counter[0] = (2,)
        ring.set_lease_deadline_ns(time.monotonic_ns())
        for use in (lambda: counter.set(0, (3,)), lambda: me.wait_replicated(0, timeout_s=1)):
            try:
                use()
            except guest.Fenced as error:
                print(error)
        print(counter[0])
    """)
    first, second, value = printed.splitlines()
    assert first == second == "the lease of guest bank has run out: another incarnation may serve; end this process"
    assert value == "(2,)"
    assert machine.region.load_u64(0) == 2


def test_an_untrackable_process_says_so_and_goes_on(machine: FakeMachine) -> None:
    assert machine.answer is not None
    machine.answer["grants"][1]["tracked"] = True
    assert machine.run('print(len(guest.attach().region("data")))') == str(REGION_BYTES)
    assert machine.heard[1:] == [{"do": "track", "ranges": []}]


def test_a_mapped_region_takes_plain_stores(machine: FakeMachine) -> None:
    assert machine.answer is not None
    machine.answer["grants"][1]["role"] = "mapped"
    printed = machine.run("""
        me = guest.attach()
        region = me.region("data")
        region.store(0, b"plain")
        view = region.view
        view[8:13] = b"views"
        view.release()
        try:
            with me.transaction() as tx:
                tx.store(region, 0, b"no")
        except guest.RegionError as error:
            print(error)
        try:
            me.region("other")
        except guest.RegionError as error:
            print(error)
    """)
    assert printed.splitlines() == [
        "region data is mapped: store into it directly, transactions do not cover it",
        "guest bank has no region other (it has: data): run it with --region",
    ]
    assert machine.region.load(0, 13) == b"plain\0\0\0views"


def test_threads_commit_one_after_the_other(machine: FakeMachine) -> None:
    printed = machine.run("""
        import threading
        me = guest.attach()
        region = me.region("data")
        ends = [[], [], [], []]
        def work(mine):
            for number in range(200):
                with me.transaction() as tx:
                    tx.store_u64(region, 8 * mine, number + 1)
                    tx.store_u64(region, 4096 + 8 * mine, number + 1)
                ends[mine].append(tx.lsn)
        threads = [threading.Thread(target=work, args=(mine,)) for mine in range(4)]
        for thread in threads: thread.start()
        for thread in threads: thread.join()
        assert all(one == sorted(one) for one in ends)
        assert len(set(sum(ends, []))) == 800
        print([region.load_u64(8 * mine) for mine in range(4)])
    """)
    assert printed == "[200, 200, 200, 200]"
    assert [machine.region.load_u64(4096 + 8 * mine) for mine in range(4)] == [200] * 4
