"""examples/kv.py on a real cluster, used by unmodified clients of Redis, and held against Redis itself."""

from __future__ import annotations

import os
import random
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.user import PATIENCE_S, User, free_port, user_in

redis = pytest.importorskip("redis", reason="install everram[test] to include it")

pytestmark = [pytest.mark.process, pytest.mark.timeout(170), pytest.mark.needs("redis-server", "redis-cli")]


class Cluster(User):
    """One host with kv.py on it."""

    def __init__(self, folder: Path, runtime: str) -> None:
        super().__init__(folder, runtime)
        self.port = free_port()

    def client(self) -> Any:
        return redis.Redis(port=self.port, socket_timeout=PATIENCE_S, retry=None)


@contextmanager
def cluster_with_kv(folder: Path) -> Iterator[Cluster]:
    with user_in(folder, Cluster) as cluster:
        cluster.run("up", "--hosts", "1", "--memory", "256MiB", "--nvm", "128MiB", "-d")
        where = ("--name", "kv", "--region", "kv=32MiB", "--publish", str(cluster.port))
        cluster.run("run", "-d", *where, "--", "python", "examples/kv.py")
        answers(cluster.client())
        yield cluster


@pytest.fixture(scope="module")
def kv(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """For tests that leave its processes as they found them."""
    with cluster_with_kv(tmp_path_factory.mktemp("kv")) as cluster:
        yield cluster


@pytest.fixture
def own(tmp_path: Path) -> Iterator[Cluster]:
    with cluster_with_kv(tmp_path) as cluster:
        yield cluster


def answers(client: Any) -> None:
    """Wait until it does."""
    deadline = time.monotonic() + PATIENCE_S
    while True:
        try:
            assert client.ping()
            return
        except redis.exceptions.ConnectionError:
            assert time.monotonic() < deadline, "no answer"
            time.sleep(0.05)


def tool(name: str, port: int, *arguments: str, feed: str = "") -> str:
    done = subprocess.run(
        [name, "-p", str(port), *arguments], input=feed, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0 and not done.stderr, f"{name} {arguments}: {done.stdout}{done.stderr}"
    return done.stdout


def test_redis_cli(kv: Cluster) -> None:
    kv.client().flushall()
    assert tool("redis-cli", kv.port, "SET", "greeting", "hello world") == "OK\n"
    assert tool("redis-cli", kv.port, feed="GET greeting\nINCR n\nNOPE\nTTL greeting\n") == (
        "hello world\n1\nERR unknown command 'NOPE', with args beginning with: \n\n-1\n"
    )
    assert sorted(tool("redis-cli", kv.port, "--scan").split()) == ["greeting", "n"]
    assert "redis_version" in tool("redis-cli", kv.port, "INFO", "server")
    assert tool("redis-cli", kv.port, "-x", "SET", "binary", feed="\0\r\n\x7f") == "OK\n"
    assert tool("redis-cli", kv.port, "STRLEN", "binary") == "4\n"


def test_redis_benchmark(kv: Cluster) -> None:
    shown = tool("redis-benchmark", kv.port, "-t", "set,get,incr,mset", "-n", "5000", "-P", "16", "-r", "1000", "--csv")
    assert [line.split(",")[0] for line in shown.splitlines()[1:]] == ['"SET"', '"GET"', '"INCR"', '"MSET (10 keys)"']


def test_redis_py(kv: Cluster) -> None:
    client = kv.client()
    client.flushall()
    with client.pipeline(transaction=False) as pipe:
        for number in range(1000):
            pipe.set(f"key:{number}", number, ex=1000 if number % 2 else None)
        assert pipe.execute() == [True] * 1000
    assert client.dbsize() == 1000
    assert sorted(client.scan_iter("key:1?")) == [b"key:1%d" % n for n in range(10)]
    assert client.mget("key:1", "nobody") == [b"1", None]
    assert 900 < client.ttl("key:1") <= 1000
    assert client.ttl("key:2") == -1
    assert client.info("keyspace")["db0"]["keys"] == 1000
    with pytest.raises(redis.exceptions.ResponseError, match="not an integer"):
        client.set("text", "a") and client.incr("text")


def test_it_survives_its_own_end_and_its_hosts(own: Cluster) -> None:
    """What was answered is there afterwards; what was asked when it died is unknown, and neither more nor less."""
    client = own.client()
    acknowledged, before = 0, own.json("inspect", "kv")
    for fault, target in (("guest-kill", "kv"), ("host-kill", before["host"]), ("guest-kill", "kv")):
        for _ in range(50):
            acknowledged += 1
            assert client.set(f"key:{acknowledged}", acknowledged) and client.incr("n") == acknowledged
        own.run("fault", target, fault)
        client = own.client()
        answers(client)
        assert int(client.get("n")) == acknowledged
        assert client.mget([f"key:{n}" for n in range(1, acknowledged + 1)]) == [
            b"%d" % (n + 1) for n in range(acknowledged)
        ]
    assert own.json("inspect", "kv")["epoch"] == before["epoch"] + 2


def test_an_entry_too_large_and_a_full_region_are_plain_errors(kv: Cluster) -> None:
    client = kv.client()
    client.flushall()
    with pytest.raises(redis.exceptions.ResponseError, match="string exceeds maximum allowed size"):
        client.set("large", bytes(1500 * 1000))
    stored = 0
    with pytest.raises(redis.exceptions.OutOfMemoryError, match="used memory > 'maxmemory'"):
        while stored < 100:
            client.set(f"large:{stored}", bytes(1000 * 1000))
            stored += 1
    assert 25 <= stored <= 32
    assert client.delete("large:0") == 1
    assert client.set("large:0", bytes(1000 * 1000))
    client.flushall()


# -- beside Redis


class Raw:
    """A connection that shows bytes as they come."""

    def __init__(self, port: int) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), PATIENCE_S)
        self._stream = self._socket.makefile("rb")

    def ask(self, request: list[bytes]) -> Any:
        parts = b"".join(b"$%d\r\n%b\r\n" % (len(word), word) for word in request)
        self._socket.sendall(b"*%d\r\n%b" % (len(request), parts))
        return self._answer()

    def _answer(self) -> Any:
        line = self._stream.readline()
        kind, rest = line[:1], line[1:-2]
        if kind == b"$":
            return None if rest == b"-1" else self._stream.read(int(rest) + 2)[:-2]
        return [self._answer() for _ in range(int(rest))] if kind == b"*" else line

    def close(self) -> None:
        self._stream.close()
        self._socket.close()


@contextmanager
def real_redis() -> Iterator[Raw]:
    program = shutil.which("redis-server", path=f"{os.environ['PATH']}:/usr/sbin")
    assert program is not None
    port = free_port()
    with tempfile.TemporaryDirectory() as folder:
        server = subprocess.Popen(
            [program, "--port", str(port), "--save", "", "--dir", folder, "--bind", "127.0.0.1"],
            stdout=subprocess.DEVNULL,
        )
        try:
            deadline = time.monotonic() + PATIENCE_S
            while True:
                try:
                    connection = Raw(port)
                    break
                except ConnectionRefusedError:
                    assert time.monotonic() < deadline
                    time.sleep(0.02)
            yield connection
            connection.close()
        finally:
            server.terminate()
            server.wait()


KEYS = [b"a", b"b", b"c", b"n", b""]
WORDS = [
    b"0",
    b"1",
    b"-1",
    b"5",
    b"x",
    b"hello",
    b"",
    b"07",
    b"9223372036854775807",
    b"-9223372036854775808",
    b"\r\n\0",
]
SET_OPTIONS = [b"NX", b"xx", b"GET", b"KEEPTTL", b"EX", b"PX", b"100"]
DICE: dict[bytes, Callable[[random.Random], list[bytes]]] = {
    b"SET": lambda d: [d.choice(KEYS), d.choice(WORDS), *d.choices(SET_OPTIONS, k=d.choice([0, 0, 0, 1, 1, 2, 3]))],
    b"SETRANGE": lambda d: [d.choice(KEYS), d.choice(WORDS[:4]), d.choice(WORDS)],
    b"GETRANGE": lambda d: [d.choice(KEYS), d.choice(WORDS[:5]), d.choice(WORDS[:5])],
    b"SETEX": lambda d: [d.choice(KEYS), d.choice(WORDS[:5]) + b"00", d.choice(WORDS)],
    b"EXPIRE": lambda d: [
        d.choice(KEYS),
        d.choice([*WORDS, b"1000", b"2000"]),
        *d.choices([b"NX", b"XX", b"gt", b"LT"], k=d.choice([0, 0, 1, 2])),
    ],
    b"MSET": lambda d: d.choices(KEYS + WORDS, k=d.randrange(6)),
    b"SELECT": lambda d: [d.choice([b"0", b"-1", b"x", b"99"])],
}
"""Arguments of commands; the others get up to three words each."""
OTHERS = (
    b"GET SETNX GETSET MGET DEL UNLINK EXISTS INCR DECR INCRBY DECRBY APPEND STRLEN "
    b"TTL PERSIST TYPE DBSIZE PING ECHO nope"
)


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_answers_are_those_of_redis(kv: Cluster, seed: int) -> None:
    dice, others, ours = random.Random(seed), OTHERS.split(), Raw(kv.port)
    with real_redis() as theirs:
        for connection in (ours, theirs):
            connection.ask([b"FLUSHALL"])
        for _ in range(4000):
            name = dice.choice(others + list(DICE))
            words = DICE[name](dice) if name in DICE else dice.choices(KEYS + WORDS, k=dice.choice([0, 1, 1, 2, 2, 3]))
            request = [name, *words]
            expected, found = theirs.ask(request), ours.ask(request)
            assert found == expected, request
        assert sorted(ours.ask([b"KEYS", b"*"])) == sorted(theirs.ask([b"KEYS", b"*"]))
    ours.close()
