"""The gRPC front as strangers see it: reflection, health, the token, bad input, a socket taken over."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2

from everram.runtime.contracts import host_pb2
from everram.runtime.contracts.host_contract import HostActor, HostRef
from everram.runtime.errors import (
    DeadlineExceeded,
    FailedPrecondition,
    InvalidArgument,
    Outcome,
    Unauthenticated,
    Unavailable,
)
from everram.runtime.node import Node
from everram.runtime.transport.channel_carrier import ChannelCarrier
from everram.runtime.transport.front import Front

Message = host_pb2.EchoMessage


class Echo(HostActor):
    def __init__(self, offset: int = 0) -> None:
        self.offset = offset

    def echo(self, request: Message) -> Message:
        return Message(value=request.value + self.offset)


@contextlib.asynccontextmanager
async def served(path: Path, offset: int = 0, **options: Any) -> AsyncIterator[Front]:
    node = Node(None, "h1")  # type: ignore[arg-type]
    node.add(lambda: Echo(offset))
    front = Front(node, str(path), **options)
    await node.start()
    try:
        await front.start()
        yield front
    finally:
        await node.stop()
        await front.stop()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "h1.sock"


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


async def test_reflection_lists_and_describes_every_service(path: Path) -> None:
    async with served(path), grpc.aio.insecure_channel(f"unix:{path}") as channel:
        reflect: Any = channel.stream_stream(
            "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
            request_serializer=reflection_pb2.ServerReflectionRequest.SerializeToString,
            response_deserializer=reflection_pb2.ServerReflectionResponse.FromString,
        )
        call = reflect()
        await call.write(reflection_pb2.ServerReflectionRequest(list_services=""))
        names = [service.name for service in (await call.read()).list_services_response.service]
        assert names == ["everram.v1.Host", "grpc.health.v1.Health", "grpc.reflection.v1alpha.ServerReflection"]
        await call.write(reflection_pb2.ServerReflectionRequest(file_containing_symbol="everram.v1.Host"))
        described = (await call.read()).file_descriptor_response.file_descriptor_proto
        files = [FileDescriptorProto.FromString(data) for data in described]
        assert any(service.name == "Host" for file in files for service in file.service)
        await call.done_writing()


async def test_health(path: Path) -> None:
    async with served(path), grpc.aio.insecure_channel(f"unix:{path}") as channel:
        check: Any = channel.unary_unary(
            "/grpc.health.v1.Health/Check",
            request_serializer=health_pb2.HealthCheckRequest.SerializeToString,
            response_deserializer=health_pb2.HealthCheckResponse.FromString,
        )
        for service in ("", "everram.v1.Host"):
            reply = await check(health_pb2.HealthCheckRequest(service=service))
            assert reply.status == health_pb2.HealthCheckResponse.SERVING


async def test_a_malformed_message_is_an_invalid_argument(path: Path) -> None:
    async with served(path), grpc.aio.insecure_channel(f"unix:{path}") as channel:
        for method in ("Echo", "Count"):
            make: Any = channel.unary_unary if method == "Echo" else channel.unary_stream
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                call = make(f"/everram.v1.Host/{method}")(b"\xff\xff\xff")
                await (call if method == "Echo" else call.read())
            assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
            assert "is malformed: it is no EchoMessage" in (caught.value.details() or "")


async def test_what_does_not_exist_is_unimplemented(path: Path) -> None:
    async with served(path), grpc.aio.insecure_channel(f"unix:{path}") as channel:
        call: Any = channel.unary_unary("/everram.v1.Host/Nothing")
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call(b"")
        assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


async def test_a_call_without_a_deadline_is_answered(path: Path) -> None:
    async with served(path), grpc.aio.insecure_channel(f"unix:{path}") as channel:
        call: Any = channel.unary_unary("/everram.v1.Host/Echo")
        assert Message.FromString(await call(Message(value=3).SerializeToString())).value == 3


async def test_tcp_asks_for_the_token(path: Path) -> None:
    port = free_port()
    async with served(path, tcp_port=port, token="secret"):
        for token, right in (("secret", True), ("wrong", False), ("", False)):
            carrier = ChannelCarrier(f"127.0.0.1:{port}", whom="host h1", token=token)
            ref = HostRef(carrier)
            if right:
                assert (await ref.echo(Message(value=1))).value == 1
            else:
                with pytest.raises(Unauthenticated, match="authorization: Bearer TOKEN") as caught:
                    await ref.echo(Message(value=1))
                assert caught.value.outcome is Outcome.FAILED
                with pytest.raises(Unauthenticated):
                    await anext(ref.count(Message(value=1)))
            await carrier.close()


async def test_tcp_without_a_token_and_a_path_too_long_are_refused(path: Path) -> None:
    node = Node(None, "h1")  # type: ignore[arg-type]
    with pytest.raises(InvalidArgument, match="needs the cluster's token"):
        Front(node, str(path), tcp_port=1)
    with pytest.raises(InvalidArgument, match="longer than"):
        Front(node, "/tmp/" + "x" * 100)


async def test_a_port_in_use_is_a_plain_error(path: Path) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        with pytest.raises(FailedPrecondition, match="cannot listen on"):
            async with served(path, tcp_port=listener.getsockname()[1], token="secret"):
                pass
    assert list(path.parent.iterdir()) == []


async def test_a_successor_takes_the_socket_over_and_keeps_it(path: Path) -> None:
    async with served(path, offset=1):
        old = ChannelCarrier(f"unix:{path}", whom="the old one")
        assert (await HostRef(old).echo(Message())).value == 1
        async with served(path, offset=2):
            new = ChannelCarrier(f"unix:{path}", whom="the new one")
            assert (await HostRef(new).echo(Message())).value in (1, 2)
            await new.close()
        await old.close()
    assert list(path.parent.iterdir()) == []


async def test_nobody_there_is_unavailable_and_failed(path: Path) -> None:
    carrier = ChannelCarrier(f"unix:{path}", whom="host h1")
    for _ in range(2):
        with pytest.raises(Unavailable, match="host h1 cannot be reached") as caught:
            await HostRef(carrier).echo(Message())
        assert caught.value.outcome is Outcome.FAILED
    await carrier.close()


async def test_one_that_accepts_and_says_nothing_fails_at_the_deadline(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        carrier = ChannelCarrier(f"unix:{path}", whom="host h1")
        with pytest.raises(DeadlineExceeded, match="could not be reached in time") as caught:
            await HostRef(carrier).echo(Message(), timeout_s=0.1)
        assert caught.value.outcome is Outcome.FAILED
        await carrier.close()


async def test_a_carrier_finds_a_restarted_host(path: Path) -> None:
    carrier = ChannelCarrier(f"unix:{path}", whom="host h1")
    async with served(path, offset=1):
        assert (await HostRef(carrier).echo(Message())).value == 1
    async with served(path, offset=2), asyncio.timeout(5):
        while True:
            with contextlib.suppress(Unavailable):
                assert (await HostRef(carrier).echo(Message())).value == 2
                break
    await carrier.close()
