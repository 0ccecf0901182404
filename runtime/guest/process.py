"""Attaching a real process: from its environment variables to a guest with its memory mapped and its log replayed."""

from __future__ import annotations

import os
import time

from everram.runtime.guest import agent, granted
from everram.runtime.guest.core import GuestCore
from everram.runtime.guest.errors import Detached, GuestError, LogCorrupt, NotAGuest
from everram.runtime.guest.shell import waiting_for_room
from everram.runtime.log.ring import Ring, RingCorrupt

_attached: GuestCore | None = None
_forked = False
_BELL = (1).to_bytes(8, "little")


def attach_core() -> GuestCore:
    """This process's hold of its guest, made at the first call.

    Raises NotAGuest outside a guest or if another process of the guest holds it, Detached in a forked child,
    LogCorrupt, LogFull if the host does not take over what snapshots need of what the log holds.
    """
    global _attached
    if _forked:
        raise Detached("this process is a forked child of a guest: attach before forking, and write only in the parent")
    if _attached is None:
        _attached = _attach()
    return _attached


def _attach() -> GuestCore:
    environment = os.environ
    try:
        path, guest_id, epoch = (
            environment["EVERRAM_ATTACH"],
            environment["EVERRAM_GUEST"],
            int(environment["EVERRAM_EPOCH"]),
        )
    except (KeyError, ValueError):
        raise NotAGuest("this program was not started by everram: start it with `everram run -- PROGRAM`") from None
    held = granted.ask(path, guest_id, epoch)
    try:
        core = _core(held, guest_id, environment.get("EVERRAM_NAME", guest_id), environment.get("EVERRAM_PORT", "0"))
    except GuestError:
        held.close()
        raise
    _holds.append(held)
    if held.memory is not None and held.table_mapping is not None:
        agent.start(held.memory, held.table_mapping.address)
    return core


def _core(held: granted.Granted, guest_id: str, name: str, port: str) -> GuestCore:
    try:
        ring = Ring.open(held.log)
    except RingCorrupt as error:
        raise LogCorrupt(f"guest {name}: {error}") from error
    return GuestCore(
        guest_id=guest_id,
        name=name,
        epoch=held.epoch,
        ring=ring,
        regions=held.regions,
        now_ns=time.monotonic_ns,
        ring_bell=_Bell(held.doorbell),
        recovered=held.recovered,
        port=int(port),
        memory=held.memory,
        wait_for_room=waiting_for_room(),
    )


_holds: list[granted.Granted] = []
"""Never released: the machine takes the end of the connection for the end of the attached process."""


class _Bell:
    """Wakes the host's reader through the eventfd that it shares with this guest."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        os.set_blocking(descriptor, False)

    def __call__(self) -> None:
        try:
            os.write(self._descriptor, _BELL)
        except BlockingIOError:
            pass  # its counter is full: it has been ringing all along


def _after_fork_in_child() -> None:
    global _attached, _forked
    if _attached is not None:
        _forked = True
        _attached.detach()
        _attached = None


os.register_at_fork(after_in_child=_after_fork_in_child)
