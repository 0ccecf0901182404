"""A real cluster whose hosts reach each other's memory by TCP alone: a machine is lost, and no promise with it."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.user import PATIENCE_S, User, free_port, until, user_in

pytestmark = [pytest.mark.process, pytest.mark.timeout(150)]

COUNTER = """
import os, socket, struct
from everram.runtime import guest
me = guest.attach()
region = me.region("n")
server = socket.create_server(("127.0.0.1", int(os.environ["EVERRAM_PORT"])))
while True:
    sock, _ = server.accept()
    with sock:
        while sock.recv(1):
            number = struct.unpack("<Q", region.load(0, 8))[0] + 1
            with me.transaction() as tx:
                tx.store(region, 0, struct.pack("<Q", number))
                tx.store(region, 4096 + number % 64 * 4096, struct.pack("<Q", number) * 512)
            me.wait_replicated(tx.lsn, timeout_s=20)
            sock.sendall(struct.pack("<Q", number))
"""


class Cluster(User):
    def in_sync(self, guest: str) -> bool:
        return any(
            copy["state"] == "in-sync" and copy["required"] for copy in self.json("inspect", guest)["destinations"]
        )

    def channels(self) -> dict[str, dict[str, str]]:
        return {host["name"]: host.get("channels", {}) for host in self.json("status")["hosts"]}


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    with user_in(tmp_path, Cluster) as made:
        yield made


def count(port: int, times: int) -> int:
    """The last number that was promised; raises OSError where nobody serves."""
    number = 0
    with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_S) as sock:
        for _ in range(times):
            sock.sendall(b"+")
            answer = sock.recv(8, socket.MSG_WAITALL)
            if len(answer) < 8:
                raise ConnectionResetError("it ended")
            number = int.from_bytes(answer, "little")
    return number


def test_a_lost_machine_takes_nothing_promised_with_it(cluster: Cluster) -> None:
    cluster.run("up", "--hosts", "3", "--memory", "256MiB", "--channel", "tcp", "-d")
    port = free_port()
    where = ("--name", "counter", "--region", "n=8MiB", "--copies", "2", "--publish", str(port))
    host = cluster.json("run", "-d", *where, "--", "python", "-c", COUNTER)["host"]
    until(lambda: cluster.in_sync("counter"), "it has a copy that counts")
    promised = count(port, 200)
    assert promised == 200
    # Both ways, as primary and as destination, and by nothing else.
    seen = cluster.channels()
    assert seen[host] and {carrier for peers in seen.values() for carrier in peers.values()} == {"tcp"}
    assert f"{host} reaches the memory of" in cluster.run("status")

    cluster.run("fault", host, "machine-kill")
    again = 0

    def serves() -> bool:
        nonlocal again
        try:
            again = count(port, 1)
        except OSError:
            return False
        return True

    until(serves, "another host serves it")
    assert again == promised + 1
    assert cluster.json("inspect", "counter")["host"] != host
    until(lambda: cluster.in_sync("counter"), "it has a copy again")
    # A cut is one for both carriers: the destination that is cut off stops acknowledging.
    now = cluster.json("inspect", "counter")["host"]
    other = next(name for name in ("h1", "h2", "h3") if name not in (now, host))
    cluster.run("fault", other, "partition")
    until(lambda: other not in cluster.channels()[now], "the queue pair has ended")
    cluster.run("fault", "heal", other)
    until(lambda: cluster.channels()[now].get(other) == "tcp", "and there is another")
    assert count(port, 10) == again + 10
