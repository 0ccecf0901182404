"""The embedded coordination server: a process of its own that belongs to no machine.

    python -m everram.runtime.coordination.server --socket PATH --data DIR [--tcp PORT --token-file FILE] [--trace]

It serves a subset of the etcd v3 API, so `etcdctl` and any client of etcd can talk to it, with gRPC health checking and
reflection. A convenience, not high availability: it is restarted by the cluster's supervisor, and after a restart every
lease has its full TTL again. SIGTERM stops it cleanly; kill -9 loses nothing that was acknowledged.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import hmac
import logging
import secrets
import signal
import sys
import time
from pathlib import Path

import grpc
import grpc.aio
import uvloop
from google.protobuf.message import Message
from grpc_health.v1 import health, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from everram.runtime.coordination.embedded import Embedded
from everram.runtime.coordination.services import SERVICES, Services, handlers
from everram.runtime.coordination.sqlite import SqlitePersistence
from everram.runtime.coordination.store import REQUEST_BYTES_MAX
from everram.runtime.errors import EverramError, InvalidArgument, Unavailable
from everram.runtime.tasks import TaskScope

MESSAGE_BYTES_MAX = 4 * REQUEST_BYTES_MAX
"""A transaction's values and the messages around them."""
CALLS_MAX = 4096
"""At a time and listener, watches and keepalive streams included."""
STOP_GRACE_S = 0.2
"""For calls in flight when told to stop; streams have no end of their own and are cut."""
LEASE_BITS = 62
"""Of randomness in a lease's number, so that a number of an earlier store is never somebody else's lease."""

log = logging.getLogger("everram.coordination")


def parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="everram.runtime.coordination.server", description="Embedded coordination.")
    parser.add_argument("--socket", required=True, help="path of the Unix socket to serve on")
    parser.add_argument("--data", required=True, help="folder that keeps the store")
    parser.add_argument("--tcp", type=int, default=0, metavar="PORT", help="also serve on loopback; needs --token-file")
    parser.add_argument("--token-file", default="", help="file with the cluster's token, asked of every TCP client")
    parser.add_argument("--trace", action="store_true", help="print every request")
    return parser.parse_args(argv)


class TokenGuard(grpc.aio.ServerInterceptor):  # type: ignore[misc,unused-ignore]
    """Refuses calls without `authorization: Bearer TOKEN` (or etcd's bare `token`)."""

    def __init__(self, token: str) -> None:
        self._accepted = (f"Bearer {token}".encode(), token.encode())

        async def refuse(_: object, context: grpc.aio.ServicerContext[bytes, bytes]) -> None:
            await context.abort(grpc.StatusCode.UNAUTHENTICATED, "send the cluster's token as `authorization: Bearer`")

        self._refusal: grpc.RpcMethodHandler[bytes, bytes] = grpc.stream_stream_rpc_method_handler(refuse)

    async def intercept_service(self, continuation, handler_call_details):  # type: ignore[no-untyped-def]
        for name, value in handler_call_details.invocation_metadata:
            sent = value if isinstance(value, bytes) else value.encode()
            if name in ("authorization", "token") and any(hmac.compare_digest(sent, a) for a in self._accepted):
                return await continuation(handler_call_details)
        return self._refusal


def listener(services: Services, address: str, interceptors: list[grpc.aio.ServerInterceptor]) -> grpc.aio.Server:
    """One gRPC server on `address`, not started. Raises Unavailable if it cannot be bound."""
    server = grpc.aio.server(
        interceptors=interceptors,
        maximum_concurrent_rpcs=CALLS_MAX,
        options=(
            ("grpc.max_receive_message_length", MESSAGE_BYTES_MAX),
            ("grpc.max_send_message_length", -1),
            ("grpc.so_reuseport", 0),
        ),
    )
    server.add_generic_rpc_handlers(tuple(handlers(services)))
    checks = health.aio.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(checks, server)
    reflection.enable_server_reflection((*SERVICES, health.SERVICE_NAME, reflection.SERVICE_NAME), server)
    try:
        bound = server.add_insecure_port(address)
    except RuntimeError as error:
        raise Unavailable(f"coordination cannot listen on {address}: {error}") from error
    if not bound:
        raise Unavailable(f"coordination cannot listen on {address}: is the port taken?")
    return server


def _trace(name: str, message: Message) -> None:
    log.info("%s %s", name, " ".join(str(message).split()))


async def serve(arguments: argparse.Namespace) -> None:
    """Serve until SIGTERM or SIGINT. Raises EverramError with what to do if it cannot begin or go on."""
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    persistence = SqlitePersistence(Path(arguments.data))
    try:
        embedded = Embedded(persistence, time.monotonic_ns, lambda: secrets.randbits(LEASE_BITS) + 1)
        servers = _listeners(arguments, embedded)
        failures: list[BaseException] = []

        def failed(_: str, error: BaseException) -> None:
            failures.append(error)
            stop.set()

        scope = TaskScope("coordination", failed)
        try:
            scope.start(embedded.run(), name="commits and leases")
            for server in servers:
                await server.start()
            gc.freeze()
            log.info("coordination serves %s at revision %d", arguments.socket, embedded.store.revision)
            await stop.wait()
            await asyncio.gather(*(server.stop(STOP_GRACE_S) for server in servers))
        finally:
            await scope.close()
        if failures:
            raise failures[0]
    finally:
        persistence.close()


def _listeners(arguments: argparse.Namespace, embedded: Embedded) -> list[grpc.aio.Server]:
    addresses = [f"unix:{arguments.socket}"]
    if arguments.tcp:
        addresses.append(f"127.0.0.1:{arguments.tcp}")
    services = Services(embedded, addresses, _trace if arguments.trace else None)
    servers = [listener(services, addresses[0], [])]
    if arguments.tcp:
        if not arguments.token_file:
            raise InvalidArgument("a TCP port needs --token-file: whoever reaches the port could end every lease")
        token = Path(arguments.token_file).read_text().strip()
        servers.append(listener(services, addresses[1], [TokenGuard(token)]))
    return servers


def main(argv: list[str] | None = None) -> int:
    arguments = parse(sys.argv[1:] if argv is None else argv)
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(message)s")
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(serve(arguments))
    except EverramError as error:
        log.error("%s", error.message)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
