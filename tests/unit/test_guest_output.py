"""Where a reader of a guest's output starts, and how it follows."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from everram.actors.hypervisor import output
from everram.runtime.contracts.hypervisor_pb2 import LogsRequest


class Held:
    """Output held in memory."""

    def __init__(self, data: bytes) -> None:
        self.data = data

    async def read(self, path: str, offset: int, limit: int) -> bytes:
        return self.data[offset : offset + limit]

    async def size(self, path: str) -> int:
        return len(self.data)

    async def remove(self, path: str) -> None:
        self.data = b""


async def collect(held: Held, request: LogsRequest) -> bytes:
    return b"".join([chunk.data async for chunk in output.read(held, "x", request, lambda: True)])


@pytest.mark.parametrize("chunk_bytes", [1, 3, 64 * 1024])
@given(lines=st.lists(st.binary(max_size=5).map(lambda b: b.replace(b"\n", b"")), max_size=12), tail=st.integers(1, 14))
def test_tail_is_the_last_lines(chunk_bytes: int, lines: list[bytes], tail: int) -> None:
    import asyncio

    data = b"".join(line + b"\n" for line in lines)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(output, "CHUNK_BYTES", chunk_bytes)
        got = asyncio.run(collect(Held(data), LogsRequest(tail_lines=tail)))
    assert got == b"".join(line + b"\n" for line in lines[-tail:])


async def test_following_ends_with_the_guest_and_misses_nothing() -> None:
    held, looks = Held(b"one\n"), 0

    def ended() -> bool:
        nonlocal looks
        looks += 1
        if looks == 3:
            held.data += b"last words\n"
        return looks >= 3

    request = LogsRequest(follow=True)
    got = b"".join([chunk.data async for chunk in output.read(held, "x", request, ended)])
    assert got == b"one\nlast words\n"


async def test_a_broken_stream_continues_where_it_broke() -> None:
    assert await collect(Held(b"0123456789"), LogsRequest(offset=4)) == b"456789"
