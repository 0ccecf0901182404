"""The host's side of the machine (`production.machine`) against a real machine: the test's host runs a scenario.

Each scenario is a coroutine below, run by a real host process under uvloop; the machine restarts it where it kills
itself, and it then runs again with the next number.
"""

from __future__ import annotations

import asyncio
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest

from everram.runtime.environment import Grant, GuestLaunch, MachineEvent
from everram.runtime.errors import EverramError, NotFound
from everram.runtime.machine import freezer, tree
from everram.runtime.machine.config import MachineConfig
from everram.runtime.production.doorbell import Doorbells
from everram.runtime.production.machine import SystemMachine, connect
from everram.runtime.production.memory import KeptMemory

pytestmark = [pytest.mark.process, pytest.mark.timeout(60)]

LIMIT_S = 20.0

GUEST = """
import json, os, socket, sys
sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
sock.connect(os.environ["EVERRAM_ATTACH"])
hello = {"everram": 1, "do": "attach", "guest": os.environ["EVERRAM_GUEST"], "epoch": int(os.environ["EVERRAM_EPOCH"])}
sock.send(json.dumps(hello).encode())
data, fds, _, _ = socket.recv_fds(sock, 65536, 16)
assert json.loads(data)["ok"], data
uffd = os.eventfd(0)
track = {"do": "track", "ranges": [{"label": "a", "address": 4096, "length": 4096}]}
socket.send_fds(sock, [json.dumps(track).encode()], [uffd])
assert json.loads(sock.recv(65536)) == {"ok": True, "go": True}
os.pwrite(fds[0], b"written by the guest", 0)
os.eventfd_write(fds[-1], 1)
sys.exit(5)
"""


def launch(guest_id: str, *argv: str, epoch: int = 1, grants: tuple[Grant, ...] = ()) -> GuestLaunch:
    return GuestLaunch(
        guest_id=guest_id,
        name=guest_id,
        epoch=epoch,
        argv=tuple(word.encode() for word in argv),
        working_directory=b"/",
        environment=(("PATH", os.environb[b"PATH"]),),
        log_path=f"guests/{guest_id}.log",
        grants=grants,
    )


async def lives(machine: SystemMachine, incarnation: int) -> None:
    """One life of a guest, with memory, doorbell and fault service, over a restart of the host in its middle."""
    memory = KeptMemory(machine, machine.memory_bytes)
    bell = Doorbells(machine)("g")
    events = aiter(machine.events())
    await machine.lease(time.monotonic_ns() + 600 * 10**9)
    if incarnation == 1:
        made = await memory.create("region.g.a", 8192)
        made.write(0, b"made by the host")
        with pytest.raises(NotFound):
            await machine.spawn(launch("x", "no-such-program"))
        grants = (Grant("a", "mapped", "region.g.a", 8192, tracked=True),)
        spawned = await machine.spawn(launch("g", sys.executable, "-c", GUEST, grants=grants))
        assert (spawned.guest_id, spawned.epoch, spawned.exit_status) == ("g", 1, -1)
        attached = await anext(events)
        check_attached(attached, spawned.pid)
        assert await machine.tracked() == []
        await machine.freeze("g", "upgrade")
        os.kill(os.getpid(), signal.SIGKILL)
    [guest] = await machine.guests()
    assert guest.freeze_reasons == ("upgrade",)
    assert guest.attached_pid == guest.pid
    [attached] = await machine.tracked()
    check_attached(attached, guest.pid)
    os.close(attached.userfaultfd)
    await machine.admit("g", guest.pid, served=True)
    await machine.thaw("g", "upgrade")
    assert await bell.wait(LIMIT_S)
    assert memory.open("region.g.a").read(0, 20) == b"written by the guest"
    kinds = {}
    while "exited" not in kinds:
        event = await anext(events)
        kinds[event.kind] = event.exit_status
    assert kinds["exited"] == 5
    assert (await machine.kill("g")).exit_status == 5
    await machine.forget("g")
    assert await machine.guests() == []
    bell.close()


def check_attached(event: MachineEvent, pid: int) -> None:
    assert (event.kind, event.guest_id, event.epoch, event.pid) == ("attached", "g", 1, pid)
    [tracked] = event.ranges
    assert (tracked.label, tracked.memory, tracked.address, tracked.length_bytes) == ("a", "region.g.a", 4096, 4096)
    assert str(Path(f"/proc/self/fd/{event.userfaultfd}").readlink()) == "anon_inode:[eventfd]"


async def endures(machine: SystemMachine, incarnation: int) -> None:
    """A hundred requests at once, long payloads, and a machine that does not read for a while."""
    memory = KeptMemory(machine, machine.memory_bytes)
    await machine.lease(time.monotonic_ns() + 600 * 10**9)
    os.kill(os.getppid(), signal.SIGSTOP)
    asking = asyncio.gather(*(machine.free_port() for _ in range(100)), memory.create("a", 4096))
    long = launch("g", "true", *["x" * 1000] * 500)
    spawning = asyncio.ensure_future(machine.spawn(long))
    done, _ = await asyncio.wait([asking, spawning], timeout=0.2)
    assert not done
    os.kill(os.getppid(), signal.SIGCONT)
    *ports, made = await asking
    assert len(set(ports)) == 100
    made.write(0, b"x")
    assert (await spawning).guest_id == "g"


async def scenario(name: str, folder: Path) -> None:
    machine = await connect()
    await machine.ready()
    beating = asyncio.ensure_future(beat(machine))
    ran: Callable[[SystemMachine, int], Awaitable[None]] = globals()[name]
    starts = folder / "starts"
    starts.write_text(starts.read_text() + "x" if starts.exists() else "x")
    try:
        await ran(machine, len(starts.read_text()))
    except (Exception, ExceptionGroup) as error:
        (folder / "result").write_text(repr(error))
        raise
    (folder / "result").write_text("passed")
    await beating


async def beat(machine: SystemMachine) -> None:
    while True:
        machine.alive()
        await asyncio.sleep(machine.watchdog_interval_s)


if __name__ == "__main__":
    import uvloop

    uvloop.run(scenario(sys.argv[1], Path(sys.argv[2])))


# -- in pytest ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Callable[[str], str]]:
    """Runs a machine whose host plays the scenario; the result."""
    processes: list[tuple[subprocess.Popen[bytes], MachineConfig]] = []

    def begin(name: str) -> str:
        config = MachineConfig(
            cluster_id=f"p{os.getpid()}",
            machine=name,
            state_dir=str(tmp_path),
            socket=str(tmp_path / "m.sock"),
            memory_bytes=1 << 26,
            host_command=[sys.executable, __file__, name, str(tmp_path)],
        )
        (tmp_path / "machine.json").write_text(config.to_json())
        with (tmp_path / "machine.log").open("ab") as log:
            command = [sys.executable, "-m", "everram.runtime.machine", "--config", str(tmp_path / "machine.json")]
            processes.append((subprocess.Popen(command, stdout=log, stderr=log), config))
        end = time.monotonic() + LIMIT_S
        result = tmp_path / "result"
        while not (result.exists() and result.read_text()):
            host_log = tmp_path / "host.log"
            assert time.monotonic() < end, host_log.read_text() if host_log.exists() else "no host"
            select.select([], [], [], 0.01)
        return result.read_text()

    yield begin
    for process, config in processes:
        process.terminate()
        assert process.wait(LIMIT_S) == 0
        assert tree.marked(config.mark) == []
        own = freezer.own_cgroup()
        assert not own or not Path(own, freezer.machine_cgroup_name(config.mark)).exists()


@pytest.mark.parametrize("name", ["lives", "endures"])
def test_scenario(run: Callable[[str], str], name: str) -> None:
    assert run(name) == "passed"


async def test_a_host_without_a_machine_says_how_to_start_one() -> None:
    with pytest.raises(EverramError, match="everram machine --config"):
        await connect()
