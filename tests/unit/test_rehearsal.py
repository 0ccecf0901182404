"""A rehearsal of a power cut stops the guests for a moment, and whatever happens in it does not keep them so."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any, cast

import pytest

from everram.actors.power_monitor import ac_loss, rehearsal
from everram.actors.power_monitor import actor as power_monitor
from everram.runtime.machine.core import MachineCore
from everram.runtime.machine.effects import ContinueGuest, Limits


class Machine:
    """Notes what it is asked; its freeze fails with `error`."""

    battery_s = 5.0

    def __init__(self, error: BaseException | None = None) -> None:
        self.error = error
        self.asked: list[tuple[str, str, str]] = []

    async def freeze(self, guest_id: str, reason: str) -> None:
        self.asked.append(("freeze", guest_id, reason))
        if self.error is not None:
            raise self.error

    async def thaw(self, guest_id: str, reason: str) -> None:
        self.asked.append(("thaw", guest_id, reason))


async def test_guests_go_on_where_a_rehearsal_is_cut_off() -> None:
    machine = Machine(asyncio.CancelledError())
    environment = SimpleNamespace(machine=machine, clock=SimpleNamespace(now_ns=lambda: 0))
    with pytest.raises(asyncio.CancelledError):
        await rehearsal.rehearse(cast(Any, SimpleNamespace(environment=environment)), asyncio.Lock(), 1)
    assert machine.asked == [("freeze", "", "rehearsal"), ("thaw", "", "rehearsal")]
    assert rehearsal.FREEZE_REASON not in (ac_loss.FREEZE_REASON, power_monitor.FREEZE_REASON)


async def test_a_host_begins_by_ending_what_the_one_before_was_rehearsing(monkeypatch: pytest.MonkeyPatch) -> None:
    async def nothing_more(disk: object) -> None:
        raise NotImplementedError

    async def ends(disk: object) -> Any:
        return SimpleNamespace(counts=SimpleNamespace(life="", told_by=""))

    monkeypatch.setattr(power_monitor, "examine", nothing_more)
    monkeypatch.setattr(power_monitor.EndRecord, "read", ends)
    monitor, machine = cast(Any, power_monitor.PowerMonitor.__new__(power_monitor.PowerMonitor)), Machine()
    environment = SimpleNamespace(machine=machine, disk=None)
    monitor.context = SimpleNamespace(environment=environment, ref=lambda kind: None)
    with pytest.raises(NotImplementedError):
        await monitor.on_start()
    assert machine.asked == [("thaw", "", rehearsal.FREEZE_REASON)]


def test_that_lets_guests_go_on_which_a_killed_host_had_stopped() -> None:
    core = MachineCore(Limits())
    core.start(0)
    core.host_ready(0, 1)
    core.lease(0, 10**15)
    core.spawn(0, "g", 1, 1)
    core.guest_spawned(0, "g", 100)
    core.freeze(1, "", rehearsal.FREEZE_REASON, 2)
    core.guest_stopped(2, "g")
    core.host_exited(3, 1, 137)
    core.tick(10**6)
    assert core.thaw(10**7, "", rehearsal.FREEZE_REASON) == [ContinueGuest("g")]
    assert not core.reasons
