"""`Cluster.connect`: whom it finds, and what it says of a supervisor that is not there or not well."""

from __future__ import annotations

import os
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from everram.runtime.client import cluster
from everram.runtime.client.cluster import Cluster, spare_bytes
from everram.runtime.cluster.folders import ClusterLock, Folders, SupervisorRecord
from everram.runtime.contracts.memory_scheduler_pb2 import GuestMemoryStatus, MemoryStatus
from everram.runtime.errors import DataLoss, EverramError, NotFound, Outcome, Unavailable

PATIENCE_S = 0.2


@pytest.fixture
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Folders]:
    """Of a cluster whose supervisor, by its lock and record, is this process."""
    monkeypatch.setattr(cluster, "PATIENCE_S", PATIENCE_S)
    with tempfile.TemporaryDirectory(prefix="everram-test-", dir="/tmp") as runtime:
        monkeypatch.setenv("XDG_RUNTIME_DIR", runtime)
        folders = Folders.of(None, str(tmp_path / "lab"), os.environ)
        folders.make()
        folders.record.write_text(SupervisorRecord(os.getpid(), str(folders.run)).to_json())
        yield folders


async def connect(folders: Folders) -> Unavailable:
    with pytest.raises(Unavailable) as refused:
        await Cluster.connect(None, str(folders.state))
    assert refused.value.outcome is Outcome.FAILED
    return refused.value


async def test_nobody_has_the_lock(folders: Folders) -> None:
    assert "no cluster is running" in (await connect(folders)).message


async def test_a_supervisor_that_lives_and_is_silent_is_named(folders: Folders) -> None:
    lock = ClusterLock.take(folders.lock)
    with socket.socket(socket.AF_UNIX) as stopped:
        stopped.bind(str(folders.supervisor_socket))
        stopped.listen()
        refused = await connect(folders)
    lock.release()
    assert f"process {os.getpid()}" in refused.message
    assert "does not answer" in refused.message
    assert str(folders.log) in refused.message


async def test_a_supervisor_that_ends_meanwhile_is_not_running(
    folders: Folders, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock = ClusterLock.take(folders.lock)
    patiently = cluster.patiently

    async def ends(*arguments: object, **options: object) -> object:
        try:
            return await patiently(*arguments, **options)  # type: ignore[arg-type]
        finally:
            lock.release()

    monkeypatch.setattr(cluster, "patiently", ends)
    assert "no cluster is running" in (await connect(folders)).message


class FakeHost:
    """Answers every Inspect with one error."""

    def __init__(self, name: str, error: EverramError) -> None:
        self.name = name
        self.hypervisor = SimpleNamespace(inspect=self._inspect)
        self._error = error

    async def _inspect(self, request: object) -> None:
        raise self._error


@pytest.mark.parametrize(
    ("answers", "kind", "sentence"),
    [
        ((NotFound("not here"), NotFound("not here")), NotFound, 'no guest "g"'),
        ((NotFound("not here"), Unavailable("gone", unknown=True)), Unavailable, "is silent (h2: gone)"),
        ((NotFound("not here"), DataLoss("its log is damaged")), DataLoss, "its log is damaged"),
    ],
)
async def test_a_guest_that_is_not_found_is_not_one_that_is_ill(
    folders: Folders,
    monkeypatch: pytest.MonkeyPatch,
    answers: tuple[EverramError, ...],
    kind: type[EverramError],
    sentence: str,
) -> None:
    client = Cluster(folders)
    hosts = tuple(FakeHost(f"h{number}", error) for number, error in enumerate(answers, 1))

    async def living(client: Cluster) -> tuple[FakeHost, ...]:
        return hosts

    async def nothing() -> None:
        """The directory cannot be asked."""

    monkeypatch.setattr(Cluster, "hosts", hosts)
    monkeypatch.setattr(Cluster, "_living", living)
    monkeypatch.setattr(client._whereabouts, "read", nothing)
    monkeypatch.setattr(cluster.patiently, "__kwdefaults__", {"patience_s": 0.0})
    with pytest.raises(kind) as refused:
        await client.find_guest("g")
    assert sentence in refused.value.message
    await client.close()


def test_a_host_has_left_what_its_guests_do_not_work_with() -> None:
    status = MemoryStatus(limit_bytes=1000, min_free_bytes=100)
    assert spare_bytes(status) == 900
    status.guests.append(GuestMemoryStatus(memory_bytes=800, resident_bytes=500, working_set_bytes=200, min_bytes=300))
    assert spare_bytes(status) == 600
    status.guests.append(GuestMemoryStatus(memory_bytes=700))  # it has just begun
    assert spare_bytes(status) == -100
