"""The link between two real processes: kill -9, restart, SIGSTOP. Run as a program, this file is the other process."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from everram.runtime.contracts import host_pb2
from everram.runtime.contracts.host_contract import HostActor, HostRef
from everram.runtime.environment import HostAddress
from everram.runtime.errors import Outcome, Unavailable
from everram.runtime.node import Node
from everram.runtime.production.network import GrpcNetwork
from everram.runtime.transport.front import Front
from everram.runtime.transport.link import Identity
from everram.runtime.transport.links import Links

pytestmark = pytest.mark.process

Message = host_pb2.EchoMessage


class Echo(HostActor):
    def echo(self, request: Message) -> Any:
        return request if request.value else self.context.later(self.never())

    async def never(self) -> Message:
        await asyncio.Event().wait()
        raise AssertionError


@contextlib.asynccontextmanager
async def host(name: str, folder: str) -> AsyncIterator[tuple[Node, Links]]:
    async def resolve(peer: str) -> HostAddress:
        return HostAddress(peer, f"id-{peer}", f"unix:{folder}/{peer}.sock")

    node, network, numbers = Node(None, name), GrpcNetwork(), itertools.count()  # type: ignore[arg-type]
    node.add(Echo)
    me = Identity("c1", name, f"id-{name}", f"{name}-{os.getpid()}")
    links = Links(node, network, me, resolve, lambda: f"{name}-{os.getpid()}-{next(numbers)}")
    node.use_links(links)
    front = Front(node, f"{folder}/{name}.sock", handlers=(network.handler,))
    await node.start()
    await front.start()
    try:
        yield node, links
    finally:
        await node.stop()
        await front.stop()
        await network.close()


@contextlib.asynccontextmanager
async def other_process(folder: Path) -> AsyncIterator[asyncio.subprocess.Process]:
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(sys.executable, __file__, str(folder), stdin=pipe, stdout=pipe)
    try:
        assert process.stdout is not None
        assert await process.stdout.readline() == b"ready\n"
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


async def test_a_killed_peer_is_seen_at_once_and_its_successor_found(tmp_path: Path) -> None:
    async with host("h1", str(tmp_path)) as (node, links):
        changes: asyncio.Queue[bool] = asyncio.Queue()
        ref = node.ref(HostRef, host="h2")
        async with other_process(tmp_path) as process:
            assert (await ref.echo(Message(value=1))).value == 1
            links.watch("h2", lambda host, suspect, why: changes.put_nowait(suspect))
            waiting = asyncio.create_task(ref.echo(Message(), timeout_s=30))
            assert (await ref.echo(Message(value=2))).value == 2
            process.kill()
            with pytest.raises(Unavailable) as caught:
                await asyncio.wait_for(waiting, 2)
            assert caught.value.outcome is Outcome.UNKNOWN
            assert await asyncio.wait_for(changes.get(), 2)
        async with other_process(tmp_path):
            assert not await asyncio.wait_for(changes.get(), 5)
            assert (await ref.echo(Message(value=3))).value == 3


async def test_a_stopped_peer_is_suspect_and_cleared_when_it_goes_on(tmp_path: Path) -> None:
    async with host("h1", str(tmp_path)) as (node, links), other_process(tmp_path) as process:
        changes: asyncio.Queue[bool] = asyncio.Queue()
        ref = node.ref(HostRef, host="h2")
        assert (await ref.echo(Message(value=1))).value == 1
        links.watch("h2", lambda host, suspect, why: changes.put_nowait(suspect), suspect_after_s=0.5)
        assert (await ref.echo(Message(value=2))).value == 2
        process.send_signal(signal.SIGSTOP)
        assert await asyncio.wait_for(changes.get(), 5)
        process.send_signal(signal.SIGCONT)
        assert not await asyncio.wait_for(changes.get(), 5)
        assert (await ref.echo(Message(value=3))).value == 3


async def serve(folder: str) -> None:
    async with host("h2", folder):
        print("ready", flush=True)
        await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)


if __name__ == "__main__":
    asyncio.run(serve(sys.argv[1]))
