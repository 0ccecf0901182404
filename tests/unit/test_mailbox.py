"""The mailbox and its consumer: bounds, order, turns, and what an ask ends with."""

from __future__ import annotations

import asyncio
import gc
import logging
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from everram.runtime.actor import Actor, handler_name, handlers_of
from everram.runtime.contracts import common_pb2, host_pb2
from everram.runtime.contracts.host_contract import HOST_COUNT, HOST_ECHO, HostActor, HostRef
from everram.runtime.errors import (
    DeadlineExceeded,
    Internal,
    InvalidArgument,
    Outcome,
    ResourceExhausted,
    Unavailable,
)
from everram.runtime.mailbox import Mailbox
from everram.runtime.node import Node
from everram.runtime.streams import WINDOW

Message = host_pb2.EchoMessage


class Subject(HostActor):
    def __init__(self) -> None:
        self.on_echo: Callable[[Message], Any] = lambda request: request
        self.seen: list[int] = []
        self.produced = 0
        self.ended = asyncio.Event()

    def echo(self, request: Message) -> Any:
        self.seen.append(request.value)
        return self.on_echo(request)

    async def count(self, request: Message) -> AsyncIterator[Message]:
        try:
            for value in range(request.value, 0, -1):
                self.produced += 1
                yield Message(value=value)
        finally:
            self.ended.set()


class Place:
    """A node with one Subject."""

    def __init__(self, capacity: int = 1024, *, check_messages: bool = True) -> None:
        self.actor = Subject()
        self.node = Node(None, "h1", check_messages=check_messages)  # type: ignore[arg-type]
        self.node.add(lambda: self.actor, capacity=capacity)
        self.ref = self.node.ref(HostRef)

    async def __aenter__(self) -> Place:
        await self.node.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.node.stop()


def test_handlers_are_named_like_the_generated_methods() -> None:
    assert handler_name("CreateRegions") == "create_regions"
    assert handler_name("Echo") == "echo"
    assert [handler.__name__ for handler in handlers_of(Subject()).values()] == ["status", "echo", "count"]  # type: ignore[attr-defined]


async def test_a_tell_to_a_full_mailbox_is_refused_and_says_what_to_do() -> None:
    place = Place(capacity=3)
    for n in range(3):
        place.ref.tell(HOST_ECHO, Message(value=n))
    with pytest.raises(ResourceExhausted, match=r"3 messages waiting.*slow down"):
        place.ref.tell(HOST_ECHO, Message(value=3))
    async with place:
        await place.ref.echo(Message(value=4))
        assert place.actor.seen == [0, 1, 2, 4]
        place.ref.tell(HOST_ECHO, Message(value=5))


async def test_messages_wait_for_the_start() -> None:
    place = Place()
    ask = asyncio.create_task(place.ref.echo(Message(value=1)))
    await asyncio.sleep(0)
    assert place.node.statuses()[0].queued == 1
    async with place:
        assert (await ask).value == 1


async def test_the_loop_gets_its_turn_within_a_long_queue() -> None:
    async with Place(capacity=10_000) as place:
        turns = 0

        async def other() -> None:
            nonlocal turns
            while len(place.actor.seen) < 1000:
                turns += 1
                await asyncio.sleep(0)

        for n in range(1000):
            place.ref.tell(HOST_ECHO, Message(value=n))
        await other()
        assert turns >= 9


async def test_a_failed_tell_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    async with Place() as place:

        def refuse(_: Message) -> Message:
            raise InvalidArgument("not that")

        place.actor.on_echo = refuse
        place.ref.tell(HOST_ECHO, Message())
        place.ref.tell(HOST_COUNT, Message())
        with pytest.raises(InvalidArgument):
            await place.ref.echo(Message())
    assert "h1 Host: Echo was told and failed: not that" in caplog.text
    assert "answers with a stream" in caplog.text


async def test_a_bug_is_logged_with_its_traceback(caplog: pytest.LogCaptureFixture) -> None:
    async with Place() as place:
        place.actor.on_echo = lambda _: 1 / 0
        with pytest.raises(Internal, match="ZeroDivisionError"):
            await place.ref.echo(Message())
    (record,) = (record for record in caplog.records if record.levelno == logging.ERROR)
    assert record.exc_info is not None
    assert record.exc_info[0] is ZeroDivisionError


async def test_a_handler_that_awaits_something_cancelled_does_not_end_its_mailbox() -> None:
    async with Place() as place:

        async def confused(_: Message) -> Message:
            future: asyncio.Future[Message] = asyncio.get_running_loop().create_future()
            future.cancel()
            return await future

        place.actor.on_echo = confused
        with pytest.raises(Internal, match="cancelled") as caught:
            await place.ref.echo(Message())
        assert caught.value.unknown
        place.actor.on_echo = lambda request: request
        await place.ref.echo(Message())


async def test_a_deadline_already_past_has_failed() -> None:
    place = Place()
    with pytest.raises(DeadlineExceeded) as caught:
        await place.ref.echo(Message(), timeout_s=0)
    assert caught.value.outcome is Outcome.FAILED
    async with place:
        await place.ref.echo(Message(value=2))
        assert place.actor.seen == [2]


async def test_a_closed_mailbox_fails_what_waits() -> None:
    mailbox = Mailbox("everram.v1.Host")
    ask = asyncio.create_task(mailbox.ask(HOST_ECHO, Message(), 5))
    await asyncio.sleep(0)
    mailbox.close("it has gone")
    with pytest.raises(Unavailable, match="it has gone") as caught:
        await ask
    assert caught.value.outcome is Outcome.FAILED
    with pytest.raises(Unavailable):
        mailbox.tell(HOST_ECHO, Message())
    with pytest.raises(Unavailable):
        await anext(mailbox.stream(HOST_COUNT, Message(), None))


async def test_a_producer_is_at_most_a_window_ahead() -> None:
    async with Place() as place:
        replies = place.ref.count(Message(value=1000))
        await anext(replies)
        for _ in range(20):
            await asyncio.sleep(0)
        assert place.actor.produced <= WINDOW + 1
        await replies.aclose()
        await place.actor.ended.wait()


async def test_a_stream_nobody_holds_any_more_ends_its_producer() -> None:
    async with Place() as place:
        async for _ in place.ref.count(Message(value=1000)):
            break
        gc.collect()
        await asyncio.wait_for(place.actor.ended.wait(), 5)


async def test_changing_a_sent_message_is_found() -> None:
    place = Place()

    def meddle(request: Message) -> Message:
        request.value += 1
        return Message()

    place.actor.on_echo = meddle
    await place.node.start()
    with pytest.raises(Internal, match=r"request of /everram.v1.Host/Echo was changed after it was sent"):
        await place.ref.echo(Message(value=1))
    place.ref.tell(HOST_ECHO, Message(value=1))
    with pytest.raises(Internal, match="was changed after it was sent"):
        await place.node.stop()


async def test_changing_a_kept_reply_is_found() -> None:
    place = Place()
    kept = Message(value=1)
    place.actor.on_echo = lambda _: kept
    await place.node.start()
    await place.ref.echo(Message())
    kept.value = 2
    with pytest.raises(Internal, match=r"the reply of /everram.v1.Host/Echo was changed"):
        await place.node.stop()


async def test_a_message_of_the_wrong_type_is_found() -> None:
    place = Place()
    await place.node.start()
    place.ref.tell(HOST_ECHO, common_pb2.Empty())  # type: ignore[arg-type]
    with pytest.raises(Internal, match="was sent a Empty"):
        await place.node.stop()


def test_constructing_an_actor_needs_no_node() -> None:
    assert isinstance(Subject(), Actor)
