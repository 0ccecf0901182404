"""The machine as a process: carries out what its core says, and tells the core what happened.

One thread, one loop. Everything that takes time is a callback of the loop; the only waits are for a child's exec.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import traceback
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from everram.runtime.errors import EverramError, Internal, InvalidArgument, Unimplemented
from everram.runtime.machine import effects as e
from everram.runtime.machine import launch
from everram.runtime.machine.attach import Attachment
from everram.runtime.machine.config import MachineConfig
from everram.runtime.machine.core import MachineCore
from everram.runtime.machine.death import die
from everram.runtime.machine.fdstore import DescriptorStore
from everram.runtime.machine.freezer import (
    CgroupFreezer,
    Freezer,
    SignalFreezer,
    delegate,
    end_cgroup,
    machine_cgroup_name,
)
from everram.runtime.machine.hostlink import HostLink, Reply
from everram.runtime.machine.lives import EXIT_POWER_OFF
from everram.runtime.machine.loop import Loop, Timer
from everram.runtime.machine.ports import Ports
from everram.runtime.machine.protocol import Message, doorbell_name
from everram.runtime.machine.requests import BY_WORD
from everram.runtime.machine.resident import Launch, Resident
from everram.runtime.machine.server import Server
from everram.runtime.machine.successor import Successor
from everram.runtime.machine.tree import (
    MACHINE_MARK,
    blocked_in_faults,
    descendants,
    guest_processes,
    processes,
    send_signal,
    waited_ns,
)
from everram.runtime.machine.upgrades import Upgrades

POLL_FIRST_NS = 200_000
POLL_LIMIT_NS = 50_000_000
"""Looks whether a guest has stopped or is gone: soon at first, then less often, to leave it the processor."""
TRACKED_PER_ANSWER = 128
"""Userfaultfds in one answer, below the kernel's 253 descriptors a message."""


class MachineProcess:
    """`run` returns when the machine has been stopped and nothing of it is left."""

    def __init__(self, config: MachineConfig) -> None:
        """Raises FailedPrecondition if it cannot listen."""
        self.config = config
        self.loop = Loop()
        self.core = MachineCore(config.limits(), self._host_waited_ns)
        self.store = DescriptorStore()
        self.ports = Ports()
        self.residents: dict[str, Resident] = {}
        """By guest_id: the last incarnation of each guest that the core knows and that was started."""
        self.launching: dict[str, Launch] = {}
        self.attachments: dict[str, Attachment] = {}
        self.host_pid = 0
        self.host_incarnation = 0
        self.host_command = config.host_command
        """Of the host software in use."""
        self.link: HostLink | None = None
        self.upgrades = Upgrades(self)
        self._requests = 0
        self._awaited: dict[int, tuple[Reply, Callable[[], Any]]] = {}
        """The host's requests that the core has not ended yet, by number, with what makes the answer."""
        self._effects: deque[e.Effect] = deque()
        self._performing = False
        self._timer: Timer | None = None
        launch.become_subreaper()
        os.makedirs(config.state_dir, mode=0o700, exist_ok=True)  # noqa: PTH103 (pathlib is slow to import)
        self.server = Server(self, config.socket)
        self.cgroup = delegate(machine_cgroup_name(config.mark)) if config.freezer == "auto" else ""

    def run(self) -> None:
        self.loop.on_signal(signal.SIGCHLD, self._reap)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            self.loop.on_signal(number, self.stop)
        self.loop.log(f"machine {self.config.mark} serves at {self.config.socket}")
        self.feed(self.core.start(self.now_ns()))
        self.loop.run()
        self.loop.close()

    def now_ns(self) -> int:
        return self.loop.now_ns()

    def stop(self) -> None:
        self.feed(self.core.stop(self.now_ns()))

    # -- the core ------------------------------------------------------------------------------------------------------

    def feed(self, effects: list[e.Effect]) -> None:
        """Carry these out, after those under way; what they cause comes last."""
        self._effects.extend(effects)
        if self._performing:
            return
        self._performing = True
        try:
            while self._effects:
                self._perform(self._effects.popleft())
        finally:
            self._performing = False
            self._arm()
            if self._effects:  # one failed; those after it are carried out all the same
                self.loop.at(self.now_ns(), lambda: self.feed([]))

    def expect(self, reply: Reply, payload: Callable[[], Any] = lambda: None) -> int:
        """The number of a new request; when it is done, `payload` makes the answer."""
        self._requests += 1
        self._awaited[self._requests] = (reply, payload)
        return self._requests

    def forget_requests(self) -> None:
        """The host that made them does not wait any more."""
        self._awaited.clear()

    def ask(self, request: int, event: Callable[[int], list[e.Effect]]) -> None:
        """Give the core a request with this number; its refusal is raised."""
        try:
            effects = event(self.now_ns())
        except EverramError:
            del self._awaited[request]
            raise
        self.feed(effects)

    def _arm(self) -> None:
        due = self.core.next_deadline_ns()
        if self._timer is not None and self._timer.at_ns == due and self._timer.callback is not None:
            return
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self.loop.at(due, self._tick) if due is not None else None

    def _tick(self) -> None:
        self._timer = None
        self.feed(self.core.tick(self.now_ns()))

    def _perform(self, effect: e.Effect) -> None:
        match effect:
            case e.StartHost(incarnation):
                self._start_host(incarnation)
            case e.KillHost(why):
                if why:
                    self.loop.log(f"process {self.host_pid} is killed: {why}")
                self._signal_host(signal.SIGKILL)
            case e.HangHost():
                self._signal_host(signal.SIGSTOP)
            case e.CloseHost():
                self._close_host()
            case e.SpawnGuest(guest_id):
                self._spawn(guest_id)
            case e.StopGuest(guest_id):
                self._stop_guest(guest_id)
            case e.ContinueGuest(guest_id):
                self._new_order(guest_id).freezer.resume()
            case e.KillGuest(guest_id):
                self._kill_guest(guest_id)
            case e.Admit(guest_id):
                self.attachments[guest_id].admit()
            case e.Notify():
                self._notify(effect)
            case e.Done(request):
                reply, payload = self._awaited.pop(request)
                reply(payload())
            case e.Failed(request, error):
                self._awaited.pop(request)[0].fail(error)
            case e.StartSuccessor(incarnation):
                self.upgrades.start(incarnation)
            case e.EndSuccessor():
                self.upgrades.end_successor()
            case e.HandOver():
                self.upgrades.hand_over()
            case e.PassMemory():
                self.upgrades.pass_memory()
            case e.UseFormer():
                self.upgrades.use_former()
            case e.Upgraded(error):
                self.upgrades.ended(error)
            case e.PowerOff(why):
                self.loop.log(f"no power any more: {why}")
                die(self, EXIT_POWER_OFF)
            case e.End():
                self._end()

    # -- the host ------------------------------------------------------------------------------------------------------

    def _start_host(self, incarnation: int) -> None:
        self.upgrades.leave()  # its successor may have died before the memory was passed to it
        self.host_incarnation = incarnation
        gone = partial(self._host_disconnected, incarnation)
        try:
            self.host_pid, self.link = self.launch_host(
                self.host_command, incarnation, self.store.items(), self.on_message, gone
            )
        except EverramError as error:
            self.loop.log(f"the host cannot be started: {error.message}")
            self.feed(self.core.host_exited(self.now_ns(), incarnation))
            return
        self.loop.log(f"host started, process {self.host_pid}, incarnation {incarnation}")

    def launch_host(
        self,
        command: Sequence[str],
        incarnation: int,
        kept: Sequence[tuple[str, int]],
        handle: Callable[[Message], None],
        gone: Callable[[], None],
        *,
        successor: bool = False,
    ) -> tuple[int, HostLink]:
        """Its process and our end of its socket. Raises what the program cannot be executed for."""
        config = self.config
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        environment = {key: value for key, value in os.environ.items() if key not in NOT_INHERITED}
        environment |= {**config.host_environment, MACHINE_MARK: config.mark}
        program = launch.Program(
            argv=[os.fsencode(word) for word in command],
            working_directory=os.fsencode(config.state_dir),
            environment={os.fsencode(key): os.fsencode(value) for key, value in environment.items()},
            output_path=f"{config.state_dir}/host.log",
            listen_fds=[("machine", theirs.fileno()), *kept],
            background=successor,
        )
        try:
            pid = launch.start(program).pid
        except EverramError:
            ours.close()
            raise
        finally:
            theirs.close()
        link = HostLink(self.loop, ours, handle, gone)
        link.hello(
            {
                "machine": config.machine,
                "incarnation": incarnation,
                "memory_bytes": config.memory_bytes,
                "watchdog_timeout_s": config.watchdog_timeout_s,
                "state_dir": config.state_dir,
                "mains": self.core.mains,
                "battery_s": config.battery_s,
                "connected": not self.core.cut,
                "weather": self.core.weather,
                "successor": successor,
            }
        )
        return pid, link

    def adopt(self, successor: Successor) -> None:
        """It is the host from now on."""
        self.host_pid, self.link = successor.pid, successor.link
        self.host_incarnation, self.host_command = successor.incarnation, successor.command
        successor.link.handle = self.on_message
        successor.link.gone = partial(self._host_disconnected, successor.incarnation)
        self.loop.log(f"host is now process {self.host_pid}, incarnation {self.host_incarnation}")

    def _host_waited_ns(self) -> int:
        return waited_ns(self.host_pid) if self.host_pid else 0

    def _signal_host(self, number: int) -> None:
        if self.host_pid:
            send_signal(self.host_pid, number)

    def _close_host(self) -> None:
        if self.link is not None:
            self.link.close()
            self.link = None

    def _host_disconnected(self, incarnation: int) -> None:
        if incarnation == self.host_incarnation:
            self.link = None
        self.feed(self.core.host_disconnected(self.now_ns(), incarnation))

    def _host_ended(self, exit_status: int) -> None:
        self.loop.log(f"host ended, process {self.host_pid}, status {exit_status}")
        link, incarnation, self.host_pid = self.link, self.host_incarnation, 0
        if link is not None:
            # What it sent before it died counts, above all the descriptors of memory it had just made.
            link.drain()
            link.close()
        if self.link is link:  # otherwise its last word was that it had handed over
            self.link = None
            self.forget_requests()
        self.feed(self.core.host_exited(self.now_ns(), incarnation, exit_status))

    def on_message(self, message: Message) -> None:
        """Owns the message's descriptors: `_store` takes the one it keeps, the rest are closed."""
        assert self.link is not None
        words = message.words
        reply = Reply(self.link, words.get("ID", ""), self.loop.log)
        try:
            if words.get("READY") == "1":
                self.feed(self.core.host_ready(self.now_ns(), self.host_incarnation))
            if words.get("WATCHDOG") == "1":
                self.feed(self.core.host_alive(self.now_ns(), self.host_incarnation))
            if words.get("FDSTORE") == "1" or words.get("FDSTOREREMOVE") == "1":
                self._store(message, reply)
            if "DO" in words:
                self._do(words["DO"], message.payload, reply)
        except EverramError as error:
            reply.fail(error)
        except Exception as error:
            # A machine that ended of its own mistake would take all memory with it.
            self.loop.log(f"mistake in the machine, at {words}: {traceback.format_exc()}")
            reply.fail(Internal(f"the machine made a mistake, see its log: {error!r}"))
        finally:
            message.close()

    def _store(self, message: Message, reply: Reply) -> None:
        name = message.words.get("FDNAME", "stored")
        if message.words.get("FDSTOREREMOVE") == "1":
            self.store.remove(name)
        elif len(message.fds) != 1:
            raise InvalidArgument(f"FDSTORE=1 carries one descriptor, not {len(message.fds)}")
        else:
            self.store.put(name, message.fds[0])
            message.fds.clear()
        reply()

    def _do(self, word: str, payload: Any, reply: Reply) -> None:
        if word not in BY_WORD:
            raise Unimplemented(f"this machine does not know the word {word}")
        if not isinstance(payload, dict | None):
            raise InvalidArgument(f"the payload of {word} is not a JSON object")
        BY_WORD[word](self, payload or {}, reply)

    def _notify(self, notice: e.Notify) -> None:
        if self.link is None:
            # The next host asks for everything as it is.
            return
        payload = {name: getattr(notice, name) for name in NOTIFY_MEMBERS}
        fds: list[int] = []
        tracking = self.residents[notice.guest_id].tracking if notice.kind == "attached" else None
        if tracking is not None:
            payload["ranges"], fds = tracking.ranges, [tracking.userfaultfd]
        if self.link.event(notice.kind, payload, fds) and tracking is not None:
            tracking.told = self.host_incarnation

    def untold_tracking(self) -> tuple[list[dict[str, Any]], list[int]]:
        """The "attached" events this host has not got yet, and their userfaultfds in the same order."""
        events: list[dict[str, Any]] = []
        fds: list[int] = []
        for guest_id, resident in sorted(self.residents.items()):
            tracking, guest = resident.tracking, self.core.guests[guest_id]
            if tracking is None or tracking.told == self.host_incarnation or len(fds) == TRACKED_PER_ANSWER:
                continue
            tracking.told = self.host_incarnation
            fds.append(tracking.userfaultfd)
            event = {"guest_id": guest_id, "epoch": guest.epoch, "pid": guest.attached_pid}
            events.append(event | {"ranges": tracking.ranges, "served": tracking.served})
        return events, fds

    # -- guests --------------------------------------------------------------------------------------------------------

    def _spawn(self, guest_id: str) -> None:
        wanted = self.launching.pop(guest_id)
        cgroup = f"{self.cgroup}/{guest_id}" if self.cgroup else ""
        if cgroup:
            os.makedirs(cgroup, mode=0o755, exist_ok=True)  # noqa: PTH103
        program = wanted.program(
            mark=self.config.mark,
            attach=self.config.socket,
            state_dir=self.config.state_dir,
            bin_dir=os.path.dirname(sys.executable),  # noqa: PTH120
            cgroup=cgroup,
        )
        try:
            if doorbell_name(guest_id) not in self.store:
                self.store.put(doorbell_name(guest_id), os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK))
            started = launch.start(program)
        except EverramError as error:
            if cgroup:
                end_cgroup(cgroup)
            self.feed(self.core.spawn_failed(self.now_ns(), guest_id, error))
            return
        freezer: Freezer
        if started.in_cgroup:
            freezer = CgroupFreezer(cgroup, lambda: self._blocked(guest_id))
        else:
            freezer = SignalFreezer(
                lambda: guest_processes(os.getpid(), self.config.mark, guest_id, started.pid),
                lambda: self._blocked(guest_id),
            )
        self.residents[guest_id] = Resident(wanted, freezer)
        self.loop.log(f"guest {guest_id} started, process {started.pid}, epoch {wanted.epoch}")
        self.feed(self.core.guest_spawned(self.now_ns(), guest_id, started.pid))

    def _blocked(self, guest_id: str) -> int:
        """How many of its threads wait for a host to serve a fault."""
        tracking = self.residents[guest_id].tracking
        return blocked_in_faults(tracking.userfaultfd) if tracking is not None else 0

    def _new_order(self, guest_id: str) -> Resident:
        """Ends the polling for the order before."""
        resident = self.residents[guest_id]
        if resident.poll is not None:
            resident.poll.cancel()
            resident.poll = None
        return resident

    def _stop_guest(self, guest_id: str) -> None:
        resident = self._new_order(guest_id)
        resident.freezer.stop()
        self._poll(resident, resident.freezer.is_stopped, self.core.guest_stopped, POLL_FIRST_NS)

    def _kill_guest(self, guest_id: str) -> None:
        resident = self._new_order(guest_id)
        self._poll(resident, lambda: self._is_gone(guest_id), self._guest_gone, POLL_FIRST_NS)

    def _poll(
        self, resident: Resident, is_done: Callable[[], bool], event: Callable[[int, str], list[e.Effect]], wait_ns: int
    ) -> None:
        """Look now, and again after longer and longer, until it is done; then tell the core."""
        if is_done():
            resident.poll = None
            self.feed(event(self.now_ns(), resident.launch.guest_id))
            return
        longer_ns = min(2 * wait_ns, POLL_LIMIT_NS)
        resident.poll = self.loop.at(self.now_ns() + wait_ns, lambda: self._poll(resident, is_done, event, longer_ns))

    def _is_gone(self, guest_id: str) -> bool:
        """Everything is killed and the program's own process reaped (by `_reap`, which a poll must not forestall)."""
        return self.residents[guest_id].freezer.is_gone() and self.core.guests[guest_id].exit_status >= 0

    def _guest_gone(self, now_ns: int, guest_id: str) -> list[e.Effect]:
        resident = self.residents[guest_id]
        if guest_id in self.attachments:
            self.attachments[guest_id].end()
        resident.drop_tracking()
        resident.freezer.close()
        return self.core.guest_gone(now_ns, guest_id)

    def end_replaced(self, guest_id: str, pid: int) -> None:
        """A process that asks anew after its connection ended has become another program: its attachment is void."""
        attachment = self.attachments.get(guest_id)
        if attachment is not None and attachment.pid == pid and not attachment.connected:
            attachment.end()

    # -- ends ----------------------------------------------------------------------------------------------------------

    def _reap(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            self.loop.call(partial(self._ended, pid, exit_status_of(status)))

    def _ended(self, pid: int, exit_status: int) -> None:
        if pid == self.host_pid:
            self._host_ended(exit_status)
            return
        if self.upgrades.reaped(pid, exit_status):
            return
        for guest in self.core.guests.values():
            if guest.live_pid == pid and guest.exit_status < 0:
                self.loop.log(f"guest {guest.guest_id} ended, process {pid}, status {exit_status}")
                self.feed(self.core.guest_exited(self.now_ns(), guest.guest_id, exit_status))
                break
        # Any process that ended may have been the last of a guest that is being killed.
        for guest_id, resident in self.residents.items():
            if resident.poll is not None and self.core.guests[guest_id].state == "ending":
                self._kill_guest(guest_id)

    def _end(self) -> None:
        """Whatever still hangs below this process ends before it: orphans without a mark, a host's helpers."""
        below = descendants(processes(), {os.getpid()}) - {os.getpid()}
        for pid in below:
            send_signal(pid, signal.SIGKILL)
        if below or (self.cgroup and not end_cgroup(self.cgroup)):
            self._reap()
            self.loop.at(self.now_ns() + POLL_LIMIT_NS, self._end)
            return
        self.loop.log(f"machine {self.config.mark} has ended")
        self.store.close()
        self.server.close()
        self.loop.stop()


NOT_INHERITED = frozenset(
    {"NOTIFY_SOCKET", "LISTEN_FDS", "LISTEN_FDNAMES", "LISTEN_PID", "WATCHDOG_USEC", "WATCHDOG_PID"}
)
"""What a service manager told this process is not meant for the host."""
NOTIFY_MEMBERS = ("guest_id", "epoch", "exit_status", "pid", "mains", "connected", "weather", "reason", "deadline_ns")


def exit_status_of(status: int) -> int:
    """Of a wait status: the exit code, or 128 + signal."""
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else 128 - code
