"""YCSB's workload A on `examples/kv.py` over its socket: half reads, half updates of 1 KiB values, Zipf 0.99.

    records = load(port)                 # fills it
    per_s = drive(port, seconds)         # operations a second, over CONNECTIONS connections, one at a time on each

The keys' order is scrambled, so that hot values lie scattered over the region. One process, one thread: it waits for
whichever connection is answered first.
"""

from __future__ import annotations

import random
import selectors
import socket
import time
from bisect import bisect_left
from itertools import accumulate

RECORDS = 30_000
VALUE_BYTES = 1024
CONNECTIONS = 16
THETA = 0.99
DEPTH = 200


def key(number: int) -> bytes:
    return b"user%010d" % (number * 2654435761 % (1 << 32))


def set_request(number: int, value: bytes) -> bytes:
    name = key(number)
    return b"*3\r\n$3\r\nSET\r\n$%d\r\n%s\r\n$%d\r\n%s\r\n" % (len(name), name, len(value), value)


def get_request(number: int) -> bytes:
    name = key(number)
    return b"*2\r\n$3\r\nGET\r\n$%d\r\n%s\r\n" % (len(name), name)


def load(port: int, records: int = RECORDS) -> None:
    value = random.Random(1).randbytes(VALUE_BYTES)
    with socket.create_connection(("127.0.0.1", port)) as connection:
        for first in range(0, records, DEPTH):
            numbers = range(first, min(records, first + DEPTH))
            connection.sendall(b"".join(set_request(number, value) for number in numbers))
            left = 5 * len(numbers)
            while left > 0:
                answered = connection.recv(1 << 16)
                if not answered or b"-" in answered:
                    raise RuntimeError(f"kv.py refuses to be filled: {answered[:100]!r}")
                left -= len(answered)


def drive(port: int, seconds: float, seed: int, records: int = RECORDS) -> float:
    draw = random.Random(seed)
    weights = list(accumulate(1 / rank**THETA for rank in range(1, records + 1)))
    value = draw.randbytes(VALUE_BYTES)
    answer_bytes = {True: len(b"+OK\r\n"), False: len(b"$1024\r\n") + VALUE_BYTES + 2}
    connections = selectors.DefaultSelector()

    def ask(connection: socket.socket) -> int:
        number = bisect_left(weights, draw.random() * weights[-1])
        update = draw.random() < 0.5
        connection.sendall(set_request(number, value) if update else get_request(number))
        return answer_bytes[update]

    left: dict[socket.socket, int] = {}
    try:
        for _ in range(CONNECTIONS):
            connection = socket.create_connection(("127.0.0.1", port))
            connections.register(connection, selectors.EVENT_READ)
            left[connection] = ask(connection)
        done, began = 0, time.monotonic()
        while (passed := time.monotonic() - began) < seconds:
            for ready, _ in connections.select(1.0):
                connection = ready.fileobj
                assert isinstance(connection, socket.socket)
                left[connection] -= len(connection.recv(1 << 16))
                if left[connection] <= 0:
                    done += 1
                    left[connection] = ask(connection)
        return done / passed
    finally:
        for connection in left:
            connection.close()
        connections.close()
