"""The user of the banks' snapshots: takes, reads, purges and removes them while everything else goes on.

    album = Album(cluster, watch, tellers, findings, stream)
    await album.run()

A snapshot has to be the state that its bank had at its LSN, as its teller's journal of answers knows it, and to stay
that until it is removed, on whatever memory: a copy takes the same ones at the same places of the log.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

from everram.actors.chaos.checks.snapshots_exact import PROPERTY, STAYS
from everram.actors.chaos.ledger_region import REGION_BYTES, understand
from everram.actors.chaos.real import bank
from everram.actors.chaos.real.findings import Findings
from everram.actors.chaos.real.teller import Teller
from everram.actors.chaos.watch import Watch
from everram.runtime.client import Cluster
from everram.runtime.client.cluster import Host
from everram.runtime.contracts import nvm_device_pb2 as nvm
from everram.runtime.errors import DataLoss, EverramError, NotFound
from everram.runtime.simulation.entropy import Stream

ACTS = {"take": 4, "read": 4, "purge": 1, "remove": 2}
PAUSE_S = (0.1, 0.6)
ASK_TIMEOUT_S = 2.0
KEPT_MAX = 24


@dataclass(slots=True)
class Photo:
    guest_id: str
    record: nvm.SnapshotRecord
    memory_id: str
    """Where it was taken."""
    digest: str = ""
    """SHA-256 of what it held when it was read first."""

    def __str__(self) -> str:
        return f"{self.record.name} ({self.record.epoch}:{self.record.lsn})"

    @property
    def name(self) -> nvm.SnapshotName:
        return nvm.SnapshotName(guest_id=self.guest_id, region=bank.REGION, name=self.record.name)


class Album:
    def __init__(
        self, cluster: Cluster, watch: Watch, tellers: Mapping[str, Teller], findings: Findings, stream: Stream
    ) -> None:
        """`tellers` by guest_id."""
        self.acts: list[tuple[float, str]] = []
        """What was done: (when, kind)."""
        self._cluster = cluster
        self._watch = watch
        self._tellers = tellers
        self._findings = findings
        self._stream = stream
        self._photos: list[Photo] = []
        self._taken = 0
        self._acts = {"take": self._take, "read": self._read, "purge": self._purge, "remove": self._remove}

    async def run(self) -> None:
        while True:
            await asyncio.sleep(self._stream.uniform(*PAUSE_S))
            kind = self._stream.choices(list(ACTS), weights=list(ACTS.values()))[0]
            if len(self._photos) >= KEPT_MAX:
                kind = "remove"
            guest_id = self._stream.choice(list(self._tellers))
            try:
                if await self._acts[kind](guest_id):
                    self.acts.append((asyncio.get_running_loop().time(), kind))
            except EverramError:
                pass  # its host is down, or somewhere between two places

    def _host(self, guest_id: str) -> Host | None:
        """Where its last incarnation serves."""
        epoch = self._watch.serving_epoch(guest_id)
        serving = self._watch.incarnations.get((guest_id, epoch))
        return None if serving is None else self._cluster.host(serving.host)

    def _memory(self, guest_id: str) -> str:
        return str(self._watch.record(guest_id).get("memory_id", ""))

    async def _take(self, guest_id: str) -> bool:
        host, memory_id = self._host(guest_id), self._memory(guest_id)
        if host is None:
            return False
        self._taken += 1
        named = nvm.RegionName(guest_id=guest_id, region=bank.REGION)
        request = nvm.SnapshotRequest(regions=[named], name=f"s{self._taken}")
        (record,) = (await host.nvm_device.snapshot(request, timeout_s=ASK_TIMEOUT_S)).snapshots
        self._photos.append(Photo(guest_id, record, memory_id))
        return True

    async def _purge(self, guest_id: str) -> bool:
        host = self._host(guest_id)
        if host is None:
            return False
        await host.nvm_device.purge(nvm.PurgeRequest(guest_id=guest_id), timeout_s=ASK_TIMEOUT_S)
        return True

    async def _remove(self, guest_id: str) -> bool:
        if not self._photos:
            return False
        photo = self._stream.choice(self._photos)
        self._photos.remove(photo)  # whatever is answered: it may be gone
        host = self._host(photo.guest_id)
        if host is None:
            return False
        request = nvm.SnapshotNames(snapshots=[photo.name])
        try:
            await host.nvm_device.remove_snapshots(request, timeout_s=ASK_TIMEOUT_S)
        except NotFound:
            pass
        return True

    async def _read(self, guest_id: str) -> bool:
        if not self._photos:
            return False
        photo = self._stream.choice(self._photos)
        host, memory_id = self._host(photo.guest_id), self._memory(photo.guest_id)
        if host is None:
            return False
        request = nvm.ReadSnapshotRequest(snapshot=photo.name, length=REGION_BYTES)
        try:
            content = (await host.nvm_device.read_snapshot(request, timeout_s=ASK_TIMEOUT_S)).data
        except NotFound:
            self._photos.remove(photo)
            if self._stayed(photo, memory_id) and self._memory(photo.guest_id) == memory_id:
                self._findings.violate(STAYS, f"{photo} is gone, and nobody removed it")
        except DataLoss as error:
            self._findings.violate(STAYS, f"{photo} cannot be read: {error.message}")
        else:
            self._compare(photo, content)
        return True

    def _stayed(self, photo: Photo, memory_id: str) -> bool:
        """Whether its bank has had the same memory ever since: what was on another one first has only what it took."""
        later = {
            memory for (guest, epoch), memory in self._watch.memory_of.items()
            if guest == photo.guest_id and epoch >= photo.record.epoch
        }  # fmt: skip
        return later | {memory_id} == {photo.memory_id}

    def _compare(self, photo: Photo, content: bytes) -> None:
        digest = hashlib.sha256(content).hexdigest()
        verdict = self._findings.look(STAYS)
        verdict.evidence = f"of {self._taken} that were taken, each read again and again, on whatever memory"
        if photo.digest and photo.digest != digest:
            self._findings.violate(STAYS, f"{photo} holds something else than before")
        photo.digest = digest
        teller = self._tellers[photo.guest_id]
        if teller.epoch < photo.record.epoch:
            return  # nobody has seen yet what was there at the begin of that incarnation
        verdict = self._findings.look(PROPERTY)
        verdict.evidence = "of what each holds, against what its teller was answered before and after its LSN"
        wrong = teller.history.wrong(photo.record.epoch, photo.record.lsn, understand(content))
        if wrong is not None:
            self._findings.violate(PROPERTY, f"{teller.name}, {photo}: {wrong}")
