"""Serving a mount on an asyncio loop: one reader of the device, a task for each request that has to wait.

    session = Session(mounted, files, passthrough=True)
    await session.serve()                     # until it is unmounted; cancel it to hand the mount to a successor

The loop tells when the kernel asks something. Requests are read a few at a time, so that other work of the loop gets
its turn. What the file system answers at once is answered at once; everything else becomes a task, so a slow read
holds nobody up. A cancelled server answers nothing more: its successor has the kernel ask again.
"""

from __future__ import annotations

import asyncio
import errno
import inspect
import logging
import os
from collections.abc import Awaitable, Callable, Sequence
from typing import cast

from everram.runtime.fuse import mount as mounts
from everram.runtime.fuse import protocol
from everram.runtime.fuse.errors import errno_of
from everram.runtime.fuse.filesystem import Answer, FileSystem
from everram.runtime.fuse.mount import Mounted
from everram.runtime.fuse.operations import Operations, Reply, settled
from everram.runtime.fuse.protocol import Buffer, Malformed, Opcode, Request
from everram.runtime.tasks import TaskScope

log = logging.getLogger("everram.fuse")

REQUEST_BYTES_MAX = protocol.DATA_BYTES_MAX + 4096
"""The kernel wants room for the largest write and its headers in every read."""
TURN_REQUESTS = 16
"""Read before other callbacks of the loop get their turn."""
COPIED_BYTES_MAX = 16 << 10
"""A write no longer than this is copied, so that many that wait do not hold a large buffer each."""
BUFFERS_SPARE = 8
WAITING_BYTES_MAX = 64 << 20
WAITING_REQUESTS_MAX = 4096
"""Beyond either nothing more is read until something is answered: callers then wait in the kernel."""
INTERRUPT_GRACE_S = 1.0
"""A signal to a caller (a timer, a child that ended) interrupts its request, and few programs expect EINTR of a file.
So what ends within this time ends as if nothing had happened; after it the request is cancelled, so that a program
that is to be killed can be."""
NO_REPLY = frozenset({Opcode.FORGET, Opcode.BATCH_FORGET})


class _KernelBackings:
    def __init__(self, device: int) -> None:
        self._device = device

    def open(self, descriptor: int) -> int:
        return mounts.open_backing(self._device, descriptor)

    def close(self, backing: int) -> None:
        mounts.close_backing(self._device, backing)


class Session:
    """One server of one mount. The descriptors of `mounted` stay the caller's."""

    def __init__(self, mounted: Mounted, files: FileSystem, *, passthrough: bool = True) -> None:
        """Raises DataLoss if what `mounted` keeps is not a mount's book.

        `passthrough` False: what is opened from now on is read and written through `files` alone.
        """
        self._device = mounted.device
        self._book, self._mapping = mounts.open_book(mounted)
        self._scope = TaskScope("fuse", on_failure=_log_failure)
        self._operations = Operations(
            files,
            self._book,
            owner=(os.getuid(), os.getgid()),
            backings=_KernelBackings(mounted.device),
            passthrough=passthrough,
            scope=self._scope,
        )
        self._buffers: list[bytearray] = []
        self._waiting: dict[int, asyncio.Task[None]] = {}
        self._waiting_bytes = 0
        self._reading = False
        self._ended: asyncio.Future[None] | None = None
        self._left = False
        """Whether this server is not the mount's any more."""
        self.counts: dict[int, int] = {}
        """Requests by opcode. With passthrough reads and writes do not appear here: the kernel does them alone."""

    async def serve(self) -> None:
        """Returns when the mount has ended; then every file is released and every node forgotten."""
        self._ended = asyncio.get_running_loop().create_future()
        os.set_blocking(self._device, False)
        # Also where INIT was not answered: a predecessor may have died over it. A new mount has nothing to resend.
        if not mounts.resend(self._device) and self._book.ready:
            log.warning("this kernel cannot ask again (it is older than 6.9): what was asked of a dead server hangs")
        self._read_more()
        try:
            await self._ended
            self._leave()
            await self._operations.end()
        finally:
            self._leave()
            await self._scope.close()
            self._mapping.close()

    def _leave(self) -> None:
        self._left = True
        self._read_no_more()

    def _read_more(self) -> None:
        if not self._reading:
            asyncio.get_running_loop().add_reader(self._device, self._on_readable)
            self._reading = True

    def _read_no_more(self) -> None:
        if self._reading:
            asyncio.get_running_loop().remove_reader(self._device)
            self._reading = False

    # -- in -----------------------------------------------------------------------------------------------------

    def _on_readable(self) -> None:
        for _ in range(TURN_REQUESTS):
            buffer = self._buffers.pop() if self._buffers else bytearray(REQUEST_BYTES_MAX)
            try:
                size = os.readv(self._device, [buffer])
            except OSError as error:
                self._put_back(buffer)
                if error.errno in (errno.EAGAIN, errno.ENODEV, errno.ECONNABORTED):
                    self._pause_or_end(error)
                    return
                if error.errno not in (errno.EINTR, errno.ENOENT):  # ENOENT: its caller has gone just now
                    log.error("a request of the mount could not be read: %s", error)
                continue
            if not self._take_up(buffer, size):
                self._put_back(buffer)
            if not self._reading:
                return

    def _pause_or_end(self, error: OSError) -> None:
        if error.errno != errno.EAGAIN:
            self._read_no_more()
            if self._ended is not None and not self._ended.done():
                self._ended.set_result(None)

    def _put_back(self, buffer: bytearray) -> None:
        if len(self._buffers) < BUFFERS_SPARE:
            self._buffers.append(buffer)

    def _take_up(self, buffer: bytearray, size: int) -> bool:
        """Answer it or begin to. True if `buffer` is still needed."""
        try:
            request = protocol.parse(memoryview(buffer)[:size])
        except Malformed as error:
            log.error("the kernel sent what is no request: %s", error)
            return False
        opcode = request.opcode
        self.counts[opcode] = self.counts.get(opcode, 0) + 1
        if opcode == Opcode.INTERRUPT:
            self._interrupt(request)
            return False
        # Of all that waits only a write looks at its request again.
        keep = opcode == Opcode.WRITE and size > COPIED_BYTES_MAX
        if opcode == Opcode.WRITE and not keep:
            request = request._replace(body=memoryview(bytes(request.body)))
        try:
            answer = self._operations.answer(request)
        except Exception as error:
            self._refuse(request, error)
            return False
        if hasattr(answer, "__await__"):
            self._wait(request, cast("Awaitable[Reply]", answer), buffer if keep else None)
            return keep
        self._reply(request, answer)
        return False

    def _wait(self, request: Request, answer: Awaitable[Reply], kept: bytearray | None) -> None:
        task = self._scope.start(self._finish(request, answer), name=str(request.unique))
        held_bytes = protocol.IN_HEADER.size + len(request.body) if kept is None else len(kept)
        self._waiting[request.unique] = task
        self._waiting_bytes += held_bytes
        if self._is_full():
            self._read_no_more()

        def on_end(ended: asyncio.Task[None]) -> None:
            del self._waiting[request.unique]
            self._waiting_bytes -= held_bytes
            if inspect.iscoroutine(answer):
                answer.close()  # a task that is cancelled before its first step has not awaited it
            if kept is not None and not ended.cancelling():
                self._put_back(kept)  # whoever was cancelled may still be sending what lies in it
            if not self._left and not self._is_full():
                self._read_more()

        task.add_done_callback(on_end)

    def _is_full(self) -> bool:
        return self._waiting_bytes >= WAITING_BYTES_MAX or len(self._waiting) >= WAITING_REQUESTS_MAX

    async def _finish(self, request: Request, answer: Awaitable[Reply]) -> None:
        try:
            reply = await answer
        except asyncio.CancelledError:
            if self._left:
                raise  # a successor is asked
            self._send(request, errno.EINTR, ())
        except Exception as error:
            self._refuse(request, error)
        else:
            self._reply(request, reply)

    def _interrupt(self, request: Request) -> None:
        """Its caller was signalled."""
        try:
            unique = protocol.interrupt(request.body)
        except Malformed as error:
            log.error("the kernel sent what is no request: %s", error)
            return
        task = self._waiting.get(unique)
        if task is not None:  # otherwise it was answered in the meantime
            timer = asyncio.get_running_loop().call_later(INTERRUPT_GRACE_S, task.cancel)
            task.add_done_callback(lambda _: timer.cancel())

    # -- out ----------------------------------------------------------------------------------------------------

    def _refuse(self, request: Request, error: Exception) -> None:
        number = errno_of(error)
        if number == errno.EIO:
            log.error("request %d of the mount failed", request.opcode, exc_info=error)
        self._send(request, number, ())

    def _reply(self, request: Request, reply: Reply) -> None:
        if self._left:
            return
        if not self._send(request, 0, reply.parts) and reply.undo is not None:
            self._scope.start(_undo(reply.undo), name="undo")

    def _send(self, request: Request, error: int, parts: Sequence[Buffer]) -> bool:
        """False if the kernel does not want the answer any more."""
        if request.opcode in NO_REPLY or self._left:
            return True
        length = 0
        for part in parts:
            length += len(part)
        try:
            os.writev(self._device, [protocol.pack_header(length, error, request.unique), *parts])
        except OSError as problem:
            if problem.errno == errno.EINVAL and not error:
                # An answer of a form that the kernel does not take is a bug; its caller must not hang for that.
                log.error("the kernel refused the answer to request %d (%d bytes)", request.opcode, length)
                self._send(request, errno.EIO, ())
            elif problem.errno not in (errno.ENOENT, errno.ENODEV, errno.ECONNABORTED):
                log.error("request %d of the mount could not be answered: %s", request.opcode, problem)
            return False
        return True


async def _undo(undo: Callable[[], Answer[None]]) -> None:
    await settled(undo())


def _log_failure(name: str, error: BaseException) -> None:
    log.error("%s failed", name, exc_info=error)
