"""`environment.Doorbell`: the eventfd that a guest writes to when the reader of its log sleeps."""

from __future__ import annotations

import asyncio
import os

from everram.runtime.production.machine import SystemMachine


class Doorbells:
    """The doorbell of each guest, kept by the machine across hosts and incarnations: `environment.doorbell`."""

    def __init__(self, machine: SystemMachine) -> None:
        self._machine = machine

    def __call__(self, guest_id: str) -> EventDoorbell:
        return EventDoorbell(os.dup(self._machine.doorbell(guest_id)))


class EventDoorbell:
    """One reader's end; owns the descriptor. Only one may wait at a time: a ring wakes one of several."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._rang = False
        self._waiter: asyncio.Future[None] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    async def wait(self, timeout_s: float) -> bool:
        if self._fd < 0:
            raise ValueError("the doorbell is closed")
        if self._loop is None:
            self._loop = asyncio.get_running_loop()
            self._loop.add_reader(self._fd, self._on_ring)
        if not self._rang:
            self._waiter = self._loop.create_future()
            timer = self._loop.call_later(timeout_s, self._wake)
            try:
                await self._waiter
            finally:
                timer.cancel()
                self._waiter = None
        rang, self._rang = self._rang, False
        return rang

    def close(self) -> None:
        """Whoever waits gets False."""
        if self._fd >= 0:
            if self._loop is not None:
                self._loop.remove_reader(self._fd)
            os.close(self._fd)
            self._fd = -1
            self._wake()

    def _on_ring(self) -> None:
        try:
            os.eventfd_read(self._fd)
        except BlockingIOError:
            # Another reader of the same eventfd was faster.
            return
        self._rang = True
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
