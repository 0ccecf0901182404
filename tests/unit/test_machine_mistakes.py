"""A mistake, or a peer that has gone, costs the machine nothing but that one's answer: with it would go all memory."""

from __future__ import annotations

import json
import os
import signal
import socket
from collections import deque
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any, cast

import pytest

from everram.actors.hypervisor.actor import Hypervisor
from everram.runtime.environment import MachineEvent
from everram.runtime.errors import EverramError, Internal, InvalidArgument
from everram.runtime.machine.core import MachineCore
from everram.runtime.machine.effects import Effect, Limits
from everram.runtime.machine.loop import MISTAKE_AGAIN_NS, Loop
from everram.runtime.machine.process import MachineProcess
from everram.runtime.machine.server import Connection


class LoggedLoop(Loop):
    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def log(self, text: str) -> None:
        self.lines.append(text)


@pytest.fixture
def loop() -> Iterator[LoggedLoop]:
    loop = LoggedLoop()
    yield loop
    loop.close()


def fail() -> None:
    raise KeyError("mistaken")


def test_a_mistake_in_a_callback_of_any_kind_does_not_end_the_loop(loop: LoggedLoop) -> None:
    before = signal.getsignal(signal.SIGUSR1)
    left, right = socket.socketpair()
    called = []

    def read() -> None:
        called.append(left.recv(1))
        fail()

    def fail_too() -> None:
        fail()  # another traceback than the signal's: the same one at once again is not logged

    def stop() -> None:
        called.append(b"timer")
        loop.stop()

    try:
        loop.watch(left.fileno(), read)
        loop.on_signal(signal.SIGUSR1, fail)
        right.send(b"x")
        os.kill(os.getpid(), signal.SIGUSR1)
        loop.at(loop.now_ns(), fail_too)
        loop.at(loop.now_ns(), stop)
        loop.run()
    finally:
        signal.signal(signal.SIGUSR1, before)
        left.close()
        right.close()
    assert called == [b"x", b"timer"]
    assert len([line for line in loop.lines if "mistaken" in line]) == 3


def test_a_mistake_that_repeats_itself_is_logged_now_and_then(
    loop: LoggedLoop, monkeypatch: pytest.MonkeyPatch
) -> None:
    for now_ns in (5, 6, 5 + MISTAKE_AGAIN_NS, 6 + MISTAKE_AGAIN_NS):
        monkeypatch.setattr(loop, "now_ns", lambda now_ns=now_ns: now_ns)
        loop.call(fail)
    assert len(loop.lines) == 2


def test_an_answer_to_an_asker_that_has_gone_is_nothing(loop: LoggedLoop) -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    connections: set[Connection] = set()
    server = SimpleNamespace(machine=SimpleNamespace(loop=loop), connections=connections)
    connection = Connection(cast(Any, server), ours)
    connections.add(connection)
    connection.send({"ok": True})
    assert json.loads(theirs.recv(100)) == {"ok": True}
    theirs.close()
    connection.send({"ok": True})
    assert not connection.open and not connections
    connection.send({"ok": True})
    connection.send({"ok": True}, [0])


def test_an_answer_that_cannot_be_sent_ends_its_connection_only(loop: LoggedLoop) -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    server = SimpleNamespace(machine=SimpleNamespace(loop=loop), connections=set())
    connection = Connection(cast(Any, server), ours)
    connection.send({"much": "x" * 10_000_000})
    theirs.close()
    assert not connection.open and len(loop.lines) == 1


def test_an_effect_that_fails_keeps_no_other_from_being_carried_out(loop: LoggedLoop) -> None:
    machine = MachineProcess.__new__(MachineProcess)
    machine.loop, machine.core, machine._timer = loop, MachineCore(Limits()), None
    machine._effects, machine._performing = deque(), False
    performed: list[object] = []

    def perform(effect: Any) -> None:
        performed.append(effect)
        if effect == "bad":
            fail()
        loop.stop()

    machine._perform = perform  # type: ignore[method-assign]
    with pytest.raises(KeyError):
        machine.feed(cast(list[Effect], ["bad", "good"]))
    loop.run()
    assert performed == ["bad", "good"] and not machine._performing


@pytest.mark.parametrize("where", ["attach", "admit"])
@pytest.mark.parametrize(
    "error", [Internal("the machine made a mistake"), InvalidArgument("bad ranges"), OSError(9, "x")]
)
async def test_a_guest_that_cannot_be_admitted_costs_no_other_guest_its_host(where: str, error: Exception) -> None:
    """The hypervisor's watch of the machine goes on to the next event."""
    admitted, logged = [], []

    def attach(event: MachineEvent) -> None:
        if where == "attach" and event.guest_id == "bad":
            raise error

    async def admit(guest_id: str, pid: int, *, served: bool) -> None:
        if guest_id == "bad":
            raise error
        admitted.append(guest_id)

    async def events() -> Any:
        for guest_id in ("bad", "good"):
            yield MachineEvent("attached", guest_id, epoch=1, pid=7, userfaultfd=3)

    hypervisor = cast(Any, Hypervisor("h1", cast(Any, SimpleNamespace(attach=attach))))
    hypervisor.context = SimpleNamespace(log=SimpleNamespace(error=lambda *words: logged.append(words)))
    hypervisor._house = SimpleNamespace(residents={}, machine=SimpleNamespace(admit=admit, events=events))
    await hypervisor._watch_machine()
    assert admitted == ["good"] and len(logged) == 1
    assert isinstance(error, EverramError | OSError)
