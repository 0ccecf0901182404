"""Domains: what can be killed, stopped and continued as a whole in a simulation.

One domain stands for one process (a host's or a guest's incarnation, a server, a client). Every callback of the loop
belongs to the domain in whose context it was scheduled, and a domain is always in one of three states:

    RUNNING   its callbacks run, first in first out
    FROZEN    its callbacks are held until it runs again (SIGSTOP): timers that fell due meanwhile fire late
    DEAD      its callbacks never run again (kill -9): not even the `finally` blocks of its tasks

    RUNNING <-> FROZEN -> DEAD, RUNNING -> DEAD

What a dead domain leaves behind is kept until the world ends: were it collected, its coroutines would be closed and
their `finally` blocks would run, which no killed process does.
"""

from __future__ import annotations

import enum
from collections import deque
from collections.abc import Callable
from contextvars import Context, ContextVar
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from everram.runtime.simulation.clock import SimulatedClock
    from everram.runtime.simulation.loop import SimulatedHandle


class State(enum.Enum):
    RUNNING = "running"
    FROZEN = "frozen"
    DEAD = "dead"


class Killed(BaseException):
    """Unwinds the callback in which its own domain died; nothing it still does has any effect."""


CURRENT: ContextVar[Domain | None] = ContextVar("everram_domain", default=None)
"""The domain of the running code; None outside every domain, which counts as the loop's own."""


class Domain:
    """Made by `SimulationLoop.domain`; its state is changed by the loop only."""

    __slots__ = (
        "active",
        "clock",
        "context",
        "graveyard",
        "listed",
        "name",
        "number",
        "on_death",
        "on_halt",
        "preempted",
        "queue",
        "state",
    )

    def __init__(self, name: str, number: int, clock: SimulatedClock | None = None) -> None:
        self.name = name
        self.number = number
        """Unique in its loop, in the order of creation."""
        self.clock = clock
        """Of the computer that it runs on; None: the world's own time."""
        self.state = State.RUNNING
        self.queue: deque[SimulatedHandle] = deque()
        """Callbacks that are due, oldest first."""
        self.listed = False
        """Whether the loop has it in its list of runnable domains: RUNNING with a callback due."""
        self.active = False
        """Whether a callback of its is on the stack now."""
        self.preempted = False
        """Whether that callback waits, half-way, for others to run (`SimulationLoop.preempt`)."""
        self.on_death: list[Callable[[], None]] = []
        """Called once, in order, when it dies, outside the domain: descriptors close, memory stays."""
        self.on_halt: list[Callable[[], None]] = []
        """Called once when it is frozen or dead and no callback of its is on the stack any more."""
        self.graveyard: list[Any] = []
        self.context = Context()
        """Where its callbacks run unless their scheduler names another: nothing of another process is in it."""
        self.context.run(CURRENT.set, self)

    @property
    def alive(self) -> bool:
        return self.state is not State.DEAD

    def __repr__(self) -> str:
        return f"<Domain {self.name} {self.state.value}>"
