"""Planted bugs: each makes one small, plausible mistake in the real code, to prove that the checkers see it.

    with planted("lost-wakeup"):
        simulate(seed)

For tests only; nothing but the chaos commands imports this module.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from everram.runtime.guest.core import GuestCore
from everram.runtime.log.reader import LogReader
from everram.runtime.log.record import RawStore
from everram.runtime.log.writer import LogWriter
from everram.runtime.machine.core import MachineCore
from everram.runtime.machine.effects import Effect
from everram.runtime.machine.lives import LEASE

_commit = GuestCore.commit
_publish = LogWriter.publish
_host_exited = MachineCore.host_exited


def _torn_publish(writer: LogWriter) -> None:
    """The tail is cleared before it is written, as struct.pack_into does it."""
    writer.ring.set_tail(0)
    _publish(writer)


def _apply_before_append(core: GuestCore, stores: Sequence[RawStore]) -> int:
    """The stores reach the region before the log has them."""
    for number, offset, data in stores:
        core._mappings[number].store(offset, data)
    return _commit(core, stores)


def _applied_early(writer: LogWriter) -> None:
    """`applied` follows the tail at once, not after the stores."""
    _publish(writer)
    writer.publish_applied()


def _lost_wakeup(reader: LogReader) -> bool:
    """The reader goes to sleep without looking at the tail once more."""
    reader.ring.set_reader_sleeps(True)
    return True


def _freeze_lost(core: MachineCore, now_ns: int, incarnation: int, exit_status: int = 0) -> list[Effect]:
    """The end of a host thaws what it had frozen."""
    effects = _host_exited(core, now_ns, incarnation, exit_status)
    for guest in core.guests.values():
        for reason in sorted(guest.reasons - {LEASE}):
            core._drop_reason(guest, reason)
    return effects + core._take()


PLANTED: dict[str, tuple[type[Any], str, Callable[..., Any]]] = {
    "torn-publish": (LogWriter, "publish", _torn_publish),
    "apply-before-append": (GuestCore, "commit", _apply_before_append),
    "applied-early": (LogWriter, "publish", _applied_early),
    "lost-wakeup": (LogReader, "announce_sleep", _lost_wakeup),
    "freeze-lost": (MachineCore, "host_exited", _freeze_lost),
}
"""name -> (class, the method that is replaced, what replaces it)."""


@contextmanager
def planted(name: str) -> Iterator[None]:
    """The bug `name` is in the code meanwhile; "" plants none. Raises KeyError."""
    if not name:
        yield
        return
    owner, attribute, mistake = PLANTED[name]
    right = getattr(owner, attribute)
    setattr(owner, attribute, mistake)
    try:
        yield
    finally:
        setattr(owner, attribute, right)
