"""`environment.Machine` over the socket that the machine gave this host, with the words of `machine.protocol`.

    machine = await connect()
    await machine.ready()

The host is nothing without its machine: when the socket closes, this process ends at once.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import Any

from everram.runtime.environment import GuestLaunch, GuestProcess, MachineEvent, TrackedRange
from everram.runtime.errors import FailedPrecondition, InvalidArgument, Unavailable
from everram.runtime.machine import protocol
from everram.runtime.machine.protocol import Message, doorbell_name

FIRST_LISTEN_FD = 3
"""systemd's SD_LISTEN_FDS_START."""
PINGS_PER_TIMEOUT = 5
"""So that a few may be late before the watchdog bites."""
EXIT_MACHINE_GONE = 70
"""EX_SOFTWARE of sysexits.h; nobody is left to read it."""

log = logging.getLogger(__name__)


def inherited() -> dict[str, int]:
    """The descriptors by name; from now on no child inherits them. Raises FailedPrecondition without a machine."""
    environ = os.environ
    names = environ.get("LISTEN_FDNAMES", "").split(":")
    if environ.get("LISTEN_PID") != str(os.getpid()) or environ.get("LISTEN_FDS") != str(len(names)):
        raise FailedPrecondition("a host is started by its machine: everram machine --config FILE")
    fds = {name: fd for fd, name in enumerate(names, FIRST_LISTEN_FD)}
    for fd in fds.values():
        os.set_inheritable(fd, False)
    for variable in ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"):
        del environ[variable]
    if "machine" not in fds:
        raise FailedPrecondition("the machine gave this host no socket named machine")
    return fds


async def connect(on_end: Callable[[], None] | None = None) -> SystemMachine:
    """This host's machine, once it has said hello.

    `on_end` is called when the machine has closed the socket; by default the process ends there and then.
    Raises FailedPrecondition without a machine, or with one of another version.
    """
    fds = inherited()
    sock = socket.socket(fileno=fds.pop("machine"))
    machine = SystemMachine(sock, fds, on_end or (lambda: os._exit(EXIT_MACHINE_GONE)))
    await machine.greeted()
    return machine


class SystemMachine:
    """The other end of the machine's socket. All calls may raise Unavailable if the machine goes."""

    def __init__(self, sock: socket.socket, kept: dict[str, int], on_end: Callable[[], None]) -> None:
        self.kept: dict[str, int] = kept
        """Descriptors that the machine keeps, by name; changed by `keep` and `drop` only."""
        self.watchdog_interval_s = 0.1
        self.mains = True
        self.battery_s = 0.0
        self.connected = True
        """Whether the machine is connected to the network."""
        self.on_network: Callable[[bool], None] = lambda connected: None
        """Called at every change of `connected`, before the event is seen by anybody."""
        self.weather = ""
        """The fault of the machine's links; empty: none."""
        self.on_weather: Callable[[str], None] = lambda name: None
        """Called at every change of it."""
        self.on_hand_over: Callable[[], None] = lambda: None
        """Called when the host software is upgraded: this host is to finish, let go, and say `handed_over`."""
        self.hands_over = False
        """Whether it was called."""
        self.successor_socket = ""
        """Then where the successor listens."""
        self.is_successor = False
        """Whether this process has no memory before it has `judged` what there is, and `taken` it."""
        self.memory_bytes = 0
        self._taken: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._sock = sock
        self._on_end = on_end
        self._loop = asyncio.get_running_loop()
        self._hello: asyncio.Future[Any] = self._loop.create_future()
        self._answers: dict[str, asyncio.Future[Message]] = {}
        self._requests = 0
        self._backlog: deque[Message] = deque()
        self._events: asyncio.Queue[MachineEvent | None] = asyncio.Queue()
        self._power_events: asyncio.Queue[MachineEvent | None] = asyncio.Queue()
        sock.setblocking(False)
        self._loop.add_reader(sock.fileno(), self._on_readable)
        self._post(Message({"EVERRAM": str(protocol.VERSION)}))

    async def greeted(self) -> None:
        """Raises FailedPrecondition, Unavailable."""
        hello = await self._hello
        self.mains = bool(hello["mains"])
        self.battery_s = float(hello.get("battery_s", 0.0))
        self._set_network(bool(hello.get("connected", True)), str(hello.get("weather", "")))
        self.memory_bytes = int(hello["memory_bytes"])
        self.watchdog_interval_s = float(hello["watchdog_timeout_s"]) / PINGS_PER_TIMEOUT
        self.is_successor = bool(hello.get("successor", False))

    def close(self) -> None:
        """Before the process ends in order; the machine starts another host."""
        if self._sock.fileno() >= 0:
            self._loop.remove_reader(self._sock.fileno())
            self._loop.remove_writer(self._sock.fileno())
            self._sock.close()
            self._fail_all(Unavailable("the host has closed its machine's socket"))

    # -- environment.Machine -------------------------------------------------------------------------------------------

    async def ready(self) -> None:
        self._post(Message({"READY": "1"}))

    def alive(self) -> None:
        if not self._backlog:
            self._post(Message({"WATCHDOG": "1"}))

    async def spawn(self, launch: GuestLaunch) -> GuestProcess:
        # The doorbell is this host's own from the beginning, so that it may listen before the guest rings.
        self.doorbell(launch.guest_id)
        return _process(await self._ask("spawn", _launch_payload(launch)))

    async def freeze(self, guest_id: str, reason: str) -> None:
        await self._ask("freeze", {"guest_id": guest_id, "reason": reason})

    async def thaw(self, guest_id: str, reason: str) -> None:
        await self._ask("thaw", {"guest_id": guest_id, "reason": reason})

    async def signal(self, guest_id: str, signal_number: int) -> None:
        await self._ask("signal", {"guest_id": guest_id, "signal_number": signal_number})

    async def kill(self, guest_id: str) -> GuestProcess:
        return _process(await self._ask("kill", {"guest_id": guest_id}))

    async def forget(self, guest_id: str) -> None:
        await self._ask("forget", {"guest_id": guest_id})
        fd = self.kept.pop(doorbell_name(guest_id), -1)
        if fd >= 0:
            os.close(fd)

    async def admit(self, guest_id: str, pid: int, *, served: bool) -> None:
        await self._ask("admit", {"guest_id": guest_id, "pid": pid, "served": served})

    async def guests(self) -> list[GuestProcess]:
        return [_process(payload) for payload in await self._ask("guests", {})]

    async def tracked(self) -> list[MachineEvent]:
        found: list[MachineEvent] = []
        while True:
            message = await self._request(Message({"DO": "tracked"}, {}))
            events = [_event("attached", payload, fd) for payload, fd in zip(message.payload, message.fds, strict=True)]
            if not events:
                return found
            found += events

    async def lease(self, deadline_ns: int) -> None:
        await self._ask("lease", {"deadline_ns": deadline_ns})

    async def free_port(self) -> int:
        return int(await self._ask("free-port", {}))

    async def events(self) -> AsyncIterator[MachineEvent]:
        while (event := await self._events.get()) is not None:
            yield event

    async def power_events(self) -> AsyncIterator[MachineEvent]:
        while (event := await self._power_events.get()) is not None:
            yield event

    async def report_mains(self, on: bool) -> None:
        await self._ask("mains", {"on": on})

    async def power_off(self) -> None:
        await self._ask("power-off", {})

    async def power_kept(self) -> None:
        await self._ask("power-kept", {})

    # -- the upgrade of the host software: `runtime.machine.successor` -------------------------------------------------

    async def kept_names(self, prefixes: Sequence[str]) -> list[str]:
        """Of the memory objects whose names begin so; none where the machine is of a version that cannot say. Of a
        successor."""
        try:
            return [str(name) for name in await self._ask("kept", {"prefixes": list(prefixes)})]
        except FailedPrecondition:
            return []

    async def peek(self, names: Sequence[str]) -> dict[str, int]:
        """Descriptors that only read, the caller's, of those of the memory objects that there are. Of a successor."""
        message = await self._request(Message({"DO": "peek"}, {"names": list(names)}))
        return dict(zip(message.payload, message.fds, strict=True))

    async def judged(self, reasons: Sequence[str], said: Mapping[str, Any]) -> None:
        """Why this successor cannot take the memory; no reasons: it can."""
        await self._ask("verdict", {**said, "reasons": list(reasons)})

    async def taken(self) -> None:
        """Returns when everything that the machine keeps is in `kept`: this process is the host now, and no longer one
        that leaves the processor to others."""
        await self._taken
        os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
        if os.geteuid() == 0:
            os.setpriority(os.PRIO_PROCESS, 0, os.getpriority(os.PRIO_PROCESS, os.getppid()))

    async def ingested(self) -> None:
        await self._ask("ingested", {})

    async def handed_over(self) -> None:
        """This host has let go of everything: from now on it is another's."""
        await self._ask("handed-over", {})

    def _take(self, message: Message) -> None:
        self.kept.update(zip(message.payload["names"], message.fds, strict=True))
        message.fds.clear()
        if message.payload["last"]:
            self._taken.set_result(None)

    # -- descriptors ---------------------------------------------------------------------------------------------------

    async def keep(self, name: str, fd: int) -> None:
        """Takes `fd` over, here and at the machine, which has it when this returns. Raises AlreadyExists."""
        self.kept[name] = fd
        try:
            await self._request(Message({"FDSTORE": "1", "FDNAME": name}, fds=[os.dup(fd)]))
        except BaseException as error:
            del self.kept[name]
            os.close(fd)
            if isinstance(error, asyncio.CancelledError):
                # The machine may have it by now.
                self._post(Message({"FDSTOREREMOVE": "1", "FDNAME": name}))
            raise

    async def drop(self, name: str) -> None:
        await self._request(Message({"FDSTOREREMOVE": "1", "FDNAME": name}))
        fd = self.kept.pop(name, -1)
        if fd >= 0:
            os.close(fd)

    def doorbell(self, guest_id: str) -> int:
        """The guest's eventfd, still ours; made and given to the machine if there was none."""
        name = doorbell_name(guest_id)
        if name not in self.kept:
            fd = self.kept[name] = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
            # No answer is needed: the socket keeps order, so the machine has it before any later spawn.
            self._post(Message({"FDSTORE": "1", "FDNAME": name}, fds=[os.dup(fd)]))
        return self.kept[name]

    # -- messages ------------------------------------------------------------------------------------------------------

    async def _ask(self, word: str, payload: Mapping[str, Any]) -> Any:
        message = await self._request(Message({"DO": word}, payload))
        message.close()
        return message.payload

    async def _request(self, message: Message) -> Message:
        """The answer, whose descriptors are the caller's; what the machine refuses is raised."""
        self._requests += 1
        number = message.words["ID"] = str(self._requests)
        answer: asyncio.Future[Message] = self._loop.create_future()
        self._answers[number] = answer
        self._post(message)
        try:
            received = await answer
        finally:
            del self._answers[number]
        error = protocol.error_of(received)
        if error is not None:
            received.close()
            raise error
        return received

    def _post(self, message: Message) -> None:
        """Send in order, at once if the machine reads; owns the descriptors."""
        if self._sock.fileno() < 0:
            message.close()
            raise Unavailable("the machine's socket is closed")
        self._backlog.append(message)
        if len(self._backlog) == 1:
            self._flush()

    def _flush(self) -> None:
        while self._backlog:
            try:
                protocol.send(self._sock, self._backlog[0])
            except BlockingIOError:
                self._loop.add_writer(self._sock.fileno(), self._flush)
                return
            except Unavailable:
                # `_on_readable` finds the end, after what the machine still said.
                break
            self._backlog.popleft().close()
        while self._backlog:
            self._backlog.popleft().close()
        self._loop.remove_writer(self._sock.fileno())

    def _on_readable(self) -> None:
        try:
            message = protocol.receive(self._sock)
        except BlockingIOError:
            return
        except InvalidArgument as error:
            log.error("the machine sent a malformed message: %s", error.message)
            message = None
        if message is None:
            self._end()
        elif "RE" in message.words:
            answer = self._answers.get(message.words["RE"])
            if answer is None or answer.done():
                message.close()
            else:
                answer.set_result(message)
        elif message.words.get("EV") == "hello":
            self._greet(message)
        elif message.words.get("EV") == "take":
            self._take(message)
        elif message.words.get("EV") == "hand-over":
            self.hands_over, self.successor_socket = True, str(message.payload.get("socket", ""))
            self.on_hand_over()
        elif "EV" in message.words:
            fd = message.fds.pop() if message.fds else -1
            event = _event(message.words["EV"], message.payload, fd)
            if event.kind == "network":
                self._set_network(event.connected, event.weather)
            (self._power_events if event.kind == "mains" else self._events).put_nowait(event)
        else:
            message.close()

    def _set_network(self, connected: bool, weather: str) -> None:
        if connected != self.connected:
            self.connected = connected
            self.on_network(connected)
        if weather != self.weather:
            self.weather = weather
            self.on_weather(weather)

    def _greet(self, message: Message) -> None:
        version = message.words.get("EVERRAM", "none")
        if self._hello.done():
            return
        if version == str(protocol.VERSION):
            self._hello.set_result(message.payload)
        else:
            text = f"the machine speaks version {version} of its protocol, this host version {protocol.VERSION}"
            self._hello.set_exception(FailedPrecondition(f"{text}; start the host with the machine's everram"))

    def _end(self) -> None:
        self.close()
        self._on_end()

    def _fail_all(self, error: Unavailable) -> None:
        for waiting in [self._hello, self._taken, *self._answers.values()]:
            if not waiting.done():
                waiting.set_exception(error)
                # Whoever asked may have been cancelled and gone.
                waiting.exception()
        self._events.put_nowait(None)
        self._power_events.put_nowait(None)


def _launch_payload(launch: GuestLaunch) -> dict[str, Any]:
    return {
        "guest_id": launch.guest_id,
        "name": launch.name,
        "epoch": launch.epoch,
        "argv": [os.fsdecode(word) for word in launch.argv],
        "working_directory": os.fsdecode(launch.working_directory),
        "environment": [[key, os.fsdecode(value)] for key, value in launch.environment],
        "log_path": launch.log_path,
        "grants": [
            {
                "label": grant.label,
                "role": grant.role,
                "memory": grant.memory,
                "size_bytes": grant.size_bytes,
                "tracked": grant.tracked,
                "lacking": grant.lacking,
            }
            for grant in launch.grants
        ],
        "port": launch.port,
    }


def _process(payload: Mapping[str, Any]) -> GuestProcess:
    return GuestProcess(
        guest_id=payload["guest_id"],
        epoch=payload["epoch"],
        pid=payload["pid"],
        exit_status=payload["exit_status"],
        freeze_reasons=tuple(payload["freeze_reasons"]),
        attached_pid=payload["attached_pid"],
    )


def _event(kind: str, payload: Mapping[str, Any], userfaultfd: int) -> MachineEvent:
    return MachineEvent(
        kind=kind,
        guest_id=payload.get("guest_id", ""),
        epoch=payload.get("epoch", 0),
        exit_status=payload.get("exit_status", -1),
        pid=payload.get("pid", 0),
        userfaultfd=userfaultfd,
        ranges=_ranges(payload.get("ranges", ())),
        served=payload.get("served") is True,
        mains=payload.get("mains", True),
        connected=payload.get("connected", True),
        weather=payload.get("weather", ""),
        reason=payload.get("reason", ""),
        deadline_ns=payload.get("deadline_ns", 0),
    )


def _ranges(payload: Sequence[Mapping[str, Any]]) -> tuple[TrackedRange, ...]:
    return tuple(
        TrackedRange(
            label=entry["label"],
            memory=entry["memory"],
            address=entry["address"],
            length_bytes=entry["length_bytes"],
        )
        for entry in payload
    )
