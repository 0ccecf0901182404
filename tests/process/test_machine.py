"""The machine as a real process, with a small host that does what the test tells it."""

from __future__ import annotations

import contextlib
import json
import mmap
import os
import select
import signal
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from everram.runtime.errors import (
    EverramError,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    PermissionDenied,
    Unavailable,
    Unimplemented,
    of_code,
)
from everram.runtime.machine import freezer, tree
from everram.runtime.machine.config import MachineConfig
from everram.runtime.machine.control import Control

pytestmark = [pytest.mark.process, pytest.mark.timeout(60)]

LIMIT_S = 20.0
"""Nothing here takes so long, even on a loaded computer."""

HOST = r"""
import fcntl, json, os, select, socket, sys
from everram.runtime.machine import protocol
from everram.runtime.machine.protocol import Message

assert os.environ["LISTEN_PID"] == str(os.getpid())
names = os.environ["LISTEN_FDNAMES"].split(":")
fds = {name: fd for fd, name in enumerate(names, 3)}
assert len(fds) == int(os.environ["LISTEN_FDS"])
machine = socket.socket(fileno=fds.pop("machine"))
machine.setblocking(True)
hello = protocol.receive(machine)
assert hello.words == {"EVERRAM": "1", "EV": "hello"}, hello
print("host", os.getpid(), "begins", hello.payload, flush=True)
events = []
waiting = {}
path = sys.argv[1]
listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
listener.bind(path + ".new")
listener.listen()
os.rename(path + ".new", path)
protocol.send(machine, Message({"EVERRAM": "1", "READY": "1"}))

def forward(connection, command):
    words = command.get("words", {})
    if "DO" in words or "FDSTORE" in words or "FDSTOREREMOVE" in words:
        number = str(len(waiting) + 1)
        waiting[number] = connection
        words["ID"] = number
    made = []
    if "create" in command:
        fd = os.memfd_create("made", os.MFD_ALLOW_SEALING)
        os.pwrite(fd, command["create"].encode(), 0)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW)
        made, fds[words["FDNAME"]] = [fd], fd
    protocol.send(machine, Message(words, command.get("payload"), made))
    return not ("ID" in words)

def obey(connection):
    command = json.loads(connection.recv(1 << 20) or b"{}")
    if not command:
        connections.remove(connection)
        connection.close()
    elif "words" in command:
        if forward(connection, command):
            connection.send(b"{}")
    elif "peek" in command:
        text = os.pread(fds[command["peek"]], 100, 0).decode()
        connection.send(json.dumps({"text": text, "pid": os.getpid()}).encode())
    elif "state" in command:
        connection.send(json.dumps({"events": events, "names": sorted(fds), "pid": os.getpid()}).encode())
    elif "raw" in command:
        connection.send(b"{}")
        machine.send(command["raw"].encode())

def hear():
    message = protocol.receive(machine)
    if message is None:
        sys.exit(0)
    for fd in message.fds:
        message.words.setdefault("FDS", "")
        message.words["FDS"] += os.readlink(f"/proc/self/fd/{fd}") + ";"
    if "RE" in message.words:
        waiting[message.words["RE"]].send(json.dumps({"words": message.words, "payload": message.payload}).encode())
    else:
        events.append([message.words["EV"], message.payload, message.words.get("FDS", "")])

connections = []
while True:
    ready, _, _ = select.select([machine, listener, *connections], [], [], 0.1)
    protocol.send(machine, Message({"WATCHDOG": "1"}))
    for sock in ready:
        if sock is machine:
            hear()
        elif sock is listener:
            connections.append(listener.accept()[0])
        elif sock in connections:
            obey(sock)
"""


def until(what: str, condition: Callable[[], Any]) -> Any:
    """The first true value of `condition`; it has no descriptor to wait for."""
    end = time.monotonic() + LIMIT_S
    while not (value := condition()):
        assert time.monotonic() < end, f"still waiting for: {what}"
        select.select([], [], [], 0.002)
    return value


class Rig:
    """A machine in a folder of its own, and the way to its host."""

    def __init__(self, folder: Path, **settings: Any) -> None:
        self.folder = folder
        (folder / "host.py").write_text(HOST)
        self.socket = str(folder / "m.sock")
        self.config = MachineConfig(
            cluster_id=f"t{os.getpid()}",
            machine=folder.name[-20:],
            state_dir=str(folder / "state"),
            socket=self.socket,
            memory_bytes=1 << 26,
            host_command=[sys.executable, str(folder / "host.py"), str(folder / "host.sock")],
            **settings,
        )
        (folder / "machine.json").write_text(self.config.to_json())
        self.log = (folder / "machine.log").open("ab")
        self.process = subprocess.Popen(
            [sys.executable, "-m", "everram.runtime.machine", "--config", str(folder / "machine.json")],
            stdout=self.log,
            stderr=self.log,
            stdin=subprocess.DEVNULL,
        )
        until("the host is ready", self.is_ready)

    def is_ready(self) -> bool:
        assert self.process.poll() is None, (self.folder / "machine.log").read_text()
        with contextlib.suppress(EverramError):
            return bool(self.status()["host"]["state"] == "ready")
        return False

    def replace_host(self, number: int) -> int:
        """Send the host a signal, and wait until the next one is ready; its pid."""
        before = self.host_pid
        os.kill(before, number)
        return self.next_host(before)

    def next_host(self, before: int) -> int:
        until("another host is ready", lambda: self.host_pid not in (0, before) and self.is_ready())
        return self.host_pid

    @property
    def host_pid(self) -> int:
        return int(self.status()["host"]["pid"])

    def close(self) -> None:
        """Whatever the test did, nothing of the machine stays."""
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(LIMIT_S)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait(LIMIT_S)
        until("everything marked has ended", lambda: not tree.kill_marked(self.config.mark))
        until("the cgroup is gone", lambda: freezer.end_machine_cgroups(self.config.mark))
        self.log.close()

    def status(self) -> dict[str, Any]:
        with Control(self.socket) as control:
            return control.status()

    def guest(self, guest_id: str = "g") -> dict[str, Any]:
        return next(guest for guest in self.status()["guests"] if guest["guest_id"] == guest_id)

    def tell(self, **command: Any) -> dict[str, Any]:
        """Have the host do something; its answer."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
            sock.settimeout(LIMIT_S)
            sock.connect(str(self.folder / "host.sock"))
            sock.send(json.dumps(command).encode())
            answer: dict[str, Any] = json.loads(sock.recv(1 << 20))
        words = answer.get("words", {})
        if "CODE" in words:
            raise of_code(int(words["CODE"]), answer["payload"]["message"])
        return answer

    def do(self, word: str, **payload: Any) -> Any:
        return self.tell(words={"DO": word}, payload=payload)["payload"]

    def create(self, name: str, text: str) -> None:
        self.tell(words={"FDSTORE": "1", "FDNAME": name}, create=text)

    def events(self) -> list[list[Any]]:
        found: list[list[Any]] = self.tell(state=True)["events"]
        return found

    def lease(self, seconds: float) -> None:
        self.do("lease", deadline_ns=time.monotonic_ns() + int(seconds * 1e9))

    def spawn(self, *argv: str, guest_id: str = "g", epoch: int = 1, lease_s: float = 600, **more: Any) -> Any:
        self.lease(lease_s)
        launch = {
            "guest_id": guest_id,
            "name": f"name-of-{guest_id}",
            "epoch": epoch,
            "argv": argv,
            "working_directory": str(self.folder),
            "environment": [["PATH", os.environ["PATH"]]],
            "log_path": f"guests/{guest_id}.log",
            "grants": [],
            "port": 0,
        }
        return self.do("spawn", **(launch | more))

    def python(self, script: str, *arguments: str, **more: Any) -> Any:
        return self.spawn(sys.executable, "-c", textwrap.dedent(script), *arguments, **more)

    def output(self, guest_id: str = "g") -> str:
        path = self.folder / "state" / "guests" / f"{guest_id}.log"
        return path.read_text() if path.exists() else ""


@pytest.fixture
def make(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Rig]]:
    rigs = []

    def make_one(**settings: Any) -> Rig:
        rig = Rig(tmp_path_factory.mktemp("m"), **settings)
        rigs.append(rig)
        return rig

    yield make_one
    for rig in rigs:
        rig.close()


@pytest.fixture
def rig(make: Callable[..., Rig]) -> Rig:
    return make()


@pytest.fixture(params=["auto", "signals"])
def either(request: pytest.FixtureRequest, make: Callable[..., Rig]) -> Rig:
    """One machine for each way of freezing."""
    rig = make(freezer=request.param)
    if request.param == "auto" and rig.status()["freezer"] != "cgroup":
        pytest.skip("no cgroup2 is writable here, signals are tested")
    return rig


COUNT = """
    import os, sys
    fd = os.open(sys.argv[1], os.O_CREAT | os.O_WRONLY, 0o600)
    number = 0
    while True:
        number += 1
        os.pwrite(fd, b"%012d" % number, 0)
"""
"""Writes ever higher numbers to a file: whether it changes is whether the guest runs."""


def stands_still(path: Path) -> bool:
    before = path.read_text()
    select.select([], [], [], 0.1)
    return path.read_text() == before


# -- the host ----------------------------------------------------------------------------------------------------------


def test_a_killed_host_is_back_at_once_with_its_memory(rig: Rig) -> None:
    rig.create("region.g.a", "what was written")
    for restarts in range(1, 4):
        began = time.monotonic()
        pid = rig.replace_host(signal.SIGKILL)
        assert time.monotonic() - began < 1.0
        assert rig.tell(peek="region.g.a") == {"text": "what was written", "pid": pid}
        assert rig.status()["host"]["restarts"] == restarts
        assert rig.tell(state=True)["names"] == ["region.g.a"]


def test_what_was_stored_just_before_a_kill_is_kept(rig: Rig) -> None:
    pid = rig.host_pid
    os.kill(rig.process.pid, signal.SIGSTOP)
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
        sock.connect(str(rig.folder / "host.sock"))
        sock.send(json.dumps({"words": {"FDSTORE": "1", "FDNAME": "last"}, "create": "words"}).encode())
        # It answers a second question only after it has dealt with the first.
        sock.send(json.dumps({"state": True}).encode())
        assert json.loads(sock.recv(1 << 16))["names"] == ["last"]
    os.kill(pid, signal.SIGKILL)
    os.kill(rig.process.pid, signal.SIGCONT)
    rig.next_host(pid)
    assert rig.tell(peek="last")["text"] == "words"


def test_a_hung_host_is_found_and_replaced(rig: Rig) -> None:
    before = rig.host_pid
    began = time.monotonic()
    with Control(rig.socket) as control:
        control.hang()
    rig.next_host(before)
    assert 0.3 < time.monotonic() - began < 1.5
    assert tree.read_process(before) is None


def test_a_host_that_talks_nonsense_is_replaced(rig: Rig) -> None:
    before = rig.host_pid
    rig.tell(raw="nonsense")
    rig.next_host(before)


def test_the_store_refuses_doubles_and_removes(rig: Rig) -> None:
    rig.create("vmemfs", "1")
    for name in ("vmemfs", "machine", "a:b", "", "ä", "x" * 300):
        with pytest.raises(EverramError):
            rig.create(name, "2")
    rig.tell(words={"FDSTOREREMOVE": "1", "FDNAME": "vmemfs"})
    rig.create("vmemfs", "3")
    assert rig.status()["descriptors"] == ["vmemfs"]
    with pytest.raises(InvalidArgument, match="descriptor"):
        rig.tell(words={"FDSTORE": "1", "FDNAME": "none"})


def test_unknown_words_and_malformed_requests_are_refused_plainly(rig: Rig) -> None:
    with pytest.raises(Unimplemented, match="dance"):
        rig.do("dance")
    for payload in ({}, {"guest_id": 7}, {"guest_id": "g", "argv": 3}):
        with pytest.raises(InvalidArgument):
            rig.do("spawn", **payload)
        with pytest.raises(EverramError):
            rig.do("freeze", **payload)
    with pytest.raises(NotFound):
        rig.do("kill", guest_id="nobody")
    assert rig.status()["host"]["restarts"] == 0


def test_mains_reach_the_host(rig: Rig) -> None:
    with Control(rig.socket) as control:
        control.set_mains(False)
        until("the event", lambda: [event for event in rig.events() if event[0] == "mains" and not event[1]["mains"]])
        with pytest.raises(InvalidArgument):
            control._ask("mains", on="perhaps")


def test_a_cut_network_is_told_to_the_host_and_to_the_next(rig: Rig) -> None:
    def told() -> list[bool]:
        return [payload["connected"] for kind, payload, _ in rig.events() if kind == "network"]

    with Control(rig.socket) as control:
        control.set_cut(True)
        control.set_cut(True)
        until("the event", lambda: told() == [False])
        assert control.status()["cut"]
        rig.replace_host(signal.SIGKILL)
        log = (rig.folder / "state" / "host.log").read_text()
        assert [f"'connected': {word}" in line for word, line in zip(("True", "False"), log.splitlines(), strict=True)]
        assert told() == []
        control.set_cut(False)
        until("the event", lambda: told() == [True])
        assert not control.status()["cut"]
        control.set_weather("link-slow")
        until("the weather", lambda: rig.events()[-1][1]["weather"] == "link-slow")
        rig.replace_host(signal.SIGKILL)
        log = (rig.folder / "state" / "host.log").read_text()
        assert "'weather': 'link-slow'" in log.splitlines()[-1]
    answer = ask(rig.socket, {"everram": 1, "do": "cut", "on": "yes"})
    assert (answer["ok"], answer["error"]) == (False, '"on" is neither true nor false')


def test_ports_are_free_and_not_given_twice(rig: Rig) -> None:
    ports = {rig.do("free-port") for _ in range(20)}
    assert len(ports) == 20
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", ports.pop()))


# -- guests ------------------------------------------------------------------------------------------------------------


def test_a_guest_gets_its_environment_and_its_exit_status_is_kept(rig: Rig) -> None:
    spawned = rig.python(
        """
        import os, sys
        print({key: value for key, value in os.environ.items() if key.startswith("EVERRAM")})
        print(os.environ["PATH"].split(":")[0], os.getcwd(), os.getpgid(0) == os.getpid())
        print(sorted(os.listdir("/proc/self/fd")), os.environ["ODD"].encode("utf-8", "surrogateescape"))
        sys.exit(7)
        """,
        environment=[["PATH", os.environ["PATH"]], ["ODD", "\udcff"], ["BIG", "x" * 100_000]],
        port=4242,
    )
    assert spawned["pid"] > 0 and spawned["exit_status"] == -1
    ended = until("its end", lambda: rig.guest()["exit_status"] == 7 and rig.guest())
    assert ended["pid"] == 0
    marks, rest, descriptors = rig.output().splitlines()
    assert eval(marks) == {
        "EVERRAM_GUEST": "g",
        "EVERRAM_NAME": "name-of-g",
        "EVERRAM_EPOCH": "1",
        "EVERRAM_ATTACH": rig.socket,
        "EVERRAM_PORT": "4242",
        "EVERRAM_MACHINE": rig.config.mark,
    }
    assert rest == f"{Path(sys.executable).parent} {rig.folder} True"
    assert descriptors == r"['0', '1', '2', '3'] b'\xff'"
    assert ["exited", "g", 7] in [
        [kind, payload["guest_id"], payload["exit_status"]] for kind, payload, _ in rig.events()
    ]
    with pytest.raises(InvalidArgument, match="epoch"):
        rig.spawn("true", epoch=1)
    rig.spawn("true", epoch=2)
    until("its end", lambda: rig.guest()["exit_status"] == 0)
    rig.do("forget", guest_id="g")
    assert rig.status()["guests"] == []
    assert rig.status()["descriptors"] == []


def test_signals_become_128_plus_their_number(rig: Rig) -> None:
    rig.spawn("sleep", "600")
    with pytest.raises(FailedPrecondition):
        rig.spawn("true", epoch=2)
    with pytest.raises(InvalidArgument):
        rig.do("signal", guest_id="g", signal_number=signal.SIGSTOP)
    rig.do("signal", guest_id="g", signal_number=signal.SIGTERM)
    until("its end", lambda: rig.guest()["exit_status"] == 128 + signal.SIGTERM)
    rig.spawn("sleep", "600", epoch=2)
    assert rig.do("kill", guest_id="g")["exit_status"] == 128 + signal.SIGKILL


def test_a_program_that_cannot_be_executed_is_refused(rig: Rig) -> None:
    script = rig.folder / "script"
    script.write_text("no shebang")
    with pytest.raises(PermissionDenied, match="script"):
        rig.spawn("./script")
    script.chmod(0o700)
    with pytest.raises(InvalidArgument, match="script"):
        rig.spawn("./script")
    with pytest.raises(NotFound, match="no-such-program"):
        rig.spawn("no-such-program")
    with pytest.raises(NotFound, match="folder"):
        rig.spawn("true", working_directory="/no/such/folder")
    with pytest.raises(InvalidArgument, match="log_path"):
        rig.spawn("true", log_path="../outside")
    assert rig.status()["guests"] == []


def test_freeze_stops_what_setsid_hid(either: Rig) -> None:
    path = either.folder / "number"
    script = textwrap.dedent(COUNT)
    either.spawn("sh", "-c", 'setsid "$0" -c "$1" "$2" & wait', sys.executable, script, str(path))
    until("the grandchild counts", lambda: path.exists() and path.read_text())
    assert not stands_still(path)
    either.do("freeze", guest_id="g", reason="snapshot")
    assert stands_still(path)
    either.do("freeze", guest_id="g", reason="upgrade")
    either.do("thaw", guest_id="g", reason="snapshot")
    assert stands_still(path)
    # The reasons outlive the host.
    either.replace_host(signal.SIGKILL)
    assert either.do("guests")[0]["freeze_reasons"] == ["upgrade"]
    assert stands_still(path)
    either.do("thaw", guest_id="g", reason="upgrade")
    until("it counts again", lambda: not stands_still(path))


def test_a_guest_that_forks_without_end_is_stopped_and_killed(either: Rig) -> None:
    path = either.folder / "number"
    either.python(
        """
        import os, sys
        number = 0
        while True:
            number += 1
            if os.fork():
                os._exit(0)
            os.setsid()
            open(sys.argv[1], "w").write(str(number))
        """,
        str(path),
    )
    either.do("kill", guest_id="g")
    assert not tree.guest_processes(either.process.pid, either.config.mark, "g", 0)


def test_kill_ends_orphans_too(either: Rig) -> None:
    path = either.folder / "number"
    script = textwrap.dedent(COUNT)
    either.spawn("sh", "-c", '(setsid "$0" -c "$1" "$2" &) ; sleep 600', sys.executable, script, str(path))
    until("the orphan counts", lambda: path.exists() and path.read_text())
    either.do("freeze", guest_id="g", reason="snapshot")
    assert stands_still(path)
    assert len(tree.marked(either.config.mark)) == 4
    either.do("kill", guest_id="g")
    assert stands_still(path)
    assert tree.marked(either.config.mark) == [either.host_pid]


def test_what_a_guest_leaves_behind_ends_with_it(either: Rig) -> None:
    either.spawn("sh", "-c", "(setsid sleep 600 &) ; (setsid sleep 600 &) ; exit 3")
    until("its end", lambda: either.guest()["exit_status"] == 3)
    assert tree.marked(either.config.mark) == [either.host_pid]


def test_the_end_of_the_lease_freezes_for_good(either: Rig) -> None:
    path = either.folder / "number"
    with pytest.raises(Unavailable, match="lease"):
        either.spawn("true", lease_s=0.1)
    script = textwrap.dedent(COUNT)
    either.spawn("sh", "-c", 'setsid "$0" -c "$1" "$2" & wait', sys.executable, script, str(path), lease_s=1.0)
    # A dead host cannot renew, and its successor has to be told.
    with Control(either.socket) as control:
        until("the lease ends", lambda: control.status()["guests"][0]["freeze_reasons"] == ["lease"])
    left_s = either.status()["lease_deadline_ns"] / 1e9 - time.monotonic()
    assert 0 < left_s <= 0.15
    until("the event", lambda: ["frozen", "lease"] in [[kind, p["reason"]] for kind, p, _ in either.events()])
    assert stands_still(path)
    either.lease(600)
    with pytest.raises(FailedPrecondition):
        either.do("thaw", guest_id="g", reason="lease")
    assert stands_still(path)
    assert either.do("kill", guest_id="g")["exit_status"] == 137


# -- the end of the machine --------------------------------------------------------------------------------------------


def test_the_machines_death_takes_everything_with_it(either: Rig) -> None:
    either.spawn("sh", "-c", "setsid sleep 600 & (setsid sleep 600 &) ; sleep 600")
    until("four guest processes and the host", lambda: len(tree.marked(either.config.mark)) == 5)
    either.process.kill()
    either.process.wait(LIMIT_S)
    # The host and the guest die with it; who escaped by a session is found by the mark, or in the cgroup.
    until("everything marked has ended", lambda: not tree.kill_marked(either.config.mark))
    until("the cgroup is empty", lambda: freezer.end_machine_cgroups(either.config.mark))


def test_a_machine_that_dies_loses_its_memory_first(either: Rig) -> None:
    either.create("region.g.a", "what was written")
    either.create("channel", "generations")
    path = either.folder / "number"
    either.spawn("sh", "-c", 'setsid "$0" -c "$1" "$2" & wait', sys.executable, textwrap.dedent(COUNT), str(path))
    until("the guest runs", path.exists)
    mapped = {name: kept_memory(either.process.pid, name) for name in ("region.g.a", "channel")}
    with Control(either.socket) as control:
        began = time.monotonic()
        control.die()
        print(f"the machine ended {1000 * (time.monotonic() - began):.0f} ms after it was told to")
    assert either.process.wait(LIMIT_S) == -signal.SIGKILL
    assert mapped["region.g.a"][:] == bytes(len("what was written"))
    assert mapped["channel"][:] == b"\xff" * len("generations")
    for mapping in mapped.values():
        mapping.close()
    # Everything below it was killed by itself; nobody had to look for it.
    until("everything marked has ended", lambda: not tree.marked(either.config.mark))
    assert stands_still(path)


def kept_memory(pid: int, name: str) -> mmap.mmap:
    """A peer's mapping of a memory object that a machine keeps. The rig's host calls them all "made"."""
    texts = {"region.g.a": b"what was written", "channel": b"generations"}
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(OSError):
            if str(entry.readlink()).startswith("/memfd:made") and entry.read_bytes() == texts[name]:
                fd = os.open(entry, os.O_RDWR)
                try:
                    return mmap.mmap(fd, 0)
                finally:
                    os.close(fd)
    raise AssertionError(f"the machine keeps no {name}")


def test_a_process_without_marks_is_found_in_the_cgroup(rig: Rig) -> None:
    if rig.status()["freezer"] != "cgroup":
        pytest.skip("no cgroup2 is writable here")
    rig.spawn("sh", "-c", "(setsid env -i sleep 600.25 &) ; sleep 600")

    def escaped() -> list[int]:
        found = []
        for pid in tree.processes():
            with contextlib.suppress(OSError):
                if Path(f"/proc/{pid}/cmdline").read_bytes() == b"sleep\x00600.25\x00":
                    found.append(pid)
        return found

    [pid] = until("it has escaped", escaped)
    assert not tree.has_marks(pid, {tree.MACHINE_MARK: rig.config.mark})
    rig.process.kill()
    rig.process.wait(LIMIT_S)
    until("everything marked has ended", lambda: not tree.kill_marked(rig.config.mark))
    assert escaped() == [pid]
    until("the cgroup is empty", lambda: freezer.end_machine_cgroups(rig.config.mark))
    assert escaped() == []


def test_an_orderly_stop_leaves_nothing(either: Rig) -> None:
    either.spawn("sh", "-c", "setsid sleep 600 & (setsid sleep 600 &) ; sleep 600")
    with Control(either.socket) as control:
        control.stop()
    assert either.process.wait(LIMIT_S) == 0
    assert tree.marked(either.config.mark) == []
    assert not Path(either.socket).exists()
    own = freezer.own_cgroup()
    assert not own or not Path(own, freezer.machine_cgroup_name(either.config.mark)).exists()


def test_a_second_machine_at_the_same_socket_is_refused(rig: Rig) -> None:
    command = [sys.executable, "-m", "everram.runtime.machine", "--config", str(rig.folder / "machine.json")]
    second = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S, check=False)
    assert (second.returncode, second.stdout) == (78, "")
    assert "another machine serves there" in second.stderr
    assert rig.is_ready()


def test_wrong_configurations_are_refused_by_name(tmp_path: Path) -> None:
    file = tmp_path / "machine.json"
    file.write_text('{"cluster_id": "c", "colour": "green"}')
    with pytest.raises(InvalidArgument, match="colour"):
        MachineConfig.read(str(file))
    with pytest.raises(InvalidArgument, match="absent"):
        MachineConfig.read(str(tmp_path / "absent"))


# -- attaching ---------------------------------------------------------------------------------------------------------

ATTACH = """
    import array, json, os, socket, sys
    def attach(**more):
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        sock.connect(os.environ["EVERRAM_ATTACH"])
        hello = {"everram": 1, "do": "attach", "guest": os.environ["EVERRAM_GUEST"],
                 "epoch": int(os.environ["EVERRAM_EPOCH"])}
        sock.send(json.dumps(hello | more).encode())
        return sock, *receive(sock)
    def receive(sock):
        data, fds, _, _ = socket.recv_fds(sock, 65536, 16)
        return json.loads(data or "{}"), fds
"""


def ask(path: str, message: object, fds: list[int] | None = None) -> dict[str, Any]:
    """As a stranger."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
        sock.settimeout(LIMIT_S)
        sock.connect(path)
        data = message if isinstance(message, bytes) else json.dumps(message).encode()
        socket.send_fds(sock, [data], fds or [])
        answer: dict[str, Any] = json.loads(sock.recv(65536) or b"{}")
        return answer


def grant(label: str, memory: str, *, tracked: bool = False) -> dict[str, Any]:
    return {"label": label, "role": "logged", "memory": memory, "size_bytes": 4096, "tracked": tracked}


def test_a_guest_attaches_and_others_do_not(rig: Rig) -> None:
    rig.create("region.g.a", "memory of a")
    rig.python(
        ATTACH
        + """
    sock, answer, fds = attach(epoch=2)
    print(json.dumps(answer))
    sock, answer, fds = attach()
    print(json.dumps(answer))
    print(json.dumps([os.pread(fds[0], 11, 0).decode(), len(fds)]))
    os.eventfd_write(fds[1], 1)
    sys.stdout.flush()
    if not os.fork():
        print(json.dumps(attach()[1]), flush=True)
        os._exit(0)
    os.wait()
    sock.close()
    sock, answer, fds = attach()
    print(json.dumps(answer), flush=True)
    sock.recv(1)
    """,
        grants=[grant("a", "region.g.a")],
    )
    output = until("five lines", lambda: len(rig.output().splitlines()) == 5 and rig.output())
    old, first, content, second, again = map(json.loads, output.splitlines())
    assert not old["ok"] and "epoch" in old["error"]
    assert first == {
        "ok": True,
        "epoch": 1,
        "recovered": False,
        "tracking": False,
        "grants": [{"label": "a", "role": "logged", "size_bytes": 4096, "tracked": False}],
    }
    assert content == ["memory of a", 2]
    assert not second["ok"] and "one at a time" in second["error"]
    assert again["ok"] and again["recovered"]
    pid = rig.guest()["pid"]
    assert rig.guest()["attached_pid"] == pid
    kinds = [kind for kind, payload, _ in rig.events() if payload.get("guest_id") == "g"]
    assert kinds == ["attached", "detached", "attached"]
    stranger = ask(rig.socket, {"everram": 1, "do": "attach", "guest": "g", "epoch": 1})
    assert not stranger["ok"] and "does not belong" in stranger["error"]
    rig.do("kill", guest_id="g")
    assert rig.guest()["attached_pid"] == 0


def test_a_tracked_attachment_outlives_the_host(rig: Rig) -> None:
    """The userfaultfd is an eventfd here: the machine only keeps it."""
    rig.create("region.g.a", "memory of a")
    rig.python(
        ATTACH
        + """
    sock, answer, fds = attach()
    uffd = os.eventfd(0)
    ranges = [{"label": "a", "address": 4096, "length": 8192}]
    socket.send_fds(sock, [json.dumps({"do": "track", "ranges": ranges}).encode()], [uffd])
    os.close(uffd)
    print(json.dumps(receive(sock)), flush=True)
    sock.recv(1)
    """,
        grants=[grant("a", "region.g.a", tracked=True)],
    )
    attached = until("the event", lambda: [event for event in rig.events() if event[0] == "attached"])
    [[_, payload, descriptors]] = attached
    assert payload["ranges"] == [{"label": "a", "memory": "region.g.a", "address": 4096, "length_bytes": 8192}]
    assert "eventfd" in descriptors
    assert rig.output() == ""
    assert rig.do("tracked") == []
    rig.do("admit", guest_id="g", pid=1, served=True)  # said of another process
    rig.replace_host(signal.SIGKILL)
    answer = rig.tell(words={"DO": "tracked"}, payload={})
    assert "eventfd" in answer["words"]["FDS"]
    assert answer["payload"][0]["ranges"] == payload["ranges"]
    assert not answer["payload"][0]["served"]
    assert rig.do("tracked") == []
    rig.do("admit", guest_id="g", served=True)
    rig.do("admit", guest_id="g", served=True)
    until("it goes on", lambda: rig.output() == '[{"ok": true, "go": true}, []]\n')
    rig.replace_host(signal.SIGKILL)
    assert rig.tell(words={"DO": "tracked"}, payload={})["payload"][0]["served"]
    rig.do("kill", guest_id="g")
    rig.do("admit", guest_id="g")


BLOCKED = """
    import ctypes, fcntl, mmap, struct, threading
    sock, answer, fds = attach()
    uffd = ctypes.CDLL(None).syscall(323, os.O_CLOEXEC)
    assert uffd >= 0
    fcntl.ioctl(uffd, 0xC018AA3F, bytearray(struct.pack("<QQQ", 0xAA, 0, 0)))
    memory = mmap.mmap(-1, 8192, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    fcntl.ioctl(uffd, 0xC020AA00, bytearray(struct.pack("<QQQQ", address, 8192, 1, 0)))
    ranges = [{"label": "a", "address": address, "length": 8192}]
    socket.send_fds(sock, [json.dumps({"do": "track", "ranges": ranges}).encode()], [uffd])
    def block(page):
        file = os.open(f"{sys.argv[1]}-{page}", os.O_CREAT | os.O_WRONLY, 0o600)
        os.pwrite(file, memoryview(memory)[4096 * page : 4096 * page + 4096], 0)
    for page in range(2):
        threading.Thread(target=block, args=(page,)).start()
"""
"""Two threads block for ever in kernel mode, in faults that nobody serves: they take no SIGSTOP and never freeze."""


def blocked_guest(rig: Rig) -> None:
    rig.create("region.g.a", "memory of a")
    grants = [grant("a", "region.g.a", tracked=True)]
    pid = rig.python(ATTACH + BLOCKED, str(rig.folder / "file"), grants=grants)["pid"]
    until("both threads wait", lambda: tree.restless_threads(pid)[1] == 2)


@pytest.mark.needs("userfaultfd")
def test_a_guest_blocked_in_a_fault_dies_with_its_machine(either: Rig) -> None:
    blocked_guest(either)
    with Control(either.socket) as control:
        control.die()
    assert either.process.wait(LIMIT_S) == -signal.SIGKILL
    until("everything marked has ended", lambda: not tree.marked(either.config.mark))


@pytest.mark.needs("userfaultfd")
def test_a_guest_blocked_in_a_fault_counts_as_stopped(either: Rig) -> None:
    blocked_guest(either)
    for _ in range(3):
        either.do("freeze", guest_id="g", reason="snapshot")
        assert either.guest()["state"] == "frozen"
        either.do("thaw", guest_id="g", reason="snapshot")
    either.do("freeze", guest_id="g", reason="snapshot")
    assert either.do("kill", guest_id="g")["exit_status"] == 137


def test_malformed_messages_get_a_plain_answer_and_leak_nothing(rig: Rig) -> None:
    descriptors = Path(f"/proc/{rig.process.pid}/fd")
    before = len(list(descriptors.iterdir()))
    for message in (
        b"\xff",
        b"[]",
        b"{",
        b"[" * 5000,
        {},
        {"everram": 2, "do": "status"},
        {"everram": 1, "do": "dance"},
    ):
        answer = ask(rig.socket, message, [0, 1])
        assert answer["ok"] is False and answer["error"], message
    for guest in ("nobody", 7, None):
        assert ask(rig.socket, {"everram": 1, "do": "attach", "guest": guest, "epoch": 1})["ok"] is False
    assert rig.is_ready()
    until("connections are closed", lambda: len(list(descriptors.iterdir())) <= before)


def test_the_machine_starts_fast(rig: Rig) -> None:
    """Three times the measured time, so that only a mistake (a heavy import) is caught."""
    command = [sys.executable, "-X", "importtime", "-c", "import everram.runtime.machine.process"]
    found = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S, check=True).stderr
    for heavy in ("asyncio", "ssl", "grpc", "uvloop", "google", "subprocess"):
        assert f" {heavy}\n" not in found, f"the machine imports {heavy}"


def test_the_unit_file_is_valid() -> None:
    verify = ["systemd-analyze", "verify", "docs/everram-machine@.service"]
    root = Path(__file__).parents[2]
    try:
        found = subprocess.run(verify, capture_output=True, text=True, timeout=LIMIT_S, check=False, cwd=root)
    except FileNotFoundError:
        pytest.skip("systemd-analyze is not installed here")
    complaints = [
        line for line in found.stderr.splitlines() if "everram-machine" in line and "not executable" not in line
    ]
    assert complaints == []
