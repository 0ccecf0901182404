"""Ctrl-C in the midst of `everram upgrade`: the host serves as before, or the upgrade ends well, and it is said."""

from __future__ import annotations

import argparse
import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from everram.runtime.cli import software, upgrade
from everram.runtime.client import Cluster
from everram.runtime.contracts.supervisor_pb2 import GiveUpgradeUpRequest, UpgradeReport, UpgradeRequest
from everram.runtime.contracts.vmemfs_pb2 import Generation, RollbackReport, RollbackRequest, VMemFSStatus
from everram.runtime.errors import Aborted, FailedPrecondition, Unimplemented


class Running:
    """A cluster of two hosts, each of whose upgrades takes until it is given up or `finish` is set."""

    def __init__(self) -> None:
        self.hosts = [SimpleNamespace(name="h1", vmemfs=self), SimpleNamespace(name="h2", vmemfs=self)]
        self.folders = SimpleNamespace(state=None)
        self.supervisor = self
        self.did: list[str] = []
        self.asked = asyncio.Event()
        self.outcome: asyncio.Future[UpgradeReport] = asyncio.get_running_loop().create_future()
        self.way_back = True

    async def __aenter__(self) -> Running:
        return self

    async def __aexit__(self, *error: object) -> None:
        pass

    def host(self, name: str) -> Any:
        return next(host for host in self.hosts if host.name == name)

    async def upgrade(self, request: UpgradeRequest, timeout_s: float) -> UpgradeReport:
        self.did.append(f"upgrade {request.machine}")
        self.asked.set()
        return await self.outcome

    async def give_upgrade_up(self, request: GiveUpgradeUpRequest) -> None:
        self.did.append(f"give up {request.machine}")
        if self.way_back:
            self.outcome.set_exception(Aborted("it was given up"))
        else:
            self.outcome.set_result(UpgradeReport(upgraded=True, version="9"))

    async def rollback(self, request: RollbackRequest) -> RollbackReport:
        self.did.append("roll back")
        return RollbackReport(format="1.1", lost=["the history"])

    async def write_latest(self, request: object) -> Generation:
        self.did.append("write the latest")
        return Generation()

    async def status(self, request: object) -> VMemFSStatus:
        return VMemFSStatus(version="2.0")


@pytest.fixture
async def running(monkeypatch: pytest.MonkeyPatch) -> Running:
    cluster = Running()

    async def connect(name: str | None, dir: str | None) -> Running:
        return cluster

    monkeypatch.setattr(Cluster, "connect", connect)
    monkeypatch.setattr(software, "interpreter", lambda given, state: "python")
    return cluster


async def interrupted(cluster: Running, **options: bool) -> int:
    """The exit status of `everram upgrade --all` after a Ctrl-C while the first host is upgraded."""
    args = {"cluster": None, "dir": None, "json": False, "hosts": [], "all": True, "python": ""}
    args |= {"preflight": False, "pause": False, "rollback": False}
    command = asyncio.ensure_future(upgrade._upgrade(argparse.Namespace(**args | options)))
    await cluster.asked.wait()
    command.cancel()  # as asyncio.run does it
    return await command


async def test_before_the_hand_over_it_is_given_up(running: Running, capsys: pytest.CaptureFixture[str]) -> None:
    assert await interrupted(running) == 130
    assert running.did == ["upgrade h1", "give up h1"]
    assert capsys.readouterr().err.splitlines()[-1] == "everram: h1: nothing was changed"


async def test_a_rollback_that_is_given_up_is_taken_back(running: Running, capsys: pytest.CaptureFixture[str]) -> None:
    assert await interrupted(running, rollback=True) == 130
    assert running.did == ["roll back", "upgrade h1", "give up h1", "write the latest"]
    assert "the rollback is taken back, VMemFS 2.0 is written" in capsys.readouterr().err


async def test_a_rollback_that_is_refused_is_not_taken_back(
    running: Running, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    async def refused(request: RollbackRequest) -> RollbackReport:
        running.asked.set()
        raise FailedPrecondition("stop it first")

    monkeypatch.setattr(running, "rollback", refused)
    args = {"cluster": None, "dir": None, "json": False, "hosts": ["h1"], "all": False, "python": ""}
    with pytest.raises(FailedPrecondition, match="stop it first"):
        await upgrade._upgrade(argparse.Namespace(**args, preflight=False, pause=False, rollback=True))
    assert running.did == []
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("rollback", [False, True])
async def test_after_it_the_upgrade_comes_to_its_end(
    running: Running, capsys: pytest.CaptureFixture[str], rollback: bool
) -> None:
    running.way_back = False
    assert await interrupted(running, rollback=rollback) == 130
    assert running.did[-2:] == ["upgrade h1", "give up h1"]
    said = capsys.readouterr()
    assert said.out.startswith("h1 runs everram 9 now")
    assert said.err.splitlines()[-1] == "everram: h1 had begun to hand over, so it came to its end; not upgraded: h2"


async def test_a_supervisor_that_cannot_give_up_is_waited_for(
    running: Running, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def unknown(request: object) -> None:
        running.outcome.set_exception(FailedPrecondition("the new host software ended"))
        raise Unimplemented("no such call")

    monkeypatch.setattr(running, "give_upgrade_up", unknown)
    with pytest.raises(FailedPrecondition, match="the new host software ended"):
        await interrupted(running)
    assert "it cannot be given up, and goes on to its end: no such call" in capsys.readouterr().err
