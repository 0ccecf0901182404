"""A world: everything that one simulation shares, made from one seed, and what was found wrong in it.

    world = World(seed)
    world.run(scenario(world))
    assert not world.violations, world.violations

The world knows no actor: whoever builds a cluster in it (`everram.actors.chaos`) says what a host runs. It owns the
loop, the network, the coordination server with its supervisor, and one disk a machine; it turns log messages into
lines of the trace, and every exception that nobody handled into a violation.
"""

from __future__ import annotations

import asyncio
import gc
import logging
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from everram.runtime.errors import EverramError
from everram.runtime.simulation.clock import SimulatedClock
from everram.runtime.simulation.coordination import CoordinationServer
from everram.runtime.simulation.disk import Media
from everram.runtime.simulation.entropy import Seeds, Stream
from everram.runtime.simulation.loop import START_NS, SimulationLoop, SimulationStuck
from everram.runtime.simulation.network import Fabric, LinkFaults
from everram.runtime.simulation.trace import Trace

COORDINATION_RESTART_S = (0.05, 0.3)
"""The supervisor has a killed coordination server running again within this time."""
COORDINATION_HUNG_S = 0.5
"""And replaces one that did not answer for so long."""
STEPS_MAX = 20_000_000
"""Callbacks of one world: a hundred times what a scenario needs."""
VIOLATIONS_MAX = 10
"""Of one property that are kept: the first explain the rest."""


@dataclass(frozen=True, slots=True)
class Violation:
    """A property that did not hold."""

    property: str
    at_s: float
    """Virtual seconds since the start."""
    what: str

    def __str__(self) -> str:
        return f"{self.property} at {self.at_s:.6f} s: {self.what}"


class World:
    """See the module. `echo` gets the lines of the trace as they are written."""

    def __init__(self, seed: int, echo: Callable[[str], None] | None = None) -> None:
        self.seeds = Seeds(seed)
        self.trace = Trace(echo, origin_ns=START_NS)
        self.loop = SimulationLoop(self.seeds.stream("loop"), self.trace, steps_max=STEPS_MAX)
        self.loop.set_exception_handler(self._unhandled)
        self.clock = SimulatedClock(self.loop)
        self.fabric = Fabric(self.loop, self.seeds.stream("network"), LinkFaults())
        self.coordination = CoordinationServer(self.loop, self.fabric, self.seeds.stream("coordination"))
        self.violations: list[Violation] = []
        self.violated: Callable[[], object] = lambda: None
        """Called at each violation."""
        self._media: dict[str, Media] = {}
        self._supervisor = self.seeds.stream("supervisor")

    def stream(self, name: str) -> Stream:
        return self.seeds.stream(name)

    def media(self, machine: str) -> Media:
        """The disk of a machine, whichever incarnation of it."""
        if machine not in self._media:
            self._media[machine] = Media(self.seeds.stream(f"disk/{machine}"))
        return self._media[machine]

    @property
    def now_s(self) -> float:
        """Virtual seconds since the start."""
        return (self.loop.now_ns - START_NS) / 1e9

    def note(self, who: str, what: str) -> None:
        self.trace.note(self.loop.now_ns, who, what)

    def violate(self, violated: str, what: str) -> None:
        """A property does not hold. The world goes on: what follows may explain it."""
        if sum(found.property == violated for found in self.violations) < VIOLATIONS_MAX:
            self.violations.append(Violation(violated, self.now_s, what))
        self.note("VIOLATION", f"{violated}: {what}")
        self.violated()

    def run(self, scenario: Coroutine[Any, Any, None]) -> None:
        """Run to the end of `scenario`, then end the world. What goes wrong is in `violations`."""
        with _no_collection(), self._logging():
            try:
                self.loop.run_until_complete(scenario)
            except SimulationStuck as error:
                self.violate("progress", str(error))
            finally:
                self.digest = self.trace.digest()
                self.loop.abandon()

    # -- the supervisor of coordination -----------------------------------------------------------------------------

    def kill_coordination(self) -> None:
        self.note("supervisor", "coordination is killed")
        self.coordination.kill()
        self.loop.call_later(self._supervisor.uniform(*COORDINATION_RESTART_S), self._restart_coordination)

    def hang_coordination(self) -> None:
        """It stops; the supervisor notices and replaces it."""
        self.note("supervisor", "coordination hangs")
        self.coordination.hang()
        self.loop.call_later(COORDINATION_HUNG_S, self.kill_coordination)

    def _restart_coordination(self) -> None:
        if not self.coordination.running:
            self.note("supervisor", "coordination starts again")
            self.coordination.start()

    # -- what nobody handled ----------------------------------------------------------------------------------------

    def _unhandled(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        error = context.get("exception")
        told = f"{type(error).__name__}: {error}" if error is not None else "no exception"
        self.violate("no unhandled errors", f"{context.get('message')}: {told}")

    @contextmanager
    def _logging(self) -> Iterator[None]:
        """Log records become lines; an error with an exception that is none of everram's own is a violation."""
        logger = logging.getLogger("everram")
        handler = _TraceHandler(self)
        level, propagate, handlers = logger.level, logger.propagate, logger.handlers
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(logging.DEBUG if self.trace.readable else logging.WARNING)
        try:
            yield
        finally:
            logger.handlers, logger.propagate = handlers, propagate
            logger.setLevel(level)


class _TraceHandler(logging.Handler):
    def __init__(self, world: World) -> None:
        super().__init__()
        self._world = world

    def emit(self, record: logging.LogRecord) -> None:
        world = self._world
        domain = world.loop.current_domain()
        world.trace.remark(world.loop.now_ns, domain.name, f"{record.levelname.lower()}: {record.getMessage()}")
        error = record.exc_info[1] if record.exc_info else None
        if error is not None and domain.alive and not isinstance(error, EverramError):
            world.violate("no unhandled errors", f"{record.getMessage()}: {type(error).__name__}: {error}")


@contextmanager
def _no_collection() -> Iterator[None]:
    """When the garbage collector runs depends on everything ever allocated: it may not have any say."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
