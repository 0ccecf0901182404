"""The machine's core: its tables, step by step, and its invariants under any sequence of events."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from everram.runtime.errors import (
    AlreadyExists,
    EverramError,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    PermissionDenied,
    Unavailable,
)
from everram.runtime.machine.core import MachineCore
from everram.runtime.machine.effects import (
    Admit,
    CloseHost,
    ContinueGuest,
    Done,
    Effect,
    End,
    EndSuccessor,
    Failed,
    HangHost,
    KillGuest,
    KillHost,
    Limits,
    Notify,
    PassMemory,
    PowerOff,
    SpawnGuest,
    StartHost,
    StartSuccessor,
    StopGuest,
)
from everram.runtime.machine.lives import EXIT_REFUSED, REASONS

MS = 1_000_000
LIMITS = Limits()


class Bench:
    """A core with a hand on its clock."""

    def __init__(self, *, lease_ms: int = 60_000, ready: bool = True) -> None:
        self.now = 0
        self.core = MachineCore(LIMITS)
        assert self.core.start(self.now) == [StartHost(1)]
        if ready:
            assert self.core.host_ready(self.now, 1) == []
        if lease_ms:
            self.core.lease(self.now, lease_ms * MS)

    def after(self, ms: int) -> int:
        self.now += ms * MS
        return self.now

    def running(self, guest_id: str = "g", epoch: int = 1, pid: int = 100) -> None:
        assert self.core.spawn(self.now, guest_id, epoch, 1) == [SpawnGuest(guest_id, epoch)]
        assert self.core.guest_spawned(self.now, guest_id, pid) == [Done(1)]
        self.core.validate()

    def ping_until(self, ms: int) -> list[Effect]:
        """Let the host ping until then; what else came of it."""
        effects: list[Effect] = []
        while self.now < ms * MS:
            self.after(100)
            effects += self.core.host_alive(self.now, self.core.host.incarnation)
            self.core.validate()
        return effects


# -- the host ----------------------------------------------------------------------------------------------------------


def test_a_host_that_goes_silent_is_killed_and_restarted() -> None:
    bench = Bench()
    assert bench.ping_until(2000) == []
    assert bench.core.next_deadline_ns() == 2500 * MS
    assert bench.core.tick(2499 * MS) == []
    assert bench.core.tick(2500 * MS) == [KillHost()]
    assert bench.core.host.state == "hung"
    assert bench.core.next_deadline_ns() is None
    assert bench.core.host_exited(2501 * MS, 1) == [StartHost(2)]
    bench.core.validate()


def test_a_late_tick_gives_the_host_time_to_be_heard_once() -> None:
    bench = Bench()
    assert bench.core.tick(900 * MS) == []
    assert bench.core.next_deadline_ns() == 1300 * MS
    assert bench.core.tick(1300 * MS) == [KillHost()]


def test_a_host_that_is_stopped_is_killed_however_late_each_tick() -> None:
    bench = Bench()
    at_ms = 0
    while bench.core.host.state == "ready":
        due = bench.core.next_deadline_ns()
        assert due is not None
        at_ms = due // MS + 60
        bench.core.tick(at_ms * MS)
        bench.core.validate()
    assert 500 + 2000 <= at_ms <= 500 + 2000 + 2 * 60


def test_a_host_that_is_kept_from_the_processor_is_not_taken_for_hung() -> None:
    waited = 0
    core = MachineCore(LIMITS, lambda: waited * MS)
    core.start(0)
    core.host_ready(0, 1)
    waited = 400
    assert core.tick(500 * MS) == []
    assert core.next_deadline_ns() == 900 * MS, "it was silent for a tenth of a second of its own"
    waited = 700
    assert core.tick(900 * MS) == []
    assert core.host_alive(1000 * MS, 1) == []
    waited = 740
    assert core.tick(1500 * MS) == [KillHost()], "this time it could have run, but for a moment"


def test_no_silent_host_is_waited_for_until_the_lease_runs_out() -> None:
    core = MachineCore(LIMITS, lambda: 0 if core.host.state == "starting" else 9000 * MS)
    core.start(0)
    core.host_ready(0, 1)
    core.host.waited_ns = 0
    core.lease(0, 2000 * MS)
    assert core.tick(500 * MS) == []
    assert core.next_deadline_ns() == 2000 * MS - LIMITS.lease_margin_ns - LIMITS.restart_ns
    assert core.tick(1250 * MS) == [KillHost()]
    core.validate()


def test_a_host_that_runs_without_end_is_killed_however_busy_the_computer() -> None:
    at_ms = 0
    core = MachineCore(LIMITS, lambda: at_ms * 95 // 100 * MS)
    core.start(0)
    core.host_ready(0, 1)
    while not core.effects and core.host.state == "ready":
        due = core.next_deadline_ns()
        assert due is not None
        at_ms = due // MS
        assert core.tick(due) in ([], [KillHost()])
        core.validate()
    assert 500 + 1900 <= at_ms <= 500 + 2000


def test_a_host_that_never_gets_ready_is_killed() -> None:
    bench = Bench(ready=False)
    assert bench.core.next_deadline_ns() == LIMITS.start_ns
    assert bench.core.tick(LIMITS.start_ns) == [KillHost()]


def test_a_host_that_restores_much_memory_says_so_and_is_given_time() -> None:
    bench = Bench(ready=False)
    assert bench.core.host_alive(5000 * MS, 1) == []
    assert bench.core.tick(LIMITS.start_ns) == []
    assert bench.core.tick(5000 * MS + LIMITS.start_ns) == [KillHost()]


def test_a_host_that_closes_its_socket_is_killed() -> None:
    bench = Bench()
    assert bench.core.host_disconnected(1, 1) == [KillHost()]
    assert bench.core.host_disconnected(2, 1) == []
    assert bench.core.host_exited(3, 1) == [StartHost(2)]


def test_restarts_slow_down_but_never_end_and_recover_after_a_stable_life() -> None:
    delays = [LIMITS.restart_delay_ns(n) // MS for n in range(12)]
    assert delays == [0, 0, 0, 50, 100, 200, 400, 800, 1600, 3200, 5000, 5000]
    assert LIMITS.restart_delay_ns(10**9) == LIMITS.delay_limit_ns
    bench = Bench()
    for incarnation in range(1, 20):
        bench.core.host_exited(bench.after(1), incarnation)
        if bench.core.host.state == "waiting":
            assert bench.core.host.deadline_ns is not None
            bench.now = bench.core.host.deadline_ns
            assert StartHost(incarnation + 1) in bench.core.tick(bench.now)
    assert bench.core.host.restarts == 19
    bench.core.host_ready(bench.after(1), 20)
    bench.ping_until(bench.now // MS + 2000)
    assert bench.core.host_exited(bench.after(1), 20) == [StartHost(21)]


def test_a_host_that_refuses_is_not_started_again_until_a_person_says_so() -> None:
    bench = Bench(ready=False)
    assert bench.core.host_exited(1, 1, EXIT_REFUSED) == []
    bench.core.validate()
    assert bench.core.next_deadline_ns() is None
    assert bench.core.retry_host(2) == [StartHost(2)]
    with pytest.raises(FailedPrecondition):
        bench.core.retry_host(2)
    bench.core.host_exited(3, 2, EXIT_REFUSED)
    assert bench.core.stop(4) == [End()]
    bench = Bench()
    assert bench.core.host_exited(1, 1, EXIT_REFUSED) == [StartHost(2)]
    # Its socket ends with it: that may be seen first, and the kill that follows hits nobody.
    bench = Bench(ready=False)
    assert bench.core.host_disconnected(1, 1) == [KillHost()]
    assert bench.core.host_exited(1, 1, EXIT_REFUSED) == []
    assert bench.core.host.state == "refused"


def test_events_of_a_dead_host_are_ignored() -> None:
    bench = Bench()
    bench.core.host_exited(1, 1)
    assert bench.core.host_ready(2, 1) == []
    assert bench.core.host_exited(2, 1) == []
    assert bench.core.host_disconnected(2, 1) == []
    assert bench.core.host.state == "starting"


def test_host_faults() -> None:
    bench = Bench()
    assert bench.core.kill_host(1) == [KillHost()]
    assert bench.core.hang_host(1) == [HangHost()]
    bench.core.stop(2)
    with pytest.raises(FailedPrecondition):
        bench.core.kill_host(3)


def test_the_cut_network_reaches_the_host() -> None:
    bench = Bench()
    assert bench.core.set_cut(1, True) == [Notify("network", connected=False)]
    assert bench.core.set_cut(1, True) == []
    assert bench.core.cut
    bench.core.host_exited(2, 1)
    # The next host learns it from the machine's hello.
    assert bench.core.host_ready(3, 2) == []
    assert bench.core.set_cut(4, False) == [Notify("network", connected=True)]


def test_mains_reach_the_host_and_its_successor() -> None:
    bench = Bench()
    told = Notify("mains", mains=False, deadline_ns=1 + LIMITS.battery_ns)
    assert bench.core.set_mains(1, False) == [told]
    assert bench.core.set_mains(1, False) == []
    bench.core.host_exited(2, 1)
    assert bench.core.host_ready(3, 2) == [told]


# -- freezing ----------------------------------------------------------------------------------------------------------


def test_only_the_first_reason_stops_and_only_the_last_continues() -> None:
    bench = Bench()
    bench.running()
    core = bench.core
    assert core.freeze(1, "g", "snapshot", 2) == [StopGuest("g")]
    assert core.freeze(1, "g", "upgrade", 3) == []
    assert core.guest_stopped(2, "g") == [Done(2), Done(3)]
    assert core.freeze(2, "g", "snapshot", 4) == [Done(4)]
    assert core.thaw(3, "g", "snapshot") == []
    assert core.thaw(3, "g", "snapshot") == []
    assert core.thaw(3, "g", "upgrade") == [ContinueGuest("g")]
    assert core.guest_stopped(4, "g") == []
    core.validate()


def test_a_thaw_before_the_stop_fails_who_waited() -> None:
    bench = Bench()
    bench.running()
    bench.core.freeze(1, "g", "snapshot", 2)
    continued, failed = bench.core.thaw(1, "g", "snapshot")
    assert continued == ContinueGuest("g")
    assert isinstance(failed, Failed) and failed.request == 2


def test_reasons_outlive_the_host_but_its_requests_do_not() -> None:
    bench = Bench()
    bench.running()
    bench.core.freeze(1, "g", "snapshot", 2)
    assert bench.core.host_exited(2, 1) == [StartHost(2)]
    assert bench.core.guest_stopped(3, "g") == []
    assert bench.core.guests["g"].reasons == {"snapshot"}
    assert bench.core.guests["g"].state == "frozen"


def test_the_lease_freezes_a_margin_before_its_deadline_and_for_good() -> None:
    bench = Bench(lease_ms=1000)
    bench.running()
    core = bench.core
    end = 1000 * MS - LIMITS.lease_margin_ns
    bench.ping_until(800)
    assert core.next_deadline_ns() == end
    assert core.tick(end - 1) == []
    assert core.tick(end) == [StopGuest("g")]
    # The renewal came too late for this guest ...
    assert core.lease(end + 1, 10_000 * MS) == []
    assert core.guest_stopped(end + 2, "g") == [Notify("frozen", "g", 1, pid=100, reason="lease")]
    with pytest.raises(FailedPrecondition):
        core.thaw(end + 3, "g", "lease")
    # ... but not for a new one.
    assert core.spawn(end + 3, "h", 1, 5) == [SpawnGuest("h", 1)]
    assert core.kill(end + 4, "g", 6) == [KillGuest("g")]
    assert core.guest_exited(end + 5, "g", 137) == []
    assert core.guest_gone(end + 6, "g") == [Notify("exited", "g", 1, exit_status=137, pid=100), Done(6)]


def test_the_lease_also_takes_hold_of_a_guest_frozen_for_another_reason() -> None:
    bench = Bench(lease_ms=400)
    bench.running()
    bench.core.freeze(1, "g", "snapshot", 2)
    bench.core.guest_stopped(2, "g")
    assert bench.core.tick(400 * MS) == [Notify("frozen", "g", 1, pid=100, reason="lease")]
    assert bench.core.thaw(401 * MS, "g", "snapshot") == []
    assert bench.core.guests["g"].state == "frozen"


def test_a_refused_request_hands_out_what_was_due_with_the_next_tick() -> None:
    bench = Bench(lease_ms=400)
    bench.running()
    with pytest.raises(NotFound):
        bench.core.forget(400 * MS, "nobody")
    assert bench.core.next_deadline_ns() == 0
    assert bench.core.tick(400 * MS) == [StopGuest("g")]


def test_without_a_lease_nothing_starts() -> None:
    bench = Bench(lease_ms=0)
    with pytest.raises(Unavailable, match="lease"):
        bench.core.spawn(1, "g", 1, 1)


def test_a_frozen_machine_starts_nothing_and_stops_everything() -> None:
    bench = Bench()
    bench.running("a", pid=1)
    core = bench.core
    core.spawn(1, "late", 1, 2)
    assert core.freeze(1, "", "power", 3) == [StopGuest("a")]
    with pytest.raises(Unavailable, match="power"):
        core.spawn(1, "b", 1, 4)
    assert core.guest_stopped(2, "a") == []
    assert core.guest_spawned(2, "late", 9) == [Done(2), StopGuest("late")]
    with pytest.raises(FailedPrecondition):
        core.thaw(2, "a", "power")
    assert core.guest_stopped(3, "late") == [Done(3)]
    assert core.thaw(4, "", "power") == [ContinueGuest("a"), ContinueGuest("late")]
    core.validate()


def test_a_freeze_of_the_machine_does_not_wait_for_a_guest_that_could_not_be_started() -> None:
    core = Bench().core
    core.spawn(1, "g", 1, 1)
    assert core.freeze(1, "", "down", 2) == []
    error = NotFound("no such program")
    assert core.spawn_failed(2, "g", error) == [Failed(1, error), Done(2)]
    core.validate()


def test_wrong_reasons_are_refused() -> None:
    bench = Bench()
    bench.running()
    for attempt in (
        lambda: bench.core.freeze(1, "g", "mood", 2),
        lambda: bench.core.thaw(1, "g", "mood"),
        lambda: bench.core.freeze(1, "", "lease", 2),
    ):
        with pytest.raises(InvalidArgument):
            attempt()
    with pytest.raises(NotFound):
        bench.core.freeze(1, "h", "snapshot", 2)


# -- guests ------------------------------------------------------------------------------------------------------------


def test_exit_status_is_kept_until_forgotten_and_epochs_only_rise() -> None:
    bench = Bench()
    bench.running(epoch=3)
    core = bench.core
    with pytest.raises(FailedPrecondition):
        core.spawn(1, "g", 4, 2)
    with pytest.raises(FailedPrecondition):
        core.forget(1, "g")
    assert core.guest_exited(1, "g", 7) == [KillGuest("g")]
    assert core.guest_gone(2, "g") == [Notify("exited", "g", 3, exit_status=7, pid=100)]
    assert (core.guests["g"].exit_status, core.guests["g"].live_pid) == (7, 0)
    assert core.freeze(3, "g", "down", 3) == [Done(3)]
    assert core.kill(3, "g", 4) == [Done(4)]
    with pytest.raises(InvalidArgument, match="epoch"):
        core.spawn(3, "g", 3, 5)
    assert core.spawn(3, "g", 4, 6) == [SpawnGuest("g", 4)]
    error = NotFound("no such program")
    assert core.spawn_failed(3, "g", error) == [Failed(6, error)]
    assert (core.guests["g"].epoch, core.guests["g"].exit_status) == (3, 7)
    core.forget(4, "g")
    assert core.guests == {}


def test_stop_ends_guests_and_host_then_the_machine() -> None:
    bench = Bench()
    bench.running()
    core = bench.core
    assert core.stop(1) == [KillGuest("g"), CloseHost()]
    assert core.stop(1) == []
    assert core.next_deadline_ns() == 1 + LIMITS.stop_grace_ns
    assert core.tick(1 + LIMITS.stop_grace_ns) == [KillHost()]
    assert core.host_exited(3, 1) == []
    core.guest_exited(3, "g", 137)
    assert core.guest_gone(3, "g")[-1] == End()
    with pytest.raises(FailedPrecondition):
        core.spawn(4, "h", 1, 2)
    core.validate()


# -- attachment --------------------------------------------------------------------------------------------------------


def test_attach_rules() -> None:
    bench = Bench()
    bench.running()
    core = bench.core
    with pytest.raises(PermissionDenied):
        core.attach(1, "g", 1, 7, in_tree=False, tracked=False)
    with pytest.raises(NotFound):
        core.attach(1, "x", 1, 7, in_tree=True, tracked=False)
    with pytest.raises(FailedPrecondition, match="epoch"):
        core.attach(1, "g", 2, 7, in_tree=True, tracked=False)
    assert core.attach(1, "g", 1, 7, in_tree=True, tracked=False) == [Notify("attached", "g", 1, pid=7)]
    with pytest.raises(AlreadyExists, match="7"):
        core.attach(1, "g", 1, 8, in_tree=True, tracked=False)
    assert core.detached(2, "g", 8) == []
    assert core.detached(2, "g", 7) == [Notify("detached", "g", 1, pid=7)]
    core.validate()


def test_a_tracked_attachment_waits_for_the_host() -> None:
    bench = Bench()
    bench.running()
    core = bench.core
    assert core.attach(1, "g", 1, 7, in_tree=True, tracked=True) == []
    assert core.admit(1, "g", 7) == []
    with pytest.raises(FailedPrecondition):
        core.tracked(1, "g", 8)
    assert core.tracked(1, "g", 7) == [Notify("attached", "g", 1, pid=7)]
    core.validate()
    assert core.admit(2, "g", 8) == [], "that is another process: nothing was protected of this one"
    assert core.admit(2, "g", 7) == [Admit("g")]
    assert core.admit(2, "g", 7) == []
    core.detached(3, "g", 7)
    core.attach(4, "g", 1, 9, in_tree=True, tracked=True)
    assert core.untracked(4, "g", 9) == [Notify("attached", "g", 1, pid=9)]


# -- any sequence ------------------------------------------------------------------------------------------------------

GUESTS = st.sampled_from(["", "a", "b"])
REASON = st.sampled_from(sorted(REASONS))


class AnySequence(RuleBasedStateMachine):
    """A model of the world outside obeys the effects; after each step the invariants of both must hold."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0
        self.core = MachineCore(LIMITS)
        self.requests = 0
        self.open: dict[int, int] = {}
        """Requests without an answer, and the incarnation of the host that made them."""
        self.host = 0
        self.stopped: set[str] = set()
        """Guests whose last order was StopGuest."""
        self.successor = 0
        """Incarnation of the successor that runs; 0: none."""
        self.last_deadline: int | None = None
        self.obey(self.core.start(0))

    def obey(self, effects: list[Effect]) -> None:
        for effect in effects:
            match effect:
                case StartHost(incarnation):
                    self.host = incarnation
                case StartSuccessor(incarnation):
                    assert not self.successor, "two successors"
                    self.successor = incarnation
                case EndSuccessor():
                    self.successor = 0
                case PassMemory(incarnation):
                    assert incarnation == self.successor, "the memory is passed to nobody"
                    self.host, self.successor = incarnation, 0
                    self.open.clear()
                case SpawnGuest(guest_id):
                    self.stopped.discard(guest_id)
                case StopGuest(guest_id):
                    assert guest_id not in self.stopped, "stopped twice"
                    self.stopped.add(guest_id)
                case ContinueGuest(guest_id):
                    assert guest_id in self.stopped, "continued while it runs"
                    self.stopped.discard(guest_id)
                case Done(request) | Failed(request):
                    del self.open[request]

    def ask(self, call: object, *arguments: object) -> None:
        self.requests += 1
        self.open[self.requests] = self.host
        try:
            self.obey(call(self.now, *arguments, self.requests))  # type: ignore[operator]
        except EverramError:
            del self.open[self.requests]

    def attempt(self, call: object, *arguments: object, **named: object) -> None:
        try:
            self.obey(call(self.now, *arguments, **named))  # type: ignore[operator]
        except EverramError:
            pass

    @rule(ms=st.sampled_from([0, 1, 40, 100, 300, 600, 2500]))
    def time_passes(self, ms: int) -> None:
        end = self.now + ms * MS
        while (due := self.core.next_deadline_ns()) is not None and due <= end:
            self.now = max(self.now, due)
            self.obey(self.core.tick(self.now))
            self.core.validate()
        self.now = end

    @rule(late_ms=st.integers(1, 3000))
    def machine_sleeps(self, late_ms: int) -> None:
        self.now += late_ms * MS
        self.obey(self.core.tick(self.now))

    @rule(
        event=st.sampled_from(["host_ready", "host_alive", "host_disconnected", "host_exited"]),
        status=st.sampled_from([0, EXIT_REFUSED]),
    )
    def host_event(self, event: str, status: int) -> None:
        if event == "host_exited" and self.core.host.state in ("waiting", "refused", "ended"):
            return  # a process ends once
        more = (status,) if event == "host_exited" else ()
        self.obey(getattr(self.core, event)(self.now, self.host, *more))
        if event == "host_exited":
            self.open = {r: h for r, h in self.open.items() if h == self.core.host.incarnation and h != self.host}

    @rule(pause=st.booleans(), only_ask=st.booleans())
    def upgrade(self, pause: bool, only_ask: bool) -> None:
        self.attempt(self.core.upgrade.begin, pause=pause, only_ask=only_ask)

    @rule(yes=st.booleans())
    def verdict(self, yes: bool) -> None:
        self.obey(self.core.upgrade.verdict(self.now, self.successor, [] if yes else ["no"], {}))

    @rule(event=st.sampled_from(["handed_over", "ingested"]))
    def hand_over_event(self, event: str) -> None:
        self.obey(getattr(self.core.upgrade, event)(self.now, self.host))

    @rule()
    def successor_exited(self) -> None:
        if self.successor:
            incarnation, self.successor = self.successor, 0
            self.obey(self.core.upgrade.successor_exited(self.now, incarnation, 137))

    @rule(ahead_ms=st.integers(-500, 3000))
    def lease(self, ahead_ms: int) -> None:
        self.obey(self.core.lease(self.now, self.now + ahead_ms * MS))

    @rule(guest_id=st.sampled_from(["a", "b"]), step=st.integers(0, 1))
    def spawn(self, guest_id: str, step: int) -> None:
        record = self.core.guests.get(guest_id)
        self.ask(self.core.spawn, guest_id, (record.epoch if record else 0) + step)

    @rule(guest_id=st.sampled_from(["a", "b"]), fails=st.booleans())
    def spawned(self, guest_id: str, fails: bool) -> None:
        if guest_id in self.core.guests and self.core.guests[guest_id].state == "spawning":
            if fails:
                self.obey(self.core.spawn_failed(self.now, guest_id, NotFound("no such program")))
            else:
                self.obey(self.core.guest_spawned(self.now, guest_id, 1 + len(guest_id)))

    @rule(guest_id=GUESTS, reason=REASON)
    def freeze(self, guest_id: str, reason: str) -> None:
        self.ask(self.core.freeze, guest_id, reason)

    @rule(guest_id=GUESTS, reason=REASON)
    def thaw(self, guest_id: str, reason: str) -> None:
        self.attempt(self.core.thaw, guest_id, reason)

    @rule(guest_id=GUESTS)
    def kill(self, guest_id: str) -> None:
        self.ask(self.core.kill, guest_id)

    @rule(guest_id=GUESTS)
    def stops(self, guest_id: str) -> None:
        self.obey(self.core.guest_stopped(self.now, guest_id))

    @rule(guest_id=st.sampled_from(["a", "b"]), status=st.integers(0, 255))
    def ends(self, guest_id: str, status: int) -> None:
        guest = self.core.guests.get(guest_id)
        if guest is None or guest.state in ("spawning", "exited"):
            return
        if guest.exit_status < 0:
            self.obey(self.core.guest_exited(self.now, guest_id, status))
        else:
            self.obey(self.core.guest_gone(self.now, guest_id))

    @rule(guest_id=GUESTS, action=st.sampled_from(["forget", "retry_host"]))
    def other(self, guest_id: str, action: str) -> None:
        if action == "retry_host":
            return self.attempt(self.core.retry_host)
        return self.attempt(getattr(self.core, action), guest_id)

    @rule(guest_id=GUESTS, epoch=st.integers(0, 2), pid=st.integers(1, 2), in_tree=st.booleans(), tracked=st.booleans())
    def attach(self, guest_id: str, epoch: int, pid: int, in_tree: bool, tracked: bool) -> None:
        self.attempt(self.core.attach, guest_id, epoch, pid, in_tree=in_tree, tracked=tracked)

    @rule(guest_id=GUESTS, pid=st.integers(1, 2), event=st.sampled_from(["tracked", "untracked", "detached", "admit"]))
    def attaching(self, guest_id: str, pid: int, event: str) -> None:
        self.attempt(getattr(self.core, event), guest_id, pid)

    @rule(often=st.integers(0, 20))
    def stop(self, often: int) -> None:
        if often == 0:
            self.obey(self.core.stop(self.now))

    @invariant()
    def holds(self) -> None:
        self.obey(self.core.tick(self.now))
        self.core.validate()
        for guest in self.core.guests.values():
            if guest.state in ("running", "freezing", "frozen"):
                assert (guest.guest_id in self.stopped) == bool(guest.reasons)
                assert self.core.serving(self.now) or "lease" in guest.reasons
        waiting = {request for guest in self.core.guests.values() for request in guest.waiters}
        assert self.open.keys() == waiting | self.core.waiters.keys()


TestAnySequence = AnySequence.TestCase
TestAnySequence.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


# -- power -------------------------------------------------------------------------------------------------------------

FULL_MS = LIMITS.battery_ns // MS


def without_mains(bench: Bench) -> list[Effect]:
    effects = bench.core.set_mains(bench.now, False)
    bench.core.validate()
    return effects


def test_the_host_is_told_how_long_the_battery_lasts_and_everything_ends_with_it() -> None:
    bench = Bench(lease_ms=0)
    bench.after(50)
    end_ns = bench.now + LIMITS.battery_ns
    assert without_mains(bench) == [Notify("mains", mains=False, deadline_ns=end_ns)]
    assert bench.core.set_mains(bench.now, False) == [], "it is off already"
    assert bench.ping_until(50 + FULL_MS) == [PowerOff("the battery is empty")]
    assert bench.core.off
    assert bench.core.set_mains(bench.after(1), True) == [], "too late"
    assert PowerOff("the battery is empty") not in bench.core.tick(bench.after(10_000)), "the end comes once"


def test_a_battery_is_used_up_by_several_losses_and_fills_again() -> None:
    bench = Bench(lease_ms=0)
    without_mains(bench)
    bench.ping_until(20_000)
    assert bench.core.battery_ns(bench.now) == LIMITS.battery_ns - 20_000 * MS
    assert bench.core.set_mains(bench.now, True) == [Notify("mains", mains=True)]
    bench.ping_until(25_000)
    assert bench.core.battery_ns(bench.now) == LIMITS.battery_ns - 15_000 * MS
    end_ns = bench.now + LIMITS.battery_ns - 15_000 * MS
    assert without_mains(bench) == [Notify("mains", mains=False, deadline_ns=end_ns)]
    bench.core.set_mains(bench.now, True)
    bench.ping_until(60_000)
    assert bench.core.battery_ns(bench.now) == LIMITS.battery_ns


def test_a_host_that_starts_on_battery_is_told() -> None:
    bench = Bench(lease_ms=0, ready=False)
    without_mains(bench)
    assert bench.core.host_ready(bench.after(10), 1) == [Notify("mains", mains=False, deadline_ns=LIMITS.battery_ns)]


def test_a_host_that_starts_after_a_loss_is_told_that_it_is_over_until_it_goes_on() -> None:
    """The host before it may have frozen the guests, and died."""
    bench = Bench(lease_ms=0, ready=False)
    without_mains(bench)
    bench.core.set_mains(bench.after(1), True)
    assert bench.core.host_ready(bench.after(10), 1) == [Notify("mains", mains=True)]
    bench.core.power_kept(bench.now)
    bench.core.host_exited(bench.after(1), 1)
    assert bench.core.host_ready(bench.after(10), 2) == []


def test_the_host_switches_the_machine_off_when_it_has_done_what_it_could() -> None:
    bench = Bench()
    with pytest.raises(FailedPrecondition, match="has mains"):
        bench.core.power_off(bench.now)
    without_mains(bench)
    assert bench.core.power_off(bench.after(10)) == [PowerOff("its host has switched it off")]
    assert bench.core.power_off(bench.now) == []


def test_mains_that_come_back_in_time_are_kept_or_come_too_late() -> None:
    """Between giving its guests away and switching off, a host may not know yet that the mains are back."""
    late, kept = Bench(), Bench()
    for bench in (late, kept):
        without_mains(bench)
        bench.core.set_mains(bench.after(10), True)
    assert late.core.power_off(late.now) == [PowerOff("its host has switched it off")]
    assert kept.core.power_kept(kept.now) == []
    with pytest.raises(FailedPrecondition, match="has mains"):
        kept.core.power_off(kept.now)
