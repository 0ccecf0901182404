"""One machine of the cluster, as its supervisor sees it: started, asked for its host's state, ended for good.

starting -> up -> stopping -> ended
starting, up -> dead            its process ended by itself; nothing of it is left when `dead` is said
starting, up -> off             the same, but its mains had been cut: its memory may be in its image
off -> starting                 its mains are on again: it starts from its image
dead -> starting                started again by `fault heal`: the same machine in name only, with empty memory
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import os
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from everram.runtime.cluster.children import Child, Children
from everram.runtime.cluster.config import ClusterConfig
from everram.runtime.cluster.folders import Folders, set_image_aside, write_durably
from everram.runtime.cluster.machine_control import ask, tell_last
from everram.runtime.cluster.remains import end_marked
from everram.runtime.errors import DeadlineExceeded, EverramError, FailedPrecondition, Unavailable
from everram.runtime.formats.config import HostConfig
from everram.runtime.formats.faults import DISK_FAULT_FILE, DISK_FAULTS, LINK_FAULTS
from everram.runtime.machine.config import MachineConfig
from everram.runtime.machine.lives import EXIT_POWER_OFF
from everram.runtime.machine.tree import MACHINE_MARK, read_process

if TYPE_CHECKING:
    from everram.runtime.contracts.power_monitor_pb2 import SaveReport
    from everram.runtime.refs import Carrier

LOOK_WHILE_STARTING_S = 0.03
LOOK_S = 1.0
"""Between looks at a machine that is up. Nothing is decided by them: its death shows by itself."""
ASK_TIMEOUT_S = 2.0
STOP_TIMEOUT_S = 10.0
"""For a machine to end its host and guests (its own grace is 2 s); then it is killed."""
DIE_TIMEOUT_S = 20.0
"""For a machine to wipe its memory: some milliseconds, a GiB takes a quarter of a second."""
HEAL_TIMEOUT_S = 15.0
"""For a host to be ready again, which takes half a second; on a very busy computer more."""
UPGRADE_TIMEOUT_S = 60.0
"""Of the host software: to start a version for the first time may take seconds, and so may a full drain of the old."""
START_TRIES = 4
"""A host that ended so often before it was ever ready will not be: the start of the cluster gives up."""
LAST_WORDS_BYTES = 4096

HOST_STATES = {"waiting": "down", "starting": "starting", "ready": "ready", "hung": "hung", "refused": "refused"}
"""The machine's words, as `status` says them; any other is "down"."""

log = logging.getLogger("everram.supervisor")

Announce = Callable[[str], None]
T = TypeVar("T")


class MachineKeeper:
    def __init__(
        self, config: ClusterConfig, folders: Folders, name: str, children: Children, environ: Mapping[str, str]
    ) -> None:
        self.name = name
        self.state = "starting"
        self.reason = ""
        self.host_state = "starting"
        self.host_pid = 0
        self.host_restarts = 0
        self.cut = False
        """Whether it is cut off from the network."""
        self.weather = ""
        """The fault of its links; empty: none."""
        self.mains = True
        """Whether it has power from outside."""
        self.cut_off_power = False
        """Whether it was without, and has not gone back to work since."""
        self.battery_s = 0.0
        """That its battery has left."""
        self.ended_s = 0.0
        """When its process was seen to have ended (time.monotonic)."""
        self._mark = f"{config.cluster_id}/{name}"
        self._nvm_files = Path(config.nvm_files) / name if config.nvm_files else None
        self._finishing = asyncio.Lock()
        self._volatile = "volatile memory" if config.nvm_files else "memory"
        """What ends with its process."""
        self._folder = folders.machine(name)
        self._socket = folders.machine_socket(name)
        self.host_socket = folders.host_socket(name)
        self._children = children
        self._environ = {**environ, MACHINE_MARK: self._mark}
        self._host_command: list[str] = []
        """What the machine starts its hosts with, as far as machine.json says so."""
        self._child: Child | None = None
        self._began_s = 0.0
        self._settled = asyncio.Event()
        """The host is ready, or will not be."""
        self._kept = asyncio.Event()
        """Its mains came back before it was off, and it goes on."""
        self._dead = asyncio.Event()

    @property
    def pid(self) -> int:
        return self._child.pid if self._child and self._child.exit_status is None else 0

    @property
    def faults(self) -> list[str]:
        """Of its links and its disk, that last until they are healed."""
        try:
            disk = (self._folder / DISK_FAULT_FILE).read_text()
        except OSError:
            disk = ""
        return [name for name in (self.weather, disk) if name]

    @property
    def has_memory(self) -> bool:
        """Whether there is something that a host could save."""
        return self.state == "up" and self.host_state != "refused"

    def start(self) -> None:
        """For the first time, or again after its death. Raises an EverramError if no process can be started."""
        argv = [sys.executable, "-P", "-m", "everram.runtime.machine", "--config", str(self._folder / "machine.json")]
        self._began_s = time.monotonic()
        self._child = self._children.start(self.name, argv, self._environ, self._folder / "machine.log")
        self.state, self.reason, self.host_state, self.host_pid, self.host_restarts = "starting", "", "starting", 0, 0
        self._settled, self._dead = asyncio.Event(), asyncio.Event()

    def start_empty(self) -> str:
        """A dead machine, with no memory and no image to fill it from; where that was put, empty if there was none.

        Raises an EverramError; it is dead still.
        """
        assert self.state == "dead"
        aside = set_image_aside(self._folder)
        self.start()
        return aside

    async def run(self, announce: Announce, died: Callable[[MachineKeeper], Awaitable[None]]) -> None:
        """Until its end; `died` is awaited if nobody asked for that."""
        child = self._child
        assert child is not None, "start() comes first"
        while child.exit_status is None:
            await self.look()
            tried = self.host_restarts >= START_TRIES
            if not self._settled.is_set() and (tried or self.host_state in ("ready", "refused")):
                self._settled.set()
                if self.host_state == "ready":
                    announce(f"{self.name} is ready ({time.monotonic() - self._began_s:.2f} s)")
            pause_s = LOOK_S if self._settled.is_set() else LOOK_WHILE_STARTING_S
            try:
                async with asyncio.timeout(pause_s):
                    await child.ended.wait()
            except TimeoutError:
                continue
        if self.state != "stopping":
            await self._bury(child, announce, died)

    async def _bury(self, child: Child, announce: Announce, died: Callable[[MachineKeeper], Awaitable[None]]) -> None:
        """Its process has ended by itself: end everything that was below it, which alone proves its death."""
        self.ended_s = time.monotonic()
        self.host_state, self.host_pid = "down", 0
        left = await asyncio.to_thread(end_marked, self._mark)
        self._children.reap()
        self.cut, self.weather = False, ""
        if self.cut_off_power or child.exit_status == EXIT_POWER_OFF:
            self.state, self.reason = "off", self._last_words("machine.log").removeprefix(": ")
            log.warning("%s is off: %s; %d processes of it were ended", self.name, self.reason, left)
        else:
            words = "" if (child.exit_status or 0) > 128 else self._last_words("machine.log")
            self.state, self.reason = (
                "dead",
                f"its process ended ({child.how_it_ended()}), and its {self._volatile} with it{words}",
            )
            log.warning("%s is dead: %s; %d processes of it were ended", self.name, child.how_it_ended(), left)
        announce(f"{self.name} is {self.state}: {self.reason}")
        self._settled.set()
        self._dead.set()
        await died(self)  # first of all: others wait for that
        await self._finish_files()

    async def _finish_files(self) -> str:
        """Nothing of it is left. If it was saved to NVM files, they are whole from now on; why not, if they are not."""
        if self._nvm_files is None:
            return ""
        from everram.runtime.production import nvm_files  # only here: most clusters have none

        try:
            async with self._finishing:
                await asyncio.to_thread(nvm_files.finish, self._nvm_files, self._mark)
        except EverramError as error:
            log.warning("the NVM files of %s are not known to be written back: %s", self.name, error.message)
            return error.message
        return ""

    async def look(self) -> None:
        """Ask for its state; nothing changes if it does not answer."""
        try:
            answer = await ask(self._socket, "status", timeout_s=ASK_TIMEOUT_S)
        except Unavailable:
            return
        host: dict[str, Any] = answer["host"]
        if self.state == "starting":
            self.state = "up"
        self.cut = bool(answer["cut"])
        self.weather = str(answer.get("weather", ""))
        self.battery_s = int(answer["battery_ns"]) / 1e9
        self.host_state = HOST_STATES.get(str(host["state"]), "down")
        self.host_pid = int(host["pid"]) if self.host_state != "down" else 0
        self.host_restarts = int(host["restarts"])
        self.reason = self._last_words("host.log").removeprefix(": ") if self.host_state == "refused" else ""
        self._note_software([str(word) for word in answer["host_command"]])

    def _last_words(self, file: str) -> str:
        """`: ` and the last line of a log, for a person; empty if there is none."""
        try:
            with (self._folder / file).open("rb") as log_file:
                log_file.seek(max(0, os.fstat(log_file.fileno()).st_size - LAST_WORDS_BYTES))
                lines = log_file.read().decode(errors="replace").split("\n")
        except OSError:
            return ""
        last = next((line for line in reversed(lines) if line.strip()), "")
        return f": {last.removeprefix('everram host: ').removeprefix('everram machine: ')}" if last else ""

    async def wait_ready(self) -> None:
        """Raises FailedPrecondition if the host waits for a person's choice, Unavailable if it will never be ready."""
        await self._settled.wait()
        if self.state in ("dead", "off"):
            raise Unavailable(f"{self.name} has ended: {self.reason}")
        if self.host_state == "refused":
            raise FailedPrecondition(f"{self.name} does not start: {self.reason}")
        if self.host_state != "ready":
            words = self._last_words("host.log")
            raise Unavailable(f"the host of {self.name} ended {self.host_restarts} times before it was ready{words}")

    async def fault(self, name: str) -> None:
        """`host-kill`, `hang`, a fault of the disk or of the links, or `machine-kill`, which returns when the death is
        proven. Raises FailedPrecondition if the machine is dead."""
        self._check_up()
        if name in DISK_FAULTS:
            (self._folder / DISK_FAULT_FILE).write_text(name)
            return
        if name in LINK_FAULTS:
            await self._set_weather(name)
            return
        if name != "machine-kill":
            await ask(self._socket, name, timeout_s=ASK_TIMEOUT_S)
            return
        dead = self._dead
        await tell_last(self._socket, "die", timeout_s=DIE_TIMEOUT_S)
        try:
            async with asyncio.timeout(DIE_TIMEOUT_S):
                await dead.wait()
        except TimeoutError:
            raise DeadlineExceeded(
                f"{self.name} was told to die and has not been seen dead yet", unknown=True
            ) from None

    async def heal_faults(self) -> bool:
        """End the faults of its disk and links; whether there were any."""
        broken = self.heal_disk()
        await self.look()
        if self.weather:
            broken = True
            await self._set_weather("")
        return broken

    def heal_disk(self) -> bool:
        """End the fault of its disk; whether there was one."""
        fault = self._folder / DISK_FAULT_FILE
        broken = fault.exists()
        fault.unlink(missing_ok=True)
        return broken

    async def _set_weather(self, name: str) -> None:
        await ask(self._socket, "weather", timeout_s=ASK_TIMEOUT_S, name=name)
        self.weather = name

    async def set_cut(self, on: bool) -> None:
        """Cut the machine off from the network, or connect it again. Raises FailedPrecondition if it is dead."""
        self._check_up()
        await ask(self._socket, "cut", timeout_s=ASK_TIMEOUT_S, on=on)
        self.cut = on

    async def cut_power(self) -> None:
        """Take its mains away; returns when it is off, which its battery puts off for as long as it lasts. Raises
        FailedPrecondition if it is given them back before."""
        if self.state == "off":
            return
        self._check_up()
        dead = self._dead
        self._kept.clear()
        self.mains, self.cut_off_power = False, True
        try:
            await ask(self._socket, "mains", timeout_s=ASK_TIMEOUT_S, on=False)
        except EverramError:
            if not dead.is_set():  # a battery of some milliseconds may be empty before the answer
                self.mains, self.cut_off_power = True, False
                raise
        await _first(dead.wait(), self._kept.wait())
        if not dead.is_set():
            raise FailedPrecondition(f"{self.name} is not off: its mains came back in time, and it goes on")

    async def restore_power(self) -> bool:
        """Give its mains back; whether it is still up, and goes on. Raises like `wait_ready`."""
        self.mains = True
        if self.state == "off":
            return False
        dead = self._dead
        if self.state == "up":
            try:
                await ask(self._socket, "mains", timeout_s=ASK_TIMEOUT_S, on=True)
            except Unavailable:
                await dead.wait()
                return False
        try:
            await _first(self._back_to_work(), dead.wait())
        except Unavailable:
            if not dead.is_set():
                raise
        if dead.is_set():
            return False
        self.cut_off_power = False
        self._kept.set()
        return True

    async def _back_to_work(self) -> None:
        """Its host is ready, and has taken back what it began on battery: only then the machine says that it is not
        failing any more. A host that has not heard of the loss yet would say that it is well."""
        await self.wait_ready()
        while True:
            with suppress(EverramError):
                if not (await ask(self._socket, "status", timeout_s=ASK_TIMEOUT_S))["failing"]:
                    return
            await asyncio.sleep(LOOK_WHILE_STARTING_S)

    async def upgrade(self, python: str, *, preflight: bool, pause: bool) -> dict[str, Any]:
        """Replace its host's software by that of the interpreter `python`, or only ask; the machine's answer. Raises
        what it says."""
        self._check_up()
        command = [python, *MachineConfig.read(str(self._folder / "machine.json")).host_command[1:]]
        answer = await ask(
            self._socket, "upgrade", timeout_s=UPGRADE_TIMEOUT_S, command=command, preflight=preflight, pause=pause
        )
        await self.look()
        return answer

    async def give_upgrade_up(self) -> None:
        """Whoever waits in `upgrade` is told that it was, or that it is not."""
        await ask(self._socket, "give-up", timeout_s=ASK_TIMEOUT_S)

    def _note_software(self, command: list[str]) -> None:
        """After its death, too, the machine's hosts are started with what they were upgraded to."""
        if command == self._host_command:
            return
        path = self._folder / "machine.json"
        config = MachineConfig.read(str(path))
        if config.host_command != command:
            write_durably(path, dataclasses.replace(config, host_command=command).to_json())
        self._host_command = command

    def start_again(self, open_image: str) -> None:
        """A machine that was off, from its image. Raises an EverramError; it is off still."""
        assert self.state == "off"
        self.choose_image(open_image)
        self.cut_off_power = False
        self.start()

    async def retry(self, open_image: str) -> None:
        """A host that has refused to start for want of a choice, once more. Raises Unavailable."""
        self.choose_image(open_image)
        with suppress(FailedPrecondition):  # another one was faster
            await ask(self._socket, "retry-host", timeout_s=ASK_TIMEOUT_S)
        self.host_state, self._settled = "starting", asyncio.Event()

    def choose_image(self, open_image: str) -> None:
        """What its host opens at its next start though it may not be opened silently; empty: nothing."""
        path = self._folder / "host.json"
        config = HostConfig.read(str(path))
        if config.open_image != open_image:
            write_durably(path, dataclasses.replace(config, open_image=open_image).to_json())

    def _check_up(self) -> None:
        if self.state != "up":
            raise FailedPrecondition(f"{self.name} is {self.state}: nothing of it can be broken now")

    async def heal_host(self) -> bool:
        """Wait until a host that is down or hangs is ready again, helping where that helps; whether there was one.

        Raises Unavailable if it does not become ready.
        """
        await self.look()
        hung = self.host_pid if self._host_is_stopped() else 0
        if self.host_state == "ready" and not hung:
            return False
        if self.host_state in ("down", "refused"):
            with suppress(FailedPrecondition):  # the machine was faster
                await ask(self._socket, "retry-host", timeout_s=ASK_TIMEOUT_S)
        try:
            async with asyncio.timeout(HEAL_TIMEOUT_S):
                while self.host_state != "ready" or self.host_pid == hung:
                    await asyncio.sleep(LOOK_WHILE_STARTING_S)
                    await self.look()
        except TimeoutError:
            words = self._last_words("host.log")
            raise Unavailable(f"the host of {self.name} is {self.host_state} still{words}") from None
        return True

    def _host_is_stopped(self) -> bool:
        """What the machine's watchdog finds out a moment later."""
        process = read_process(self.host_pid) if self.host_pid else None
        return process is not None and process.state in "Tt"

    @asynccontextmanager
    async def _host(self) -> AsyncIterator[Carrier]:
        from everram.runtime.transport.channel_carrier import ChannelCarrier

        carrier = ChannelCarrier(f"unix:{self.host_socket}", whom=f"host {self.name}")
        try:
            yield carrier
        finally:
            await carrier.close()

    async def _insist(self, act: Callable[[Carrier], Awaitable[T]]) -> T:
        """Ask the host what may be asked twice, over its restarts. Raises what it says."""
        from everram.runtime.client.cluster import patiently

        async def attempt() -> T:
            if self.state in ("dead", "off"):
                raise FailedPrecondition(f"it is {self.state}: {self.reason}")
            return await act(host)

        child, dead = self._child, self._dead
        async with self._host() as host:
            try:
                return await patiently(attempt, repeatable=True)
            except Unavailable:
                if child is None or not child.ended.is_set():
                    raise
                await dead.wait()  # what was below it is being ended, which may outlast all patience
                return await attempt()

    async def save(self, timeout_s: float) -> SaveReport:
        """Freeze its guests and save its memory. Raises what the host says."""
        from everram.runtime.contracts.power_monitor_contract import PowerMonitorRef
        from everram.runtime.contracts.power_monitor_pb2 import SaveRequest

        request = SaveRequest(cause="down")
        return await self._insist(lambda host: PowerMonitorRef(host).save(request, timeout_s=timeout_s))

    async def resume(self) -> None:
        """Take a save back: its guests go on, and what was saved is out of date. Raises what the host says."""
        from everram.runtime.contracts.common_pb2 import Empty
        from everram.runtime.contracts.power_monitor_contract import PowerMonitorRef

        await self._insist(lambda host: PowerMonitorRef(host).resume(Empty()))

    async def guest_ids(self) -> set[str]:
        """Of the guests that its host has. Raises what the host says."""
        from everram.runtime.contracts.common_pb2 import Empty
        from everram.runtime.contracts.hypervisor_contract import HypervisorRef

        async with self._host() as host:
            return {guest.guest_id for guest in (await HypervisorRef(host).list(Empty())).guests}

    async def stop(self) -> str:
        """End it and everything of it; returns when nothing is left, and why its NVM files would not outlive a stop of
        the computer though they were saved, if so."""
        was_dead = self.state in ("dead", "off")
        self.state = "stopping"
        child = self._child
        if child is None or was_dead:
            return ""
        try:
            await ask(self._socket, "stop", timeout_s=ASK_TIMEOUT_S)
            async with asyncio.timeout(STOP_TIMEOUT_S):
                await child.ended.wait()
        except (EverramError, TimeoutError) as error:
            log.warning("%s does not stop by itself: %s", self.name, error)
            await child.end(grace_s=0.0)
        await asyncio.to_thread(end_marked, self._mark)
        self._children.reap()
        self.state, self.host_state, self.host_pid = "ended", "down", 0
        return await self._finish_files()


async def _first(*works: Coroutine[Any, Any, object]) -> None:
    """Until one of them is done; raises what that one does."""
    tasks = [asyncio.ensure_future(work) for work in works]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        for task in tasks:
            task.cancel()
