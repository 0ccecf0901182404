"""`everram top`: a cluster as it is now, on the whole terminal, looked at every second until `q`.

What is drawn is decided in `top_view`; here are the terminal (curses) and the asking. Whoever does not answer in time
is shown as not answering: the view never waits for what it reports on.
"""

from __future__ import annotations

import argparse
import asyncio
import curses
import os
import signal
import sys
import time
from typing import TYPE_CHECKING

from everram.runtime.cli import top_view
from everram.runtime.cli.guests import state_word
from everram.runtime.cli.output import emit
from everram.runtime.cli.status import ASK_TIMEOUT_S, gather
from everram.runtime.cli.top_view import Seen
from everram.runtime.cli.units import duration
from everram.runtime.cluster.folders import Phase
from everram.runtime.errors import EverramError, FailedPrecondition, InvalidArgument

if TYPE_CHECKING:
    from everram.runtime.client import Cluster
    from everram.runtime.client.cluster import Host
    from everram.runtime.contracts.memory_scheduler_pb2 import MemoryStatus

INTERVAL_DEFAULT_S, INTERVAL_MIN_S, INTERVAL_MAX_S = 1.0, 0.1, 60.0
QUIT_KEYS = (ord("q"), ord("Q"), 27)
COLOURS = {top_view.GOOD: curses.COLOR_GREEN, top_view.BAD: curses.COLOR_RED}


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    top = subparsers.add_parser("top", help="watch hosts, guests, leases, copies and links on the whole terminal")
    top.add_argument(
        "--interval", type=duration, default=INTERVAL_DEFAULT_S, metavar="D", help="between two looks (default 1s)"
    )
    top.set_defaults(handler=lambda args: asyncio.run(_run(args)))


async def _run(args: argparse.Namespace) -> int:
    from everram.runtime.client import Cluster

    if not INTERVAL_MIN_S <= args.interval <= INTERVAL_MAX_S:
        raise InvalidArgument(f"--interval: choose {INTERVAL_MIN_S:g}s to {INTERVAL_MAX_S:g}s")
    if not args.json and not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise InvalidArgument("top needs a terminal; `everram top --json` and `everram status --watch` print lines")
    async with await Cluster.connect(args.cluster, args.dir) as cluster:
        if args.json:
            return await _stream(cluster, args.interval)
        try:
            screen = curses.initscr()
        except curses.error as error:
            raise FailedPrecondition(
                f"this terminal cannot be drawn on (TERM={os.environ.get('TERM', '')}): {error}"
            ) from None
        try:
            return await Top(cluster, screen, args.interval).run()
        finally:
            curses.endwin()


async def _stream(cluster: Cluster, interval_s: float) -> int:
    """One JSON object a look, until Ctrl-C or the end of the cluster."""
    while True:
        emit(await look(cluster))
        await asyncio.sleep(interval_s)


async def look(cluster: Cluster) -> Seen:
    """Everything `top_view.render` draws. Raises EverramError if the supervisor does not answer."""
    seen: Seen
    seen, (guests, _), memories = await asyncio.gather(
        gather(cluster),
        cluster.guests(patience_s=0.0, timeout_s=ASK_TIMEOUT_S),
        asyncio.gather(*(_memory(host) for host in cluster.hosts)),
    )
    seen["guests"] = [top_view.guest_row(guest, state_word(guest)) for guest in guests]
    for host, memory in zip(seen["hosts"], memories, strict=True):
        host["pressure"] = memory.pressure
    swapped = {guest.guest_id: guest.swapped_bytes for memory in memories for guest in memory.guests}
    for row in seen["guests"]:
        row["swapped_bytes"] = swapped.get(row["guest_id"])
    seen["at_s"] = asyncio.get_running_loop().time()
    seen["clock"] = time.strftime("%H:%M:%S")
    return seen


async def _memory(host: Host) -> MemoryStatus:
    """Empty if it does not answer."""
    from everram.runtime.contracts.common_pb2 import Empty
    from everram.runtime.contracts.memory_scheduler_pb2 import MemoryStatus

    try:
        return await host.memory_scheduler.status(Empty(), timeout_s=ASK_TIMEOUT_S)
    except EverramError:
        return MemoryStatus()


class Top:
    """The terminal, from the first look to `q`."""

    def __init__(self, cluster: Cluster, screen: curses.window, interval_s: float) -> None:
        self._cluster = cluster
        self._screen = screen
        self._interval_s = interval_s
        self._seen: Seen | None = None
        self._before: Seen | None = None
        self._attributes: dict[str, int] = {}
        self._wake = asyncio.Event()
        """A key or a new size of the window: draw, and look again."""
        self._over = False

    async def run(self) -> int:
        self._prepare()
        loop = asyncio.get_running_loop()
        loop.add_reader(sys.stdin, self._keys)
        loop.add_signal_handler(signal.SIGWINCH, self._resized)
        looking = asyncio.create_task(self._look_on())
        try:
            while not self._over:
                if looking.done():
                    looking.result()
                self._draw()
                await self._wake.wait()
                self._wake.clear()
        finally:
            looking.cancel()
            loop.remove_signal_handler(signal.SIGWINCH)
            loop.remove_reader(sys.stdin)
        return 0

    def _prepare(self) -> None:
        curses.noecho()
        curses.cbreak()
        self._screen.nodelay(True)
        self._screen.keypad(True)
        try:
            curses.curs_set(0)
        except curses.error:
            pass  # a terminal that cannot hide it
        self._attributes = {
            top_view.TITLE: curses.A_REVERSE,
            top_view.HEAD: curses.A_BOLD,
            top_view.QUIET: curses.A_DIM,
        }
        if curses.has_colors() and not os.environ.get("NO_COLOR"):
            curses.start_color()
            curses.use_default_colors()
            for number, (mood, colour) in enumerate(COLOURS.items(), 1):
                curses.init_pair(number, colour, -1)
                self._attributes[mood] = curses.color_pair(number)

    async def _look_on(self) -> None:
        """Raises FailedPrecondition when the cluster has ended."""
        while True:
            try:
                seen = await look(self._cluster)
            except EverramError as error:
                if self._cluster.folders.phase() is not Phase.RUNNING:
                    self._wake.set()
                    raise FailedPrecondition("the cluster has ended") from error
                if self._seen is not None:
                    self._seen["error"] = error.message
            else:
                self._before, self._seen = self._seen, seen
            self._wake.set()
            await asyncio.sleep(self._interval_s)

    # -- the terminal

    def _keys(self) -> None:
        while (key := self._screen.getch()) != curses.ERR:
            if key in QUIT_KEYS:
                self._over = True
            self._wake.set()

    def _resized(self) -> None:
        size = os.get_terminal_size(sys.stdout.fileno())
        curses.resizeterm(size.lines, size.columns)
        self._wake.set()

    def _draw(self) -> None:
        height, width = self._screen.getmaxyx()
        lines: list[top_view.Line] = [top_view.Line("looking at the cluster ...", top_view.QUIET)]
        if self._seen is not None:
            lines = top_view.render(self._seen, self._before, width=width, height=height)
        self._screen.erase()
        for row, line in enumerate(lines[:height]):
            text = line.text.ljust(width) if line.mood == top_view.TITLE else line.text
            try:
                self._screen.addnstr(row, 0, text, width, self._attributes.get(line.mood, 0))
            except curses.error:
                pass  # the last cell of the last line, where the cursor has nowhere to go
        self._screen.refresh()
