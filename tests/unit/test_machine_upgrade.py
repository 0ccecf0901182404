"""The upgrade of the host software, as the machine's core decides it: its table, and every way out of it."""

from __future__ import annotations

from collections import deque
from types import SimpleNamespace
from typing import Any, cast

import pytest

from everram.runtime.errors import FailedPrecondition
from everram.runtime.machine.core import MachineCore
from everram.runtime.machine.effects import (
    CloseHost,
    ContinueGuest,
    Effect,
    EndSuccessor,
    HandOver,
    KillHost,
    Limits,
    PassMemory,
    SpawnGuest,
    StartHost,
    StartSuccessor,
    StopGuest,
    Upgraded,
    UseFormer,
)
from everram.runtime.machine.lives import EXIT_REFUSED
from everram.runtime.machine.process import MachineProcess
from everram.runtime.machine.upgrades import Upgrades

MS = 1_000_000
LIMITS = Limits()


def begun(*, guests: int = 0, **wish: bool) -> MachineCore:
    """A machine whose host is ready, with so many running guests, and whose successor is being warmed up."""
    core = MachineCore(LIMITS)
    core.start(0)
    core.host_ready(0, 1)
    core.lease(0, 3600 * 1000 * MS)
    for number in range(guests):
        assert core.spawn(0, f"g{number}", 1, 100 + number) == [SpawnGuest(f"g{number}", 1)]
        core.guest_spawned(0, f"g{number}", 1000 + number)
    assert core.upgrade.begin(0, **wish) == [StartSuccessor(2)]
    core.validate()
    return core


def ended(effects: list[Effect]) -> str | None:
    """The error of the upgrade's end; None if it went well. There is one end among the effects."""
    [end] = [effect for effect in effects if isinstance(effect, Upgraded)]
    return end.error.message if end.error is not None else None


def test_the_successor_becomes_the_host_and_guests_run_on() -> None:
    core = begun(guests=1)
    assert core.upgrade.verdict(1, 2, [], {"version": "2"}) == [HandOver()]
    assert core.upgrade.give_up(2) == [], "there is no way back"
    assert core.host_alive(2, 1) == []
    assert core.upgrade.handed_over(3, 1) == [PassMemory(2)]
    core.validate()
    assert (core.host.incarnation, core.host.state, core.guests["g0"].state) == (2, "starting", "running")
    assert core.host_exited(4, 1) == [], "the former host's end is nobody's affair any more"
    assert core.upgrade.ingested(5, 2) == []
    assert ended(core.host_ready(6, 2)) is None
    core.validate()
    assert (core.host.state, core.host.restarts, core.upgrade.step) == ("ready", 0, "")
    assert core.upgrade.at_ns == {"warming": 0, "handing": 1, "taking": 3, "ingested": 5, "ready": 6}
    assert core.host_exited(7, 2)[-1] == StartHost(3), "numbers are not used twice"


def test_guests_are_stopped_for_the_hand_over_only_on_request() -> None:
    core = begun(guests=2, pause=True)
    core.upgrade.verdict(1, 2, [], {})
    assert core.upgrade.handed_over(2, 1) == [StopGuest("g0"), StopGuest("g1")]
    core.validate()
    assert core.guest_stopped(3, "g0") == []
    assert core.guest_stopped(4, "g1") == [PassMemory(2)]
    assert core.upgrade.ingested(5, 2) == [ContinueGuest("g0"), ContinueGuest("g1")]
    assert ended(core.host_ready(6, 2)) is None


def test_a_guest_that_does_not_stop_does_not_hold_the_hand_over_up() -> None:
    core = begun(guests=1, pause=True)
    core.upgrade.verdict(0, 2, [], {})
    assert core.upgrade.handed_over(0, 1) == [StopGuest("g0")]
    assert core.next_deadline_ns() == LIMITS.pause_ns
    assert core.tick(LIMITS.pause_ns) == [PassMemory(2)]
    assert core.upgrade.ingested(LIMITS.pause_ns, 2) == [ContinueGuest("g0")]


def test_a_verdict_of_no_leaves_the_host_as_it_is() -> None:
    core = begun()
    effects = core.upgrade.verdict(1, 2, ["it is of 9.0", "this is 1.0"], {})
    assert effects[0] == EndSuccessor()
    assert ended(effects) == "it is of 9.0; this is 1.0"
    assert core.host.state == "ready"
    assert core.upgrade.successor_exited(2, 2, 137) == []
    assert core.upgrade.begin(3) == [StartSuccessor(3)]


def test_to_only_ask_changes_nothing() -> None:
    core = begun(only_ask=True)
    effects = core.upgrade.verdict(1, 2, [], {"version": "2"})
    assert (effects[0], ended(effects)) == (EndSuccessor(), None)
    assert (core.host.state, core.host.incarnation) == ("ready", 1)


@pytest.mark.parametrize("way", ["exits", "is silent", "host dies", "mains", "stop", "given up"])
def test_before_the_point_of_no_return_whatever_happens_ends_the_successor_only(way: str) -> None:
    core = begun()
    if way == "exits":
        effects = core.upgrade.successor_exited(1, 2, 1)
        assert "status 1" in (ended(effects) or "")
    elif way == "is silent":
        core.upgrade.alive(5, 2)
        for at in range(1, 101):
            core.host_alive(LIMITS.warm_ns * at // 100, 1)
        effects = core.tick(LIMITS.warm_ns + 5)
        assert EndSuccessor() in effects
    elif way == "host dies":
        effects = core.host_exited(1, 1, 137)
        assert EndSuccessor() in effects
        effects += core.tick(2)
        assert StartHost(3) in effects
    elif way == "mains":
        effects = core.set_mains(1, False)
        assert EndSuccessor() in effects
    elif way == "given up":
        effects = core.upgrade.give_up(1)
        assert EndSuccessor() in effects
        assert core.upgrade.give_up(2) == []
    else:
        effects = core.stop(1)
        assert EndSuccessor() in effects
        assert CloseHost() in effects
    assert ended(effects) is not None
    core.validate()
    assert core.upgrade.step == ""


def test_a_host_that_dies_while_it_hands_over_has_handed_over() -> None:
    core = begun()
    core.upgrade.verdict(1, 2, [], {})
    assert core.host_exited(2, 1, 137) == [PassMemory(2)]
    assert ended(core.host_ready(3, 2)) is None


def test_a_host_that_does_not_come_to_an_end_is_killed() -> None:
    core = begun()
    core.upgrade.verdict(0, 2, [], {})
    for at in range(1, 101):
        core.host_alive(LIMITS.hand_over_ns * at // 101, 1)
    assert core.tick(LIMITS.hand_over_ns) == [KillHost()]
    core.validate()
    assert core.host_exited(LIMITS.hand_over_ns + 1, 1, 137) == [PassMemory(2)]


@pytest.mark.parametrize("pause", [False, True])
def test_a_successor_that_dies_before_it_has_the_memory_leaves_it_to_the_former_software(pause: bool) -> None:
    core = begun(guests=1, pause=pause)
    core.upgrade.verdict(1, 2, [], {})
    if pause:
        core.upgrade.handed_over(2, 1)
        effects = core.upgrade.successor_exited(3, 2, 137)
        assert StartHost(3) in effects
        assert ContinueGuest("g0") in effects
    else:
        effects = core.upgrade.successor_exited(2, 2, 137)
        assert core.upgrade.handed_over(3, 1) == []
        assert core.host_exited(4, 1, 0) == [StartHost(3)]
    assert "signal 9" in (ended(effects) or "")
    assert UseFormer() not in effects
    core.validate()


def test_a_successor_that_dies_with_the_memory_is_started_again_and_then_given_up() -> None:
    core = begun(guests=1, pause=True)
    core.upgrade.verdict(1, 2, [], {})
    core.upgrade.handed_over(2, 1)
    core.guest_stopped(3, "g0")
    assert core.host_exited(4, 2, 137) == [ContinueGuest("g0"), StartHost(3)], "guests do not wait for its successor"
    core.validate()
    effects = core.host_exited(5, 3, 137)
    assert effects[0] == UseFormer()
    assert "former software" in (ended(effects) or "")
    assert effects[-1] == StartHost(4)
    assert core.host_ready(6, 4) == []
    core.validate()


def test_one_that_comes_up_at_its_second_try_has_done_it() -> None:
    core = begun()
    core.upgrade.verdict(1, 2, [], {})
    core.upgrade.handed_over(2, 1)
    assert core.host_exited(3, 2, 1) == [StartHost(3)]
    assert ended(core.host_ready(4, 3)) is None


def test_one_that_refuses_the_memory_after_all_is_given_up_at_once() -> None:
    core = begun()
    core.upgrade.verdict(1, 2, [], {})
    core.upgrade.handed_over(2, 1)
    effects = core.host_exited(3, 2, EXIT_REFUSED)
    assert effects[0] == UseFormer()
    assert effects[-1] == StartHost(3)
    assert core.host.state == "starting"


def test_events_of_others_change_nothing() -> None:
    core = begun()
    assert core.upgrade.verdict(1, 1, [], {}) == []
    assert core.upgrade.handed_over(1, 1) == []
    assert core.upgrade.ingested(1, 2) == []
    assert core.upgrade.successor_exited(1, 7, 0) == []
    assert core.upgrade.step == "warming"


def test_one_at_a_time_and_only_with_a_host_that_serves() -> None:
    core = begun()
    with pytest.raises(FailedPrecondition, match="already"):
        core.upgrade.begin(1)
    core.upgrade.verdict(1, 2, ["no"], {})
    core.set_mains(2, False)
    with pytest.raises(FailedPrecondition, match="mains"):
        core.upgrade.begin(2)
    starting = MachineCore(LIMITS)
    starting.start(0)
    with pytest.raises(FailedPrecondition, match="starting"):
        starting.upgrade.begin(1)


def test_a_machine_that_stops_in_the_midst_of_it_ends() -> None:
    core = begun(guests=1, pause=True)
    core.upgrade.verdict(1, 2, [], {})
    core.upgrade.handed_over(2, 1)
    effects = core.stop(3)
    assert EndSuccessor() in effects
    assert (core.host.state, core.upgrade.step) == ("ended", "")
    core.validate()


# -- carried out -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", ["closes first", "is reaped first"])
def test_the_end_of_the_process_that_handed_over_is_not_its_successors(
    monkeypatch: pytest.MonkeyPatch, order: str
) -> None:
    """With --pause: the successor dies while guests are being stopped, so the former software is started again, beside
    the process that has handed over."""
    killed: list[int] = []
    monkeypatch.setattr("everram.runtime.machine.process.send_signal", lambda pid, number: killed.append(pid))
    core = begun(guests=1, pause=True)
    nothing = cast(Any, SimpleNamespace(cancel=lambda: None, close=lambda: None))
    links: list[Any] = []

    def launch(command: Any, incarnation: int, kept: Any, handle: Any, gone: Any) -> tuple[int, Any]:
        links.append(SimpleNamespace(handle=handle, gone=gone, close=lambda: None, drain=lambda: None))
        return 100 * incarnation, links[-1]

    machine = cast(Any, MachineProcess.__new__(MachineProcess))
    machine.core, machine._effects, machine._performing = core, deque(), False
    machine.loop = SimpleNamespace(log=lambda text: None, at=lambda *when: nothing, now_ns=lambda: 10)
    machine._arm = machine._poll = lambda *words: None
    machine.store = SimpleNamespace(items=list)
    freezer = SimpleNamespace(stop=lambda: None, is_stopped=lambda: False, resume=lambda: None)
    machine.residents = {"g0": SimpleNamespace(poll=None, freezer=freezer)}
    machine._awaited, machine.host_command = {}, ["former"]
    machine.host_pid, machine.link, machine.launch_host = 0, None, launch
    upgrades = machine.upgrades = Upgrades(machine)
    machine._start_host(1)
    upgrades._successor = cast(Any, SimpleNamespace(pid=999, incarnation=2, command=["new"], close=lambda: None))
    core.upgrade.verdict(1, 2, [], {})
    machine.feed(core.upgrade.handed_over(2, 1))
    assert core.host.state == "leaving"
    machine._awaited[7] = (nothing, lambda: None)
    machine._ended(999, 137)
    assert (machine.host_pid, machine.host_incarnation, machine._awaited) == (300, 3, {})
    core.host_ready(3, 3)
    old, new = links
    for what in (old.gone, lambda: machine._ended(100, 0))[:: 1 if order == "closes first" else -1]:
        what()
    assert (killed, machine.link, core.host.state, machine.host_pid) == ([], new, "ready", 300)
    assert not upgrades._ending
    new.gone()
    assert (killed, machine.link) == ([300], None)
    core.validate()
