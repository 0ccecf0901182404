"""A loop of one thread: descriptors, timers, signals. Small because a machine has to start fast and do little."""

from __future__ import annotations

import heapq
import itertools
import selectors
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable

from everram.runtime.machine.effects import SECOND_NS

Callback = Callable[[], None]
MISTAKE_AGAIN_NS = 10 * SECOND_NS
"""Before one that repeats itself is logged once more."""


class Timer:
    __slots__ = ("at_ns", "callback")

    def __init__(self, at_ns: int, callback: Callback) -> None:
        self.at_ns = at_ns
        self.callback: Callback | None = callback

    def cancel(self) -> None:
        self.callback = None


class Loop:
    """Callbacks run one after another; what arrived is always handled before a timer that is due. A mistake in one of
    them is logged and costs that callback only: a machine that ended of its own mistake would take all memory along."""

    def __init__(self) -> None:
        self._selector = selectors.DefaultSelector()
        self._timers: list[tuple[int, int, Timer]] = []
        self._order = itertools.count()
        self._running = True
        self._last_mistake, self._mistake_again_ns = "", 0
        self._signal_handlers: dict[int, Callback] = {}
        self._wake_read, self._wake_write = socket.socketpair()
        self._wake_read.setblocking(False)
        self._wake_write.setblocking(False)
        self.watch(self._wake_read.fileno(), self._on_signal)

    def now_ns(self) -> int:
        return time.monotonic_ns()

    def watch(self, fd: int, readable: Callback | None, writable: Callback | None = None) -> None:
        """Call back while `fd` is readable or writable; replaces an earlier watch."""
        events = (selectors.EVENT_READ if readable else 0) | (selectors.EVENT_WRITE if writable else 0)
        if fd in self._selector.get_map():
            self._selector.modify(fd, events, (readable, writable))
        else:
            self._selector.register(fd, events, (readable, writable))

    def unwatch(self, fd: int) -> None:
        """Before `fd` is closed."""
        if fd in self._selector.get_map():
            self._selector.unregister(fd)

    def log(self, text: str) -> None:
        """A line for people; standard error is the machine's log."""
        now = time.strftime("%Y-%m-%d %H:%M:%S")
        print(f"{now} {text}", file=sys.stderr, flush=True)

    def at(self, at_ns: int, callback: Callback) -> Timer:
        timer = Timer(at_ns, callback)
        heapq.heappush(self._timers, (at_ns, next(self._order), timer))
        return timer

    def on_signal(self, number: int, callback: Callback) -> None:
        self._signal_handlers[number] = callback
        signal.signal(number, lambda _number, _frame: None)
        signal.siginterrupt(number, False)
        signal.set_wakeup_fd(self._wake_write.fileno(), warn_on_full_buffer=False)

    def run(self) -> None:
        while self._running:
            for key, events in self._selector.select(self._timeout_s()):
                readable, writable = key.data
                # A callback before this one may have closed or replaced the descriptor.
                if events & selectors.EVENT_WRITE and writable and self._is_watched(key):
                    self.call(writable)
                if events & selectors.EVENT_READ and readable and self._is_watched(key):
                    self.call(readable)
            self._run_timers()

    def call(self, callback: Callback) -> None:
        """Without passing on a mistake in it."""
        try:
            callback()
        except Exception:
            mistake, now_ns = traceback.format_exc(), self.now_ns()
            if (
                mistake != self._last_mistake or now_ns >= self._mistake_again_ns
            ):  # at every turn it would fill the disk
                self.log(f"mistake in the machine: {mistake}")
                self._last_mistake, self._mistake_again_ns = mistake, now_ns + MISTAKE_AGAIN_NS

    def stop(self) -> None:
        self._running = False

    def close(self) -> None:
        signal.set_wakeup_fd(-1)
        self._selector.close()
        self._wake_read.close()
        self._wake_write.close()

    def _is_watched(self, key: selectors.SelectorKey) -> bool:
        return self._selector.get_map().get(key.fd) is key or (
            key.fd in self._selector.get_map() and self._selector.get_key(key.fd).data == key.data
        )

    def _timeout_s(self) -> float | None:
        while self._timers and self._timers[0][2].callback is None:
            heapq.heappop(self._timers)
        if not self._timers:
            return None
        return max(0, self._timers[0][0] - self.now_ns()) / SECOND_NS

    def _run_timers(self) -> None:
        now_ns = self.now_ns()
        while self._timers and self._timers[0][0] <= now_ns:
            callback = heapq.heappop(self._timers)[2].callback
            if callback is not None:
                self.call(callback)

    def _on_signal(self) -> None:
        try:
            numbers = self._wake_read.recv(4096)
        except BlockingIOError:
            return
        for number in sorted(set(numbers)):
            if (handler := self._signal_handlers.get(number)) is not None:
                self.call(handler)
