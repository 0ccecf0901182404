"""A simulated machine: the production machine's own core, driving simulated processes.

    machine = SimulatedMachine(world, "h1", start_host=..., programs=...)
    machine.power_on()

`everram.runtime.machine.core.MachineCore` decides everything here as it does in production; this module carries its
effects out on domains instead of processes and reports what came of them after seeded delays. The machine is a domain
of its own; `power_off` is its death: host and guests end with it and its memory reads as zeros.

A host is a coroutine in a domain of its own, made anew for each incarnation, with a `MachinePort` as its
`environment.Machine`. A guest is a coroutine chosen by the first word of its command line, with a `Seat` as
everything it may touch.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from everram.runtime.environment import Grant, GuestLaunch, GuestProcess, MachineEvent
from everram.runtime.errors import EverramError, FailedPrecondition, NotFound
from everram.runtime.machine import effects as effect_of
from everram.runtime.machine.core import MachineCore
from everram.runtime.machine.effects import Effect, Limits
from everram.runtime.machine.lives import EXIT_REFUSED, GuestLife
from everram.runtime.simulation.clock import SimulatedClock
from everram.runtime.simulation.domain import Domain
from everram.runtime.simulation.entropy import Stream
from everram.runtime.simulation.loop import SimulationLoop
from everram.runtime.simulation.objects import Gate, GatedMapping, Objects
from everram.runtime.simulation.paging import Spaces
from everram.runtime.simulation.upgrades import SimulatedUpgrades

MICROSECOND_NS = 1_000
MILLISECOND_NS = 1_000_000
KILLED_STATUS = 128 + 9
WATCHDOG_INTERVAL_S = 0.1
"""How often a host pings: five times within the machine's watchdog time."""


@dataclass(frozen=True, slots=True)
class Delays:
    """How long what the machine does takes, in nanoseconds: each from and to."""

    host_start: tuple[int, int] = (60 * MILLISECOND_NS, 250 * MILLISECOND_NS)
    guest_start: tuple[int, int] = (5 * MILLISECOND_NS, 40 * MILLISECOND_NS)
    signal: tuple[int, int] = (20 * MICROSECOND_NS, 2 * MILLISECOND_NS)
    message: tuple[int, int] = (20 * MICROSECOND_NS, 300 * MICROSECOND_NS)


class Seat:
    """What one incarnation of a guest has: its launch, its memory once attached, and its doorbell."""

    def __init__(self, machine: SimulatedMachine, launch: GuestLaunch, domain: Domain, gate: Gate | None) -> None:
        self.machine = machine
        self.launch = launch
        self.domain = domain
        self.gate = gate
        self.pid = machine.next_pid()

    async def attach(self) -> dict[str, tuple[Grant, GatedMapping]]:
        """Its memory, by label; what is beside a region by `LABEL/old`. Raises what the machine's rules say."""
        machine, launch = self.machine, self.launch
        await asyncio.sleep(machine.draw(machine.delays.message) / 1e9)
        answer: asyncio.Future[EverramError | None] = machine.loop.create_future()
        machine.within(0, partial(self._attach, answer))
        error = await answer
        if error is not None:
            raise error
        mapped = {g: GatedMapping(machine.objects.by_name[g.memory], self.gate) for g in launch.grants}
        return {g.label if g.role != "old" else f"{g.label}/old": (g, mapping) for g, mapping in mapped.items()}

    def ring(self) -> None:
        """The doorbell of its log."""
        self.machine.bell(self.launch.guest_id).ring()

    def print(self, text: str) -> None:
        """A line of its standard output."""
        self.machine.output.setdefault(self.launch.log_path, bytearray()).extend(text.encode() + b"\n")

    def _attach(self, answer: asyncio.Future[EverramError | None]) -> None:
        launch = self.launch
        error: EverramError | None = None
        try:
            for grant in launch.grants:  # looked up first: a refused process must not count as attached
                if grant.memory not in self.machine.objects.by_name:
                    raise NotFound(f"there is no memory object {grant.memory}")
            self.machine.event(
                self.machine.core.attach, launch.guest_id, launch.epoch, self.pid, in_tree=True, tracked=False
            )
        except EverramError as refused:
            error = refused
        if not answer.done():
            answer.set_result(error)


GuestProgram = Callable[[Seat], Coroutine[Any, Any, int]]
"""A guest: returns its exit status."""


class Bell:
    """One guest's doorbell: an eventfd that its incarnations and hosts share. `delay_ns` draws what a wake-up takes."""

    def __init__(self, loop: SimulationLoop, delay_ns: Callable[[], int]) -> None:
        self._loop = loop
        self._delay_ns = delay_ns
        self._rung = False
        self._waiters: deque[asyncio.Future[None]] = deque()

    def ring(self) -> None:
        """Counted at once, even if the guest dies now; whoever waits wakes after a while."""
        self._loop.checkpoint()
        self._rung = True
        self._loop.call_at_ns(self._loop.now_ns + self._delay_ns(), self._wake, context=self._loop.system.context)

    def _wake(self) -> None:
        while self._waiters:
            waiter = self._waiters.popleft()
            if not waiter.done():
                waiter.set_result(None)

    async def wait(self, timeout_s: float) -> bool:
        if not self._rung:
            waiter: asyncio.Future[None] = self._loop.create_future()
            self._waiters.append(waiter)
            try:
                async with asyncio.timeout(timeout_s):
                    await waiter
            except TimeoutError:
                return False
        rung, self._rung = self._rung, False
        return rung

    def close(self) -> None:
        """The eventfd is the machine's; this host's descriptor of it is gone."""


@dataclass(slots=True, eq=False)
class Host:
    """One incarnation."""

    incarnation: int
    domain: Domain
    events: asyncio.Queue[MachineEvent | None] = field(default_factory=asyncio.Queue)
    power_events: asyncio.Queue[MachineEvent | None] = field(default_factory=asyncio.Queue)
    answers: dict[int, asyncio.Future[EverramError | None]] = field(default_factory=dict)
    last_ns: int = 0
    """When the last of its messages arrives: its socket keeps their order."""
    exit_status: int = KILLED_STATUS
    """Of its process, unless it is killed."""
    handing: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when it is to hand over to a successor."""
    taken: asyncio.Future[None] = field(default_factory=lambda: asyncio.get_event_loop().create_future())
    """Of a successor: done when the memory was passed to it."""
    successor: bool = False


@dataclass(slots=True, eq=False)
class Guest:
    """One incarnation."""

    launch: GuestLaunch
    domain: Domain
    seat: Seat
    status: int = -1
    """Exit status, once its program has ended."""
    reaped: bool = False
    """Whether the core knows that."""


class SimulatedMachine:
    """See the module. `start_host(machine, port, domain)` is the host's whole life: it ends when that returns."""

    def __init__(
        self,
        loop: SimulationLoop,
        name: str,
        stream: Stream,
        *,
        memory_bytes: int,
        start_host: Callable[[SimulatedMachine, MachinePort, Domain], Coroutine[Any, Any, None]],
        programs: Mapping[str, GuestProgram],
        guest_gate: Callable[[str, int], Gate | None] = lambda guest_id, epoch: None,
        generation: int = 1,
        limits: Limits | None = None,
        clock: SimulatedClock | None = None,
    ) -> None:
        """`generation` counts machines that had this name; `guest_gate(guest_id, epoch)` is what its stores pass."""
        self.loop = loop
        self.clock = clock or SimulatedClock(loop)
        """Of all its processes."""
        self.name = name
        self.delays = Delays()
        self.objects = Objects(memory_bytes)
        self.output: dict[str, bytearray] = {}
        self.domain = loop.domain(f"{name}.machine.{generation}", clock)
        self.core = MachineCore(limits or Limits())
        self.host: Host | None = None
        self.upgrades = SimulatedUpgrades(self)
        self.spaces = Spaces(loop, stream)
        self.guests: dict[str, Guest] = {}
        self.observers: list[Callable[[str, str, int], None]] = []
        """Told of each guest's fate as it happens: (what, guest_id, epoch); started, stopped, continued or ended."""
        self.failures: list[tuple[str, Exception]] = []
        """Hosts and guests that ended with an exception, by domain: each is a bug, or an error nobody handled."""
        self._stream = stream
        self._start_host = start_host
        self._programs = programs
        self._guest_gate = guest_gate
        self._generation = generation
        self._launches: dict[str, GuestLaunch] = {}
        self._bells: dict[str, Bell] = {}
        self._pids = 1000 * generation
        self._requests = 0
        self._ports = 20_000
        self._timer: asyncio.TimerHandle | None = None

    # -- for the scenario -------------------------------------------------------------------------------------------

    def power_on(self) -> None:
        self.within(0, lambda: self.event(self.core.start))

    def power_off(self) -> None:
        """The machine dies: everything in it at once, and its memory with it."""
        self.loop.kill(self.domain)
        for host in self._processes():
            self.loop.kill(host.domain)
        for guest in self.guests.values():
            if guest.domain.alive:
                self._observe("ended", guest)
            self.loop.kill(guest.domain)
        self.objects.wipe()

    @property
    def on(self) -> bool:
        return self.domain.alive

    def set_mains(self, on: bool) -> None:
        """Power from outside goes away, or comes back."""
        if self.on:
            self.within(0, lambda: self.event(self.core.set_mains, on))

    def kill_host(self) -> None:
        """The fault `host-kill`; nothing if none runs."""
        self.within(0, lambda: self._fault(self.core.kill_host))

    def hang_host(self) -> None:
        """The fault `hang`; nothing if none runs."""
        self.within(0, lambda: self._fault(self.core.hang_host))

    def upgrade(self, *, pause: bool = False) -> None:
        """Replace the host's software under running guests; nothing if that cannot begin now."""
        self.within(0, partial(self._begin_upgrade, pause))

    def _begin_upgrade(self, pause: bool) -> None:
        try:
            self.event(self.core.upgrade.begin, pause=pause)
        except FailedPrecondition as refused:
            self.upgrades.ended.append(refused)

    def kill_successor(self) -> None:
        """Nothing if none is being started."""
        successor = self.upgrades.successor
        if successor is not None and successor.domain.alive:
            self.loop.kill(successor.domain)

    def retry_host(self) -> None:
        """Start a host that refused, after its user has changed something."""
        self.within(0, lambda: self.event(self.core.retry_host))

    def kill_guest(self, guest_id: str) -> None:
        """SIGKILL from outside: the machine only sees it end."""
        guest = self.guests.get(guest_id)
        if guest is not None and guest.domain.alive:
            self.loop.kill(guest.domain)

    def _fault(self, event: Callable[..., list[Effect]]) -> None:
        if self.core.host.state in ("starting", "ready", "hung"):
            self.event(event)

    # -- driving the core -------------------------------------------------------------------------------------------

    def draw(self, span_ns: tuple[int, int]) -> int:
        return self._stream.randrange(*span_ns)

    def next_pid(self) -> int:
        self._pids += 1
        return self._pids

    def within(self, delay_ns: int, callback: Callable[[], object]) -> None:
        """`callback` in the machine's own process, after a while."""
        self.loop.call_at_ns(self.loop.now_ns + delay_ns, callback, context=self.domain.context)

    def event(self, method: Callable[..., list[Effect]], *arguments: Any, **named: Any) -> None:
        """Tell the core and carry out what it says. Raises what the core refuses."""
        try:
            for effect in method(self.clock.now_ns(), *arguments, **named):
                self._perform(effect)
        finally:
            self._arm()

    def _arm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        deadline_ns = self.core.next_deadline_ns()
        if deadline_ns is not None:
            when_ns = max(self.clock.when(deadline_ns), self.loop.now_ns)
            self._timer = self.loop.call_at_ns(when_ns, self.event, self.core.tick, context=self.domain.context)

    def _note(self, what: str) -> None:
        self.loop.trace.note(self.loop.now_ns, f"{self.name} machine", what)

    def _perform(self, effect: Effect) -> None:
        self._note(repr(effect))
        if self.upgrades.perform(effect):
            return
        match effect:
            case effect_of.StartHost(incarnation):
                self.within(self.draw(self.delays.host_start), partial(self._begin_host, incarnation))
            case effect_of.KillHost():
                self._end_host()
            case effect_of.HangHost():
                if self.host is not None:
                    self.loop.freeze(self.host.domain)
            case effect_of.CloseHost():
                if self.host is not None:
                    self.to_host(self.host, partial(self.host.events.put_nowait, None))
                    self.to_host(self.host, partial(self.host.power_events.put_nowait, None))
            case effect_of.SpawnGuest(guest_id, epoch):
                self.within(self.draw(self.delays.guest_start), partial(self._begin_guest, guest_id, epoch))
            case effect_of.StopGuest(guest_id):
                self.within(self.draw(self.delays.signal), partial(self._stop_guest, self.guests[guest_id]))
            case effect_of.ContinueGuest(guest_id):
                self._continue_guest(self.guests[guest_id])
            case effect_of.KillGuest(guest_id):
                self._kill_guest(self.guests[guest_id])
            case effect_of.Notify():
                self._notify(effect)
            case effect_of.Done(request):
                self.settle(request, None)
            case effect_of.Failed(request, error):
                self.settle(request, error)
            case effect_of.PowerOff(why):
                self._note(f"no power any more: {why}")
                self.power_off()
            case effect_of.Admit() | effect_of.End():
                pass

    # -- hosts ------------------------------------------------------------------------------------------------------

    def _begin_host(self, incarnation: int) -> None:
        if self.core.host.incarnation != incarnation or self.core.host.state != "starting":
            self.event(self.core.host_exited, incarnation)
            return
        self.host = self.begin_process(incarnation)

    def begin_process(self, incarnation: int, *, successor: bool = False) -> Host:
        domain = self.loop.domain(f"{self.name}.{self._generation}.{incarnation}", self.domain.clock)
        host = Host(incarnation, domain, taken=self.loop.create_future(), successor=successor)
        domain.on_death.append(partial(self._host_died, host))
        self.loop.spawn(domain, self._live(host))
        return host

    def _processes(self) -> list[Host]:
        """Of hosts and successors."""
        return [host for host in (self.host, self.upgrades.successor) if host is not None]

    async def _live(self, host: Host) -> None:
        """The whole process: when its main function is over, everything in it is."""
        port = MachinePort(self, host)
        try:
            await self._start_host(self, port, host.domain)
        except Exception as error:
            # As `everram.actors.host` ends with a status that says so.
            refusing = any(isinstance(leaf, FailedPrecondition) for leaf in leaves(error))
            host.exit_status = EXIT_REFUSED if refusing else 1
            self._failed(host.domain, error)
        finally:
            self.loop.kill(host.domain)

    def _failed(self, domain: Domain, error: Exception) -> None:
        self.failures.append((domain.name, error))
        reasons = ", ".join(f"{type(leaf).__name__}: {leaf}" for leaf in leaves(error))
        self._note(f"{domain.name} failed: {reasons}")

    def _end_host(self) -> None:
        if self.host is not None and self.host.domain.alive:
            self.loop.kill(self.host.domain)

    def _host_died(self, host: Host) -> None:
        if self.on and not self.upgrades.died(host):
            delay_ns = self.draw(self.delays.signal)
            self.within(delay_ns, lambda: self.event(self.core.host_exited, host.incarnation, host.exit_status))

    def _notify(self, effect: effect_of.Notify) -> None:
        host = self.host
        if host is None or not host.domain.alive:
            return
        event = MachineEvent(
            effect.kind,
            effect.guest_id,
            effect.epoch,
            exit_status=effect.exit_status,
            pid=effect.pid,
            mains=effect.mains,
            connected=effect.connected,
            weather=effect.weather,
            reason=effect.reason,
            deadline_ns=effect.deadline_ns,
        )
        queue = host.power_events if effect.kind == "mains" else host.events
        self.to_host(host, partial(queue.put_nowait, event))

    def to_host(self, host: Host, deliver: Callable[[], object]) -> None:
        """Into the host's socket: it finds it there when it runs."""
        host.last_ns = max(host.last_ns + 1, self.loop.now_ns + self.draw(self.delays.message))
        self.loop.call_at_ns(host.last_ns, deliver, context=self.loop.system.context)

    def settle(self, request: int, error: EverramError | None) -> None:
        for host in self._processes():
            answer = host.answers.pop(request, None)
            if answer is not None:
                self.to_host(host, partial(_settle, answer, error))

    def tell(self, host: Host, act: Callable[[], None]) -> None:
        """A message of the host: `act` runs here after a while, in the order of the messages."""

        def arrive() -> None:
            if host.domain.alive and (host is self.host or host is self.upgrades.successor):
                act()

        host.last_ns = max(host.last_ns + 1, self.loop.now_ns + self.draw(self.delays.message))
        self.loop.call_at_ns(host.last_ns, arrive, context=self.domain.context)

    def request(self, host: Host, ask: Callable[[int], None]) -> asyncio.Future[EverramError | None]:
        """A message that `settle` answers with the number `ask` is given, or the refusal that `ask` raises."""
        self._requests += 1
        number = self._requests
        answer: asyncio.Future[EverramError | None] = self.loop.create_future()
        host.answers[number] = answer

        def act() -> None:
            try:
                ask(number)
            except EverramError as refused:
                self.settle(number, refused)

        self.tell(host, act)
        return answer

    # -- guests -----------------------------------------------------------------------------------------------------

    def launch(self, host: Host, launch: GuestLaunch, request: int) -> None:
        """The host's `spawn`."""
        program = launch.argv[0].decode(errors="replace") if launch.argv else ""
        if program not in self._programs:
            raise NotFound(f"there is no program {program or '(empty)'}")
        self._launches[launch.guest_id] = launch
        self.event(self.core.spawn, launch.guest_id, launch.epoch, request)

    def _begin_guest(self, guest_id: str, epoch: int) -> None:
        launch = self._launches[guest_id]
        domain = self.loop.domain(f"{self.name}/{launch.name}.{epoch}", self.domain.clock)
        guest = Guest(launch, domain, Seat(self, launch, domain, self._guest_gate(guest_id, epoch)))
        self.guests[guest_id] = guest
        domain.on_death.append(partial(self._guest_died, guest))
        self._observe("started", guest)
        self.loop.spawn(domain, self._live_as_guest(guest, self._programs[launch.argv[0].decode()]))
        self.event(self.core.guest_spawned, guest_id, guest.seat.pid)

    async def _live_as_guest(self, guest: Guest, program: GuestProgram) -> None:
        status = 1
        try:
            status = await program(guest.seat)
        except EverramError as error:
            guest.seat.print(f"{type(error).__name__}: {error.message}")
        except Exception as error:
            self._failed(guest.domain, error)
        finally:
            if guest.domain.alive:
                guest.status = status
            self.loop.kill(guest.domain)

    def _guest_died(self, guest: Guest) -> None:
        """By itself, at one of its stores, or by a kill; told to the core as the kernel would."""
        if guest.status < 0:
            guest.status = KILLED_STATUS
        self._observe("ended", guest)
        if self.on:
            self.within(self.draw(self.delays.signal), partial(self._reap, guest))

    def _reap(self, guest: Guest) -> None:
        if not guest.reaped:
            guest.reaped = True
            self.event(self.core.guest_exited, guest.launch.guest_id, guest.status)

    def _stop_guest(self, guest: Guest) -> None:
        life = self.core.guests.get(guest.launch.guest_id)
        if life is None or life.state != "freezing" or life.epoch != guest.launch.epoch:
            return
        self.loop.freeze(guest.domain)
        self._observe("stopped", guest)
        self.loop.when_halted(guest.domain, partial(self._halted, guest))

    def _halted(self, guest: Guest) -> None:
        self.within(0, lambda: self.event(self.core.guest_stopped, guest.launch.guest_id))

    def _continue_guest(self, guest: Guest) -> None:
        if not guest.domain.alive:
            return  # it was killed while it was stopped, and is not reaped yet
        self._observe("continued", guest)
        self.loop.thaw(guest.domain)

    def _kill_guest(self, guest: Guest) -> None:
        self.loop.kill(guest.domain)
        self.within(self.draw(self.delays.signal), partial(self._gone, guest))

    def _gone(self, guest: Guest) -> None:
        self._reap(guest)
        self.event(self.core.guest_gone, guest.launch.guest_id)

    def _observe(self, what: str, guest: Guest) -> None:
        for observer in self.observers:
            observer(what, guest.launch.guest_id, guest.launch.epoch)

    def bell(self, guest_id: str) -> Bell:
        if guest_id not in self._bells:
            self._bells[guest_id] = Bell(self.loop, lambda: self.draw(self.delays.message))
        return self._bells[guest_id]

    def forget(self, guest_id: str) -> None:
        self.event(self.core.forget, guest_id)

    def free_port(self) -> int:
        self._ports += 1
        return self._ports

    def seen(self) -> list[GuestProcess]:
        return [process_of(self.core.guests[guest_id]) for guest_id in sorted(self.core.guests)]


def _settle(answer: asyncio.Future[EverramError | None], error: EverramError | None) -> None:
    if not answer.done():
        answer.set_result(error)


def process_of(life: GuestLife) -> GuestProcess:
    return GuestProcess(
        guest_id=life.guest_id,
        epoch=life.epoch,
        pid=life.live_pid,
        exit_status=life.exit_status if life.state == "exited" else -1,
        freeze_reasons=tuple(sorted(life.reasons)),
        attached_pid=life.attached_pid,
    )


def leaves(error: BaseException) -> list[BaseException]:
    """The errors in a group of groups; of any other error that alone."""
    if isinstance(error, BaseExceptionGroup):
        return [leaf for inner in error.exceptions for leaf in leaves(inner)]
    return [error]


class MachinePort:
    """`environment.Machine` of one host incarnation."""

    watchdog_interval_s = WATCHDOG_INTERVAL_S

    def __init__(self, machine: SimulatedMachine, host: Host) -> None:
        self.battery_s = machine.core.limits.battery_ns / 1e9
        self._machine = machine
        self._host = host
        self.is_successor = host.successor
        self.handing = host.handing

    # -- the upgrade of the host software

    def peek(self, name: str) -> bytes | None:
        """A memory object's bytes as they are now; None if there is none of that name."""
        held = self._machine.objects.by_name.get(name)
        return bytes(held.content) if held is not None else None

    async def judged(self, reasons: list[str]) -> None:
        machine, incarnation = self._machine, self._host.incarnation
        await self._ask(lambda: machine.event(machine.core.upgrade.verdict, incarnation, reasons, {}))

    async def taken(self) -> None:
        await self._host.taken

    async def ingested(self) -> None:
        machine = self._machine
        await self._ask(lambda: machine.event(machine.core.upgrade.ingested, self._host.incarnation))

    async def handed_over(self) -> None:
        machine = self._machine

        def ask(request: int) -> None:
            machine.settle(request, None)  # first: then another is the host, and gets the answers
            machine.event(machine.core.upgrade.handed_over, self._host.incarnation)

        await self._long(ask)

    async def ready(self) -> None:
        await self._ask(lambda: self._machine.event(self._machine.core.host_ready, self._host.incarnation))

    def alive(self) -> None:
        machine = self._machine
        machine.tell(self._host, lambda: machine.event(machine.core.host_alive, self._host.incarnation))
        if self.is_successor:
            machine.tell(self._host, lambda: machine.event(machine.core.upgrade.alive, self._host.incarnation))

    async def spawn(self, launch: GuestLaunch) -> GuestProcess:
        await self._long(lambda request: self._machine.launch(self._host, launch, request))
        return self._process(launch.guest_id)

    async def freeze(self, guest_id: str, reason: str) -> None:
        machine = self._machine
        await self._long(lambda request: machine.event(machine.core.freeze, guest_id, reason, request))

    async def thaw(self, guest_id: str, reason: str) -> None:
        await self._ask(lambda: self._machine.event(self._machine.core.thaw, guest_id, reason))

    async def signal(self, guest_id: str, signal_number: int) -> None:
        """Simulated guests handle no signal: any one ends them."""
        await self._ask(lambda: self._machine.kill_guest(guest_id))

    async def kill(self, guest_id: str) -> GuestProcess:
        machine = self._machine
        await self._long(lambda request: machine.event(machine.core.kill, guest_id, request))
        return self._process(guest_id)

    async def forget(self, guest_id: str) -> None:
        await self._ask(lambda: self._machine.forget(guest_id))

    async def admit(self, guest_id: str, pid: int, *, served: bool) -> None:
        await self._ask(lambda: self._machine.event(self._machine.core.admit, guest_id, pid))

    async def guests(self) -> list[GuestProcess]:
        found: list[GuestProcess] = []
        await self._ask(lambda: found.extend(self._machine.seen()))
        return found

    async def tracked(self) -> list[MachineEvent]:
        return []

    async def lease(self, deadline_ns: int) -> None:
        await self._ask(lambda: self._machine.event(self._machine.core.lease, deadline_ns))

    async def free_port(self) -> int:
        ports: list[int] = []
        await self._ask(lambda: ports.append(self._machine.free_port()))
        return ports[0]

    async def events(self) -> AsyncIterator[MachineEvent]:
        while (event := await self._host.events.get()) is not None:
            yield event

    async def power_events(self) -> AsyncIterator[MachineEvent]:
        while (event := await self._host.power_events.get()) is not None:
            yield event

    async def report_mains(self, on: bool) -> None:
        await self._ask(lambda: self._machine.event(self._machine.core.set_mains, on))

    async def power_off(self) -> None:
        await self._ask(lambda: self._machine.event(self._machine.core.power_off))

    async def power_kept(self) -> None:
        await self._ask(lambda: self._machine.event(self._machine.core.power_kept))

    def _process(self, guest_id: str) -> GuestProcess:
        return process_of(self._machine.core.guests[guest_id])

    async def _ask(self, act: Callable[[], object]) -> None:
        """A request that is answered as soon as it was carried out."""

        def ask(request: int) -> None:
            act()
            self._machine.settle(request, None)

        await self._long(ask)

    async def _long(self, ask: Callable[[int], None]) -> None:
        error = await self._machine.request(self._host, ask)
        if error is not None:
            raise error
