"""What gRPC's calls do when their channel is closed under them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import grpc.aio
import pytest

from everram.runtime.errors import Unavailable
from everram.runtime.transport.grpc_common import wait_begun, wait_ready


@pytest.fixture
async def address(tmp_path: Path) -> AsyncIterator[str]:
    server = grpc.aio.server()
    address = f"unix:{tmp_path}/socket"
    server.add_insecure_port(address)
    await server.start()
    yield address
    await server.stop(grace=None)


@pytest.mark.parametrize("turns", range(4))
async def test_a_call_whose_channel_closes_as_it_begins_ends(address: str, turns: int) -> None:
    channel = grpc.aio.insecure_channel(address)
    await wait_ready(channel, "the server")
    beginning = asyncio.ensure_future(wait_begun(channel.stream_stream("/any/Method")(), "the server"))
    for _ in range(turns):
        await asyncio.sleep(0)
    await channel.close()
    async with asyncio.timeout(5):
        (ended,) = await asyncio.gather(beginning, return_exceptions=True)
    assert isinstance(ended, Unavailable), ended
    assert "closed" in ended.message


async def test_whoever_waits_for_a_call_to_begin_can_be_cancelled(address: str) -> None:
    channel = grpc.aio.insecure_channel(address)
    await wait_ready(channel, "the server")
    call = channel.stream_stream("/any/Method")()
    beginning = asyncio.ensure_future(wait_begun(call, "the server"))
    await asyncio.sleep(0)
    beginning.cancel()
    with pytest.raises(asyncio.CancelledError):
        await beginning
    call.cancel()
    await channel.close()
