"""The supervisor of a local cluster: parent of its machines and of its coordination server, keeper of published ports.

    python -m everram.runtime.cluster.supervisor --config STATE/cluster.json --run RUN [--progress FD]

A daemon, whoever started it; but a temporary cluster is erased when its starter ends (`--starter`). It owns the
cluster's lock for as long as it lives, and what it starts dies with it. It says how it gets on to FD, one JSON object a
line. SIGTERM and SIGINT are the orderly stop: memory saved, machines ended, then coordination. A machine whose process
ends is dead only when nothing of it is left: then, and only then, its host's lease is ended early (D5).
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import json
import logging
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from everram.runtime import json_log
from everram.runtime.cluster.children import Children
from everram.runtime.cluster.config import ClusterConfig
from everram.runtime.cluster.coordination_keeper import CoordinationKeeper
from everram.runtime.cluster.folders import ClusterLock, Folders, SupervisorRecord, write_durably
from everram.runtime.cluster.machine_keeper import MachineKeeper
from everram.runtime.cluster.remains import end_remains
from everram.runtime.errors import (
    EverramError,
    FailedPrecondition,
    Internal,
    InvalidArgument,
    NotFound,
    Unavailable,
)
from everram.runtime.formats.faults import HOST_FAULTS
from everram.runtime.sizes import size_text

if TYPE_CHECKING:
    from everram.runtime.cluster.published import PublishedPorts

GIVE_BACK_S = 1.0
"""For coordination to end the leases of machines that have ended; otherwise they end by themselves."""
SAVE_TIMEOUT_S = 600.0
"""Of one host's memory. Slow disks exist; giving up would lose what is being saved."""
RECORD_RETRY_S = 0.1
"""Between attempts to record a machine's death while no coordination server answers."""

log = logging.getLogger("everram.supervisor")


@dataclass(frozen=True, slots=True)
class Step:
    """One line of progress of a start or a stop."""

    kind: str
    """"step" or "note"; "ready"; "error": the start failed; "stays": a stop failed, and it runs on; "end"."""
    text: str
    error: EverramError | None = None
    seconds: float = 0.0

    def to_json(self) -> str:
        members: dict[str, object] = {"kind": self.kind, "text": self.text}
        if self.kind == "ready":
            members["seconds"] = self.seconds
        if self.error is not None:
            members["fault"] = int(self.error.fault)
        return json.dumps(members) + "\n"


class Announcer:
    """Tells everybody who listens: the starter by its pipe, the log, and whoever asked for the stop."""

    def __init__(self, descriptor: int | None) -> None:
        self._descriptor = descriptor
        self._listeners: list[asyncio.Queue[Step]] = []
        if descriptor is not None:
            os.set_inheritable(descriptor, False)
            os.set_blocking(descriptor, False)

    def say(self, step: Step) -> None:
        log.info("%s", step.text)
        for listener in self._listeners:
            listener.put_nowait(step)  # a start or a stop has a handful of steps
        if self._descriptor is not None:
            try:
                os.write(self._descriptor, step.to_json().encode())
            except (BrokenPipeError, BlockingIOError):
                # The starter has gone, or does not read: it is no part of the cluster.
                os.close(self._descriptor)
                self._descriptor = None

    def listen(self) -> asyncio.Queue[Step]:
        listener: asyncio.Queue[Step] = asyncio.Queue()
        self._listeners.append(listener)
        return listener

    def unlisten(self, listener: asyncio.Queue[Step]) -> None:
        self._listeners.remove(listener)


class Supervisor:
    """See the module. `start` runs before the event loop, `run` in it."""

    def __init__(
        self, config: ClusterConfig, folders: Folders, announcer: Announcer, starter: int | None = None
    ) -> None:
        """`starter`: a pipe that ends with whoever started a temporary cluster."""
        self._starter = starter
        self.config = config
        self.folders = folders
        self.phase = "starting"
        """starting -> up -> stopping -> ended; back to up if a save failed."""
        self._announcer = announcer
        self._began_s = time.monotonic()
        children = self._children = Children()
        self.coordination = CoordinationKeeper(config, folders, children, os.environ)
        self.machines = {h: MachineKeeper(config, folders, h, children, os.environ) for h in config.hosts}
        self.ports: PublishedPorts
        self._stop_wanted = asyncio.Event()
        self._discard = False
        self.discarded = False
        self._tasks: list[asyncio.Task[None]] = []
        self._lives: dict[str, asyncio.Task[None]] = {}
        """Of each machine: until its end, and its death is recorded."""

    def start(self) -> None:
        """Start every process, before anything slow is imported."""
        self.coordination.start()
        for machine in self.machines.values():
            machine.start()

    async def run(self) -> bool:
        """Until an orderly stop has succeeded; whether the cluster had come up before."""
        from everram.runtime.cluster.published import PublishedPorts

        self.ports = PublishedPorts()
        self._children.watch()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            loop.add_signal_handler(number, self._stop_wanted.set)
        if self._starter is not None:
            loop.add_reader(self._starter, self._abandon, self._starter)
        self._own(self.coordination.run(self._step, self._note), "coordination")
        for machine in self.machines.values():
            self._lives[machine.name] = self._own(self._live(machine), machine.name)
        self._own(self.ports.follow(self.coordination.client), "published ports")
        came_up = waiting = await self._come_up()
        while True:
            if waiting:
                await self._stop_wanted.wait()
            try:
                await self._stop(discard=self._discard, only_ready=not came_up)
                return came_up
            except EverramError as error:
                self._stop_wanted.clear()
                self._discard, self.phase, waiting = False, "up", True
                self._announcer.say(Step("stays", error.message, error))

    def _abandon(self, starter: int) -> None:
        """Nobody is left who knows of this cluster."""
        asyncio.get_running_loop().remove_reader(starter)
        self._discard = True
        self._stop_wanted.set()

    def _step(self, text: str) -> None:
        self._announcer.say(Step("step", text))

    def _note(self, text: str) -> None:
        self._announcer.say(Step("note", text))

    def _own(self, work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work, name=name)
        task.add_done_callback(self._task_ended)
        self._tasks.append(task)
        return task

    def _task_ended(self, task: asyncio.Task[None]) -> None:
        """A bug in a keeper, or a cluster that cannot go on: stop in order rather than go on half blind."""
        if task.cancelled() or task.exception() is None:
            return
        log.error("%s failed", task.get_name(), exc_info=task.exception())
        self._stop_wanted.set()

    async def _come_up(self) -> bool:
        """Wait until every host is ready, or one never will be; whether the cluster is up."""
        waits = [asyncio.create_task(machine.wait_ready()) for machine in self.machines.values()]
        waits.append(asyncio.create_task(self.coordination.wait_ready()))
        stop = asyncio.create_task(self._wait_stop_wanted())
        try:
            while not all(wait.done() for wait in waits) and not stop.done():
                pending = [task for task in (*waits, stop) if not task.done()]
                await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
                for wait in waits:
                    if wait.done() and isinstance(error := wait.exception(), EverramError):
                        self._announcer.say(Step("error", error.message, error))
                        return False
        finally:
            for task in (*waits, stop):
                task.cancel()
            await asyncio.gather(*waits, stop, return_exceptions=True)
        if self._stop_wanted.is_set():
            return self._no_task_failed()
        await self._forget_lost()
        for machine in self.machines.values():
            for fault in machine.faults:  # of its disk: it lies in its folder
                words = f"{machine.name} still has the fault {fault}: `everram fault heal {machine.name}` ends it"
                self._announcer.say(Step("note", words))
        self.phase = "up"
        gc.freeze()  # what the start made stays for good: nobody has to look through it again
        self._announcer.say(Step("ready", "ready", seconds=time.monotonic() - self._began_s))
        return True

    async def _forget_lost(self) -> None:
        """Say which guests the machines' memory did not bring back, and let go of their names."""
        from everram.runtime.cluster.lost_guests import forget_lost

        try:
            lost = await forget_lost(self.coordination.client, self._guest_ids)
        except EverramError as error:
            log.warning("lost guests, if any, stay in the directory: %s", error.message)
            return
        for name, host in lost:
            self._announcer.say(Step("note", f"guest {name} is lost: it is not in the memory that {host} started with"))

    async def _guest_ids(self, host: str) -> set[str] | None:
        return await self.machines[host].guest_ids() if host in self.machines else None

    async def _wait_stop_wanted(self) -> None:
        await self._stop_wanted.wait()

    def _no_task_failed(self) -> bool:
        """Otherwise its failure is announced as the reason of the stop."""
        for task in self._tasks:
            if task.done() and not task.cancelled() and (error := task.exception()) is not None:
                said = error if isinstance(error, EverramError) else Internal(f"{task.get_name()}: {error}")
                self._announcer.say(Step("error", said.message, said))
                return False
        return True

    # -- lives and deaths of machines

    async def _live(self, machine: MachineKeeper) -> None:
        """From a machine's start to its end, as the directory has it."""
        alive = asyncio.get_running_loop().create_task(self._record(machine.name, "up"))

        async def died(machine: MachineKeeper) -> None:
            await alive  # the later word is the one that stays
            await self._machine_died(machine)

        try:
            await machine.run(self._step, died)
        finally:
            alive.cancel()

    async def _record(self, host: str, state: str) -> None:
        """Say in the directory whether the machine is up or dead."""
        from everram.runtime.coordination import directory
        from everram.runtime.coordination.api import Put

        put = Put(directory.machine_key(host), directory.encode({"state": state}))
        await self.coordination.wait_ready()
        await self._insist(lambda: self.coordination.client.put(put), f"that {host} is {state} is not recorded yet")

    async def _machine_died(self, machine: MachineKeeper) -> None:
        """Proof of death is there: its host's lease may end now, and whoever waits for its guests' places need not.

        The death is recorded first, so that nobody finds the lease gone and does not know why.
        """
        self.ports.set_cut(machine.name, False)
        proven_s = time.monotonic()
        await self._record(machine.name, machine.state)
        await self._insist(lambda: self._end_leases(machine.name), f"the lease of {machine.name} is not ended yet")
        log.info(
            "the death of %s was proven %.0f ms after its process had ended, and its lease ended %.0f ms later",
            machine.name,
            1000 * (proven_s - machine.ended_s),
            1000 * (time.monotonic() - proven_s),
        )

    async def _end_leases(self, host: str) -> None:
        """Of its place in the directory, and of guests that it served."""
        from everram.runtime.coordination import directory
        from everram.runtime.coordination.api import Range, prefix

        client = self.coordination.client
        read = await client.txn((), (Range(directory.host_key(host)), prefix(directory.SERVING)))
        (place, serving) = read.ranges
        leases = {pair.lease for pair in place}
        leases |= {pair.lease for pair in serving if directory.decode(pair.value).get("host") == host}
        for lease in sorted(leases - {0}):
            with contextlib.suppress(NotFound):  # it ran out by itself
                await client.lease_revoke(lease)

    async def _give_leases_back(self) -> None:
        """Every machine has ended, so the next start need not wait for leases that nobody holds."""
        try:
            async with asyncio.timeout(GIVE_BACK_S):
                for host in self.machines:
                    await self._end_leases(host)
        except (EverramError, TimeoutError) as error:
            log.warning("leases run out by themselves: %s", error)

    async def _insist(self, act: Callable[[], Awaitable[object]], why: str) -> None:
        """Until it succeeds: coordination may be dead for a moment too. It is ended with the supervisor."""
        said = False
        while True:
            try:
                await act()
                return
            except EverramError as error:
                if not said:
                    log.warning("%s: %s", why, error.message)
                said = True
            await asyncio.sleep(RECORD_RETRY_S)

    async def _revive(self, machine: MachineKeeper) -> None:
        """Start a dead machine again, empty; returns when its host is ready. Raises an EverramError if it is not."""
        await asyncio.wait([self._lives[machine.name]])
        self.check_up()
        if machine.state == "dead":  # nobody else was faster
            aside = machine.start_empty()
            saved = f"; what was saved of it before is in {aside}" if aside else ""
            memory = "what its NVM files hold" if self.config.nvm_files else "empty memory"
            self._announcer.say(Step("note", f"{machine.name} starts again, with {memory}{saved}"))
            self._lives[machine.name] = self._own(self._live(machine), machine.name)
        await machine.wait_ready()

    # -- the orderly stop

    async def _stop(self, *, discard: bool, only_ready: bool) -> None:
        """Raises an EverramError, with everything running, if a memory cannot be saved.

        `only_ready`: the cluster never came up, so a host that is not ready has nothing that is not in its image.
        """
        self.phase = "stopping"
        if not discard:
            await self._save_all(only_ready)
        complaints = await asyncio.gather(*(machine.stop() for machine in self.machines.values()))
        for name, why in zip(self.machines, complaints, strict=True):
            if why and not discard:
                self._announcer.say(Step("note", f"{name} is not known to outlive a stop of this computer: {why}"))
        self._step("machines have ended")
        await self._give_leases_back()
        await self.ports.close()
        await self.coordination.stop()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._step("coordination has ended")
        self.phase, self.discarded = "ended", discard

    async def _save_all(self, only_ready: bool) -> None:
        living = [m for m in self.machines.values() if m.has_memory and (m.host_state == "ready" or not only_ready)]
        for machine in self.machines.values():
            if machine not in living and not only_ready:
                why = machine.reason or f"its host is {machine.host_state}"
                self._announcer.say(Step("note", f"{machine.name} is not saved: {why}"))
        results = await asyncio.gather(*(machine.save(SAVE_TIMEOUT_S) for machine in living), return_exceptions=True)
        errors = []
        for machine, result in zip(living, results, strict=True):
            if isinstance(result, EverramError):
                errors.append(f"{machine.name} cannot be saved: {result.message}")
            elif isinstance(result, BaseException):
                raise result
            else:
                self._step(f"{machine.name}: {size_text(result.saved_bytes)} saved in {result.seconds:.2f} s")
        if errors:
            # All of them: a host that died while it saved has left its machine frozen.
            living = [machine for machine in living if machine.has_memory]
            for machine, outcome in zip(living, await _all(machine.resume() for machine in living), strict=True):
                if outcome is not None:
                    errors.append(f"the guests of {machine.name} stay frozen: {outcome.message}")
            raise FailedPrecondition(
                f"{'; '.join(errors)}. The cluster goes on running: make room or wait, then `everram down` again "
                f"(`everram down --discard` gives its memory up)"
            )

    # -- what the service asks

    @property
    def pid(self) -> int:
        return os.getpid()

    async def look(self) -> None:
        """Bring what is said about the machines up to date."""
        await asyncio.gather(*(machine.look() for machine in self.machines.values()))

    async def down(self, discard: bool) -> AsyncIterator[Step]:
        """The stop's steps, until every process but this one is gone. Raises FailedPrecondition if one is under way."""
        if self._stop_wanted.is_set() or self.phase == "stopping":
            raise FailedPrecondition("the cluster is being stopped already: wait for it")
        listener = self._announcer.listen()
        try:
            self._discard = discard
            self._stop_wanted.set()
            while True:
                step = await listener.get()
                yield step
                if step.kind in ("stays", "end"):
                    return
        finally:
            self._announcer.unlisten(listener)

    def machine(self, name: str) -> MachineKeeper:
        """Raises NotFound."""
        if name not in self.machines:
            raise NotFound(f'no host "{name}": this cluster has {", ".join(self.machines)}')
        return self.machines[name]

    async def fault(self, target: str, name: str) -> None:
        if name not in HOST_FAULTS:
            raise InvalidArgument(f'"{name}" is no fault of a host: choose one of {", ".join(HOST_FAULTS)}')
        self.check_up()
        if name != "partition":
            await self.machine(target).fault(name)
        elif self.machine(target).cut:
            raise FailedPrecondition(f"{target} is cut off already: `everram fault heal {target}` connects it again")
        else:
            await self._set_cut(self.machine(target), True)

    async def heal(self, target: str) -> None:
        """Whatever of it is broken. Raises FailedPrecondition if nothing is."""
        self.check_up()
        machine = self.machine(target)
        if machine.state == "dead":
            machine.heal_disk()
            await self._revive(machine)
            return
        if machine.state == "off":
            raise FailedPrecondition(f"{target} has no power: `everram power on {target}` gives it back")
        broken = await machine.heal_faults()
        was_cut = machine.cut
        if was_cut:
            await self._set_cut(machine, False)
        if not await machine.heal_host() and not was_cut and not broken:
            raise FailedPrecondition(f"nothing of {target} is broken: `everram status` shows how it does")

    async def power(self, targets: Sequence[str], on: bool, open_image: str) -> None:
        """Cut the mains of machines, or give them back; returns when all are off, or at work again. Raises what the
        first of them says that is not."""
        self.check_up()
        machines = [self.machine(target) for target in targets]
        works = [self._power_on(one, open_image) if on else self._power_cut(one) for one in machines]
        for error in await _all(works):
            if error is not None:
                raise error

    async def _power_cut(self, machine: MachineKeeper) -> None:
        if machine.state not in ("up", "off"):
            raise FailedPrecondition(f"{machine.name} is {machine.state}: it uses no power")
        self._step(f"{machine.name}: the mains are cut")
        await machine.cut_power()
        await asyncio.wait([self._lives[machine.name]])  # its end is recorded, and its leases have ended

    async def _power_on(self, machine: MachineKeeper, open_image: str) -> None:
        """Also one that goes off although the mains are back: it had handed its guests over."""
        if machine.state == "dead":
            raise FailedPrecondition(
                f"{machine.name} is dead: `everram fault heal {machine.name}` starts it anew, empty"
            )
        try:
            if machine.host_state == "refused" and open_image:
                await machine.retry(open_image)
            if await machine.restore_power():
                return
            await asyncio.wait([self._lives[machine.name]])
            self.check_up()
            if machine.state == "off":  # nobody else was faster
                machine.start_again(open_image)
                self._lives[machine.name] = self._own(self._live(machine), machine.name)
            await machine.wait_ready()
        finally:
            machine.choose_image("")

    async def _set_cut(self, machine: MachineKeeper, on: bool) -> None:
        await machine.set_cut(on)
        self.ports.set_cut(machine.name, on)

    def check_up(self) -> None:
        """Raises Unavailable if the cluster is on its way down."""
        if self.phase not in ("starting", "up"):
            raise Unavailable("the cluster is being stopped")


async def _all(works: Iterable[Coroutine[Any, Any, None]]) -> list[EverramError | None]:
    """The error of each, None where there was none. Raises anything that is not an EverramError."""
    results = await asyncio.gather(*works, return_exceptions=True)
    for result in results:
        if result is not None and not isinstance(result, EverramError):
            raise result
    return [result if isinstance(result, EverramError) else None for result in results]


async def serve(supervisor: Supervisor, announcer: Announcer) -> bool:
    """Supervise and answer on the socket, to the end; whether the cluster had come up."""
    from everram.runtime.cluster.service import Service

    service = Service(supervisor)
    await service.start()
    try:
        came_up = await supervisor.run()
        if supervisor.discarded:
            supervisor.folders.discard()
        else:
            supervisor.folders.record.unlink(missing_ok=True)
        announcer.say(Step("end", "everything has ended"))
    finally:
        await service.stop()
    return came_up


def _logs_json(path: Path) -> bool:
    try:
        return ClusterConfig.read(path).log_json
    except EverramError:
        return False  # whoever reads it next says what is wrong


def main(argv: list[str] | None = None) -> int:
    """Exit status: 0 after an orderly stop, 1 if the cluster could not start."""
    parser = argparse.ArgumentParser(
        prog="everram.runtime.cluster.supervisor", description="Supervise a local cluster."
    )
    parser.add_argument("--config", required=True, metavar="FILE", help="the cluster's configuration")
    parser.add_argument("--run", required=True, metavar="DIR", help="where its sockets go")
    parser.add_argument("--progress", type=int, metavar="FD", help="descriptor to tell progress to")
    parser.add_argument("--starter", type=int, metavar="FD", help="erase everything when this pipe ends")
    args = parser.parse_args(argv)
    json_log.begin(as_json=_logs_json(Path(args.config)))
    announcer = Announcer(args.progress)
    try:
        return _supervise(Folders(Path(args.config).parent, Path(args.run)), announcer, args.starter)
    except EverramError as error:
        announcer.say(Step("error", error.message, error))
        return 1


def _supervise(folders: Folders, announcer: Announcer, starter: int | None) -> int:
    if starter is not None:
        os.set_inheritable(starter, False)
    lock = ClusterLock.take(folders.lock)
    os.chdir("/")
    os.environ["GRPC_ENABLE_FORK_SUPPORT"] = "false"  # what is forked here only executes another program
    config = ClusterConfig.read(folders.config)
    if left := end_remains(folders):
        announcer.say(Step("note", f"processes that the crashed cluster left were ended ({left})"))
    folders.remove_run()
    folders.make()
    write_durably(folders.record, SupervisorRecord(os.getpid(), str(folders.run)).to_json())
    try:
        supervisor = Supervisor(config, folders, announcer, starter)
        supervisor.start()
        import uvloop

        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            came_up = runner.run(serve(supervisor, announcer))
    finally:
        folders.remove_run()
        lock.release()
    return 0 if came_up else 1


if __name__ == "__main__":
    sys.exit(main())
