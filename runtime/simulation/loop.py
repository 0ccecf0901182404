"""An asyncio event loop on virtual time: the engine of the simulation.

    loop = SimulationLoop(Seeds(7).stream("loop"))
    host = loop.domain("h1")
    loop.spawn(host, serve())
    loop.run_until_complete(scenario())

Nothing here waits, polls or starts a thread: when no callback is due, time jumps to the next timer. Each callback
belongs to a domain (see `everram.runtime.simulation.domain`). Within a domain callbacks run first in, first out,
which is what asyncio promises; among the domains that have one due a seeded stream chooses, which is what a scheduler
does to processes. The same seed therefore gives the same order, and another seed another order.

Every callback costs `CALLBACK_NS` of virtual time, so that a loop that never waits does not stop the clock.
"""

from __future__ import annotations

import asyncio
import contextvars
import ctypes
import heapq
import itertools
import weakref
from asyncio import tasks as _asyncio_tasks
from collections.abc import Callable, Coroutine, Generator
from typing import Any, NoReturn, TypeVar

from everram.runtime.simulation.clock import SimulatedClock
from everram.runtime.simulation.domain import CURRENT, Domain, Killed, State
from everram.runtime.simulation.entropy import Stream
from everram.runtime.simulation.trace import DOMAIN_BITS, Trace

T = TypeVar("T")

CALLBACK_NS = 1_000
"""Virtual nanoseconds that one callback takes: about what a real one does."""

START_NS = 1_000_000_000_000
"""Virtual time at the start. Not zero, so that code which takes 0 for "never" shows itself."""

FOREVER_NS = 1 << 62
"""Later than any timer."""

RUN_STEPS = 4096
"""Callbacks between two looks at the bound on them, and between two updates of the digest."""

CANCELLED_TIMERS_MAX = 256
"""Cancelled timers kept before the heap is rebuilt without them (if they are more than half of it)."""


class SimulationStuck(RuntimeError):
    """Nothing can ever happen again, or too much happens without end."""


class SimulatedHandle(asyncio.TimerHandle):
    """A callback and the domain it belongs to; a plain one is never in the heap."""

    __slots__ = ("domain", "when_ns")

    def __init__(
        self,
        domain: Domain,
        callback: Callable[..., object],
        args: tuple[Any, ...],
        loop: SimulationLoop,
        context: contextvars.Context | None,
        when_ns: int = 0,
    ) -> None:
        # Everything asyncio.TimerHandle.__init__ sets, without its checks: this is the hottest allocation there is.
        self._context = contextvars.copy_context() if context is None else context
        self._loop = loop
        self._callback = callback
        self._args = args
        self._cancelled = False
        self._repr = None
        self._source_traceback = None
        self._when = when_ns * 1e-9
        self._scheduled = False
        self.domain = domain
        self.when_ns = when_ns


class SimulatedTask(asyncio.Task[T]):
    """A task whose hash is a number: sets of tasks (TaskGroup, asyncio.wait) then have one order in every run."""

    __slots__ = ("domain", "number")

    def __init__(
        self,
        coro: Generator[Any, None, T] | Coroutine[Any, Any, T],
        *,
        loop: SimulationLoop,
        name: str | None,
        context: contextvars.Context | None,
        number: int,
        domain: Domain,
    ) -> None:
        self.number = number
        self.domain = domain
        super().__init__(coro, loop=loop, name=name or f"task-{number}", context=context)

    def __hash__(self) -> int:
        return self.number

    def __eq__(self, other: object) -> bool:
        return self is other


class SimulationLoop(asyncio.BaseEventLoop):
    """See the module. `steps_max` bounds the callbacks of its life: a livelock ends with SimulationStuck."""

    # BaseEventLoop's own, which it does not publish.
    _stopping: bool
    _asyncgens: weakref.WeakSet[Any]

    def __init__(self, stream: Stream, trace: Trace | None = None, *, steps_max: int = 50_000_000) -> None:
        super().__init__()
        self.set_debug(False)
        self.trace = trace if trace is not None else Trace()
        self.now_ns = START_NS
        self.steps = 0
        self._steps_max = steps_max
        self._choose = stream.random
        self._domains: list[Domain] = []
        self._runnable: list[Domain] = []
        self._timers: list[tuple[int, int, SimulatedHandle]] = []
        self._timer_numbers = itertools.count()
        self._task_numbers = itertools.count()
        self._cancelled_timers = 0
        self._preempting = False
        self.system = self.domain("system")
        """The domain of whoever belongs to none: the scenario itself, networks and disks."""

    # -- domains ----------------------------------------------------------------------------------------------------

    def domain(self, name: str, clock: SimulatedClock | None = None) -> Domain:
        """`clock`: what its timers go by; None: the world's own time."""
        domain = Domain(name, len(self._domains), clock)
        self._domains.append(domain)
        return domain

    def current_domain(self) -> Domain:
        return CURRENT.get() or self.system

    def spawn(self, domain: Domain, coro: Coroutine[Any, Any, T], *, name: str | None = None) -> asyncio.Task[T]:
        """A task in `domain`, whoever asks for it."""
        return self.create_task(coro, name=name, context=domain.context.copy())

    def run_in(self, domain: Domain, callback: Callable[..., object], *args: Any) -> None:
        """`callback` soon in `domain`."""
        self.call_soon(callback, *args, context=domain.context)

    def freeze(self, domain: Domain) -> None:
        """SIGSTOP. No effect on one that is not running."""
        if domain.state is State.RUNNING:
            domain.state = State.FROZEN
            self._unlist(domain)
            self._halted(domain)

    def thaw(self, domain: Domain) -> None:
        """SIGCONT. No effect on one that is not frozen."""
        if domain.state is State.FROZEN:
            domain.state = State.RUNNING
            self._list(domain)

    def kill(self, domain: Domain) -> None:
        """SIGKILL. The callback of its that is running now, if any, ends at its next `checkpoint`."""
        if domain.state is State.DEAD:
            return
        domain.state = State.DEAD
        self._unlist(domain)
        domain.graveyard.extend(domain.queue)
        domain.queue.clear()
        # Only which tasks are kept matters, not their order.
        domain.graveyard.extend(
            t for t in asyncio.all_tasks(self) if isinstance(t, SimulatedTask) and t.domain is domain
        )
        callbacks, domain.on_death = domain.on_death, []
        for callback in callbacks:
            callback()
        self._halted(domain)

    def when_halted(self, domain: Domain, callback: Callable[[], None]) -> None:
        """`callback` once the domain is frozen or dead and none of its callbacks is half-way."""
        domain.on_halt.append(callback)
        if domain.state is not State.RUNNING:
            self._halted(domain)

    def checkpoint(self) -> None:
        """Raises Killed in a dead domain: called where a process could be killed half-way through a callback."""
        domain = CURRENT.get()
        if domain is not None and domain.state is State.DEAD:
            raise Killed

    def preempt(self, duration_ns: int) -> None:
        """Let other domains run for that long, in the middle of the current callback: what another processor does.

        Called from a store to shared memory. Not nested. Raises Killed if the current domain was killed meanwhile.
        """
        if self._preempting:
            return
        current, task = self.current_domain(), asyncio.current_task(self)
        self._preempting = current.preempted = True
        self._unlist(current)
        if task is not None:
            _asyncio_tasks._leave_task(self, task)
        try:
            self._run(duration_ns // CALLBACK_NS, self.now_ns + duration_ns)
        finally:
            if task is not None:
                _asyncio_tasks._enter_task(self, task)
            self._preempting = current.preempted = False
            self._list(current)
        self.checkpoint()

    def _list(self, domain: Domain) -> None:
        if domain.queue and not domain.listed and not domain.preempted and domain.state is State.RUNNING:
            domain.listed = True
            self._runnable.append(domain)

    def _unlist(self, domain: Domain) -> None:
        if domain.listed:
            domain.listed = False
            self._runnable.remove(domain)

    def _halted(self, domain: Domain) -> None:
        if domain.on_halt and not domain.active:
            callbacks, domain.on_halt = domain.on_halt, []
            for callback in callbacks:
                callback()

    # -- what asyncio asks of a loop --------------------------------------------------------------------------------

    def time(self) -> float:
        """As the clock of the running code shows it."""
        domain = CURRENT.get()
        if domain is None or domain.clock is None:
            return self.now_ns * 1e-9
        return domain.clock.now_ns() * 1e-9

    def call_soon(  # type: ignore[override]
        self, callback: Callable[..., object], *args: Any, context: contextvars.Context | None = None
    ) -> SimulatedHandle:
        domain = (CURRENT.get() if context is None else context.get(CURRENT)) or self.system
        handle = SimulatedHandle(domain, callback, args, self, context)
        if domain.listed:
            domain.queue.append(handle)
        else:
            self._due(handle)
        return handle

    def call_soon_threadsafe(  # type: ignore[override]
        self, callback: Callable[..., object], *args: Any, context: contextvars.Context | None = None
    ) -> SimulatedHandle:
        return self.call_soon(callback, *args, context=context)

    def call_later(  # type: ignore[override]
        self, delay: float, callback: Callable[..., object], *args: Any, context: contextvars.Context | None = None
    ) -> SimulatedHandle:
        domain = (CURRENT.get() if context is None else context.get(CURRENT)) or self.system
        delay_ns = round(delay * 1e9)
        if domain.clock is not None:
            delay_ns = domain.clock.lasts(delay_ns)
        return self._call_at(domain, self.now_ns + delay_ns, callback, args, context)

    def call_at(  # type: ignore[override]
        self, when: float, callback: Callable[..., object], *args: Any, context: contextvars.Context | None = None
    ) -> SimulatedHandle:
        domain = (CURRENT.get() if context is None else context.get(CURRENT)) or self.system
        when_ns = round(when * 1e9)
        if domain.clock is not None:
            when_ns = domain.clock.when(when_ns)
        return self._call_at(domain, when_ns, callback, args, context)

    def call_at_ns(
        self, when_ns: int, callback: Callable[..., object], *args: Any, context: contextvars.Context | None = None
    ) -> SimulatedHandle:
        """In the world's own time."""
        domain = (CURRENT.get() if context is None else context.get(CURRENT)) or self.system
        return self._call_at(domain, when_ns, callback, args, context)

    def _call_at(
        self,
        domain: Domain,
        when_ns: int,
        callback: Callable[..., object],
        args: tuple[Any, ...],
        context: contextvars.Context | None,
    ) -> SimulatedHandle:
        handle = SimulatedHandle(domain, callback, args, self, context, when_ns)
        handle._scheduled = True
        heapq.heappush(self._timers, (when_ns, next(self._timer_numbers), handle))
        return handle

    def create_task(  # type: ignore[override]
        self, coro: Any, *, name: str | None = None, context: contextvars.Context | None = None
    ) -> SimulatedTask[Any]:
        domain = (CURRENT.get() if context is None else context.get(CURRENT)) or self.system
        number = next(self._task_numbers)
        task = SimulatedTask(coro, loop=self, name=name, context=context, number=number, domain=domain)
        if domain.state is State.DEAD:
            domain.graveyard.append(task)
        return task

    def _timer_handle_cancelled(self, handle: SimulatedHandle) -> None:
        if not handle._scheduled:
            return
        self._cancelled_timers += 1
        if self._cancelled_timers > CANCELLED_TIMERS_MAX and self._cancelled_timers * 2 > len(self._timers):
            self._timers = [entry for entry in self._timers if not entry[2]._cancelled]
            heapq.heapify(self._timers)
            self._cancelled_timers = 0

    def _asyncgen_finalizer_hook(self, agen: Any) -> None:
        if self.current_domain().alive:
            super()._asyncgen_finalizer_hook(agen)  # type: ignore[misc]
        else:
            self.current_domain().graveyard.append(agen)

    def run_in_executor(self, executor: Any, func: Callable[..., Any], *args: Any) -> NoReturn:  # type: ignore[override]
        raise RuntimeError("there are no threads in the simulation; ask the environment")

    # -- running ----------------------------------------------------------------------------------------------------

    def _run_once(self) -> None:
        """BaseEventLoop.run_forever's turn; this one lasts until somebody calls stop()."""
        while not self._stopping:
            if not self._run(RUN_STEPS, FOREVER_NS):
                raise SimulationStuck("nothing is left to do: " + self._waiting())
            self.trace.settle()
            if self.steps > self._steps_max:
                raise SimulationStuck(f"{self.steps} callbacks and no end: " + self._waiting())

    def _run(self, steps: int, until_ns: int) -> int:
        """Run up to `steps` callbacks, moving time on to at most `until_ns` whenever none is due; returns how many.

        One function with everything in it, because it is the inner loop of every simulation.
        """
        runnable, choose, record = self._runnable, self._choose, self.trace.step
        for done in range(steps):
            if self._stopping:
                return done or 1
            if self._timers and self._timers[0][0] <= self.now_ns:
                self._fire_timers()
            count = len(runnable)
            while not count:
                if not self._timers or self._timers[0][0] > until_ns:
                    return done
                self.now_ns = max(self.now_ns, self._timers[0][0])
                self._fire_timers()
                count = len(runnable)
            index = 0 if count == 1 else int(choose() * count)
            domain = runnable[index]
            handle = domain.queue.popleft()
            if not domain.queue:
                domain.listed = False
                last = runnable.pop()
                if last is not domain:
                    runnable[index] = last
            if handle._cancelled:
                continue
            self.now_ns = now_ns = self.now_ns + CALLBACK_NS
            self.steps += 1
            record((now_ns << DOMAIN_BITS) | domain.number)
            domain.active = True
            try:
                handle._context.run(handle._callback, *handle._args)
            except BaseException as error:
                self._failed(domain, handle, error)
            domain.active = False
            if domain.state is not State.RUNNING:
                domain.graveyard.append(handle)
                self._halted(domain)
        return steps

    def _failed(self, domain: Domain, handle: SimulatedHandle, error: BaseException) -> None:
        if isinstance(error, (SystemExit, KeyboardInterrupt, SimulationStuck)):
            domain.active = False
            raise error
        if domain.state is not State.DEAD and not isinstance(error, Killed):
            context = {"message": f"exception in a callback of {domain.name}", "exception": error, "handle": handle}
            self.call_exception_handler(context)

    def _fire_timers(self) -> None:
        timers, now_ns = self._timers, self.now_ns
        while timers and timers[0][0] <= now_ns:
            handle = heapq.heappop(timers)[2]
            handle._scheduled = False
            if handle._cancelled:
                self._cancelled_timers -= 1
            else:
                self._due(handle)

    def _due(self, handle: SimulatedHandle) -> None:
        domain = handle.domain
        if domain.state is State.DEAD:
            domain.graveyard.append(handle)
            return
        domain.queue.append(handle)
        self._list(domain)

    def _waiting(self) -> str:
        waiting = sorted(
            (t.number, f"{t.get_name()} ({t.domain.name}, {t.domain.state.value})") for t in self._pending()
        )
        return ", ".join(name for _, name in waiting[:20]) or "no task waits"

    def _pending(self) -> list[SimulatedTask[Any]]:
        return [task for task in asyncio.all_tasks(self) if isinstance(task, SimulatedTask)]

    # -- the end of the world ---------------------------------------------------------------------------------------

    def abandon(self) -> None:
        """End the world as a power cut does: nothing runs any more, no `finally` block, no warning.

        What is still pending gets one reference that is never given back. That is a leak, on purpose: closing a
        coroutine would run its code. Worlds that matter for memory run in a process of their own.
        """
        for domain in self._domains:
            self.kill(domain)
        kept = (self._timers, self._pending(), [domain.graveyard for domain in self._domains], list(self._asyncgens))
        for kind in kept:
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(kind))
        self._asyncgens.clear()
        self.close()
