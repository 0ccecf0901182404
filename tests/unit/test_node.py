"""Nodes: order, supervision and escalation, drain and stop, nothing left behind."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from everram.runtime.actor import Actor
from everram.runtime.contracts import host_pb2
from everram.runtime.contracts.host_contract import HOST, HOST_ECHO, HostActor, HostRef
from everram.runtime.contracts.power_monitor_contract import POWER_MONITOR, PowerMonitorActor
from everram.runtime.contracts.vmemfs_contract import VMEMFS, VMemFSActor, VMemFSRef
from everram.runtime.errors import (
    AlreadyExists,
    FailedPrecondition,
    Internal,
    InvalidArgument,
    NotFound,
    Outcome,
    Unavailable,
)
from everram.runtime.node import Node
from everram.runtime.supervision import NEVER, RestartPolicy

Message = host_pb2.EchoMessage
QUICK = RestartPolicy(max_restarts=2, first_backoff_s=0.001)


def node_of(*, check_messages: bool = True) -> Node:
    return Node(None, "h1", check_messages=check_messages)  # type: ignore[arg-type]


def recording(base: type[Actor], events: list[str], name: str) -> Callable[[], Actor]:
    class Recording(base):  # type: ignore[misc,valid-type]
        async def on_start(self) -> None:
            events.append(f"{name} starts")

        async def on_stop(self) -> None:
            events.append(f"{name} stops")

    return Recording


class Subject(HostActor):
    """Fails when it is told so."""

    lives = 0

    def __init__(self) -> None:
        self.on_echo: Callable[[Message], Any] = lambda request: request

    async def on_start(self) -> None:
        type(self).lives += 1
        self.context.resources.callback(self.released)

    def released(self) -> None:
        pass

    def echo(self, request: Message) -> Any:
        if request.value == 666:
            self.context.spawn(self.break_down(), name="break down")
        return self.on_echo(request)

    async def break_down(self) -> None:
        raise OSError("the disk is on fire")


@pytest.fixture(autouse=True)
def fresh() -> None:
    Subject.lives = 0


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.001)


async def test_actors_start_after_what_they_need_and_stop_before_it() -> None:
    events: list[str] = []
    node = node_of()
    node.add(recording(HostActor, events, "host"), after=(POWER_MONITOR, VMEMFS))
    node.add(recording(VMemFSActor, events, "vmemfs"))
    node.add(recording(PowerMonitorActor, events, "power"), after=(VMEMFS,))
    await node.start()
    assert [status.state for status in node.statuses()] == ["running"] * 3
    await node.stop()
    starts, stops = ["vmemfs starts", "power starts", "host starts"], ["host stops", "power stops", "vmemfs stops"]
    assert events == starts + stops
    assert [status.state for status in node.statuses()] == ["stopped"] * 3


async def test_a_circle_and_a_missing_actor_are_refused_by_name() -> None:
    node = node_of()
    node.add(HostActor, after=(VMEMFS,))
    with pytest.raises(
        InvalidArgument, match=r"everram.v1.Host starts after everram.v1.VMemFS, which h1 does not have"
    ):
        await node.start()
    node.add(VMemFSActor, after=(HOST,))
    with pytest.raises(InvalidArgument, match="in a circle"):
        await node.start()
    with pytest.raises(AlreadyExists):
        node.add(HostActor)


async def test_refs_to_what_is_not_there_are_refused() -> None:
    node = node_of()
    with pytest.raises(NotFound, match=r"no actor that answers everram.v1.VMemFS"):
        node.ref(VMemFSRef)
    with pytest.raises(FailedPrecondition, match="no links"):
        node.ref(VMemFSRef, host="h2")


async def test_a_start_that_fails_stops_those_that_started() -> None:
    events: list[str] = []

    class Broken(HostActor):
        async def on_start(self) -> None:
            raise Unavailable("no disk")

    node = node_of()
    node.add(recording(VMemFSActor, events, "vmemfs"))
    node.add(Broken, after=(VMEMFS,))
    waiting = asyncio.create_task(node.ref(HostRef).echo(Message()))
    await asyncio.sleep(0)
    with pytest.raises(Unavailable, match="no disk"):
        await node.start()
    assert events == ["vmemfs starts", "vmemfs stops"]
    with pytest.raises(Unavailable) as caught:
        await waiting
    assert caught.value.outcome is Outcome.FAILED


async def test_a_failed_actor_is_restarted_with_what_waits() -> None:
    node = node_of()
    node.add(Subject, restart=QUICK)
    await node.start()
    ref = node.ref(HostRef)
    await ref.echo(Message(value=666))
    asks = [asyncio.create_task(ref.echo(Message(value=n))) for n in range(3)]
    assert [(await ask).value for ask in asks] == [0, 1, 2]
    await until(lambda: Subject.lives == 2)
    (status,) = node.statuses()
    assert (status.state, status.restarts) == ("running", 1)
    await node.stop()


async def test_the_ask_in_hand_of_a_failing_actor_is_unknown() -> None:
    node = node_of()

    class Stuck(Subject):
        def echo(self, request: Message) -> Any:
            async def forever() -> Message:
                await asyncio.Event().wait()
                raise AssertionError

            super().echo(request)
            return forever()

    node.add(Stuck, restart=QUICK)
    await node.start()
    with pytest.raises(Unavailable, match="interrupted") as caught:
        await node.ref(HostRef).echo(Message(value=666))
    assert caught.value.outcome is Outcome.UNKNOWN
    await node.stop()


async def test_failing_too_often_fails_the_node() -> None:
    node = node_of()
    node.add(Subject, restart=NEVER)
    await node.start()
    failing = asyncio.create_task(node.wait_failed())
    ref = node.ref(HostRef)
    ref.tell(HOST_ECHO, Message(value=666))
    with pytest.raises(Internal, match=r"given up: it failed 1 times.*the disk is on fire"):
        await asyncio.wait_for(failing, 5)
    with pytest.raises(Unavailable, match="has failed"):
        await ref.echo(Message())
    assert node.statuses()[0].state == "failed"
    with pytest.raises(Internal):
        await node.wait_failed()
    await node.stop()


async def test_resources_are_released_at_a_failure_and_at_the_stop() -> None:
    released: list[int] = []

    class Holder(Subject):
        def released(self) -> None:
            released.append(type(self).lives)

    node = node_of()
    node.add(Holder, restart=QUICK)
    await node.start()
    node.ref(HostRef).tell(HOST_ECHO, Message(value=666))
    await until(lambda: Holder.lives == 2)
    assert released == [1]
    await node.stop()
    assert released == [1, 2]


async def test_a_stop_finishes_what_waits_and_refuses_what_comes() -> None:
    node = node_of()
    release = asyncio.Event()

    class Slow(Subject):
        def echo(self, request: Message) -> Any:
            async def slow() -> Message:
                await release.wait()
                return request

            return slow() if request.value < 3 else self.context.later(slow())

    node.add(Slow)
    await node.start()
    ref = node.ref(HostRef)
    asks = [asyncio.create_task(ref.echo(Message(value=n))) for n in range(5)]
    await asyncio.sleep(0)
    stopping = asyncio.create_task(node.stop())
    await asyncio.sleep(0)
    with pytest.raises(Unavailable, match="has stopped"):
        await ref.echo(Message(value=9))
    release.set()
    assert [(await ask).value for ask in asks] == [0, 1, 2, 3, 4]
    await stopping


async def test_an_actor_that_fails_while_it_drains_is_not_restarted() -> None:
    node = node_of()
    broken = asyncio.Event()

    class Failing(Subject):
        def echo(self, request: Message) -> Any:
            async def stuck() -> Message:
                self.context.spawn(self.break_down(), name="break down")
                broken.set()
                await asyncio.Event().wait()
                raise AssertionError

            return stuck()

        async def on_stop(self) -> None:
            raise AssertionError("a failed actor is not stopped in order")

    node.add(Failing, restart=QUICK)
    await node.start()
    waiting = asyncio.create_task(node.ref(HostRef).echo(Message()))
    await asyncio.sleep(0)
    async with asyncio.timeout(2):
        await node.stop()
    with pytest.raises(Unavailable, match="interrupted"):
        await waiting
    assert (broken.is_set(), Failing.lives) == (True, 1)


async def test_a_stop_in_the_middle_of_restarting_leaves_nothing() -> None:
    node = node_of()
    node.add(Subject, restart=RestartPolicy(first_backoff_s=30, longest_backoff_s=30))
    await node.start()
    ref = node.ref(HostRef)
    ref.tell(HOST_ECHO, Message(value=666))
    await until(lambda: node.statuses()[0].state == "restarting")
    waiting = asyncio.create_task(ref.echo(Message()))
    await asyncio.sleep(0)
    await node.stop()
    with pytest.raises(Unavailable):
        await waiting
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_what_a_contract_lists_is_routed() -> None:
    node = node_of()
    node.add(Subject)
    target = node.route("/everram.v1.Host/Echo")
    assert target is not None
    assert target[1] is HOST_ECHO
    assert node.route("/everram.v1.Host/Nothing") is None
    assert node.contracts == (HOST,)
