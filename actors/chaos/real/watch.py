"""What happens in a real cluster while somebody works with it: followed in its directory, and seen from its supervisor.

    watch = Watch(cluster, {guest_id: "bank"})
    tasks.create_task(watch.run())

The directory says what was decided, at the moment it was: who is dead, whose lease is over, who was chosen, who serves.
The supervisor says how the hosts are, the hosts how far copies are behind; both are looked at now and then.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from everram.actors.chaos.lanes import State
from everram.runtime.client import Cluster
from everram.runtime.contracts.common_pb2 import Empty, Guest
from everram.runtime.contracts.supervisor_pb2 import MachineStatus
from everram.runtime.coordination import directory
from everram.runtime.coordination.api import Event, KeyValue, prefix
from everram.runtime.coordination.client import CoordinationClient
from everram.runtime.errors import EverramError

LOOK_S = 0.05
LAG_EVERY_S = 0.5
RETRY_S = 0.05
ASK_TIMEOUT_S = 1.0
SERVES, COPY, UP, NO_LEASE, SOFTWARE_DOWN, CUT, DEAD, OFF, BATTERY = "=", "c", "-", "l", "!", "/", "x", "o", "b"
LEGEND = {
    state.letter: state
    for state in (
        State(SERVES, "serves a guest", "serves"),
        State(COPY, "keeps copies", "copy"),
        State(UP, "up"),
        State(NO_LEASE, "no lease", "warn"),
        State(SOFTWARE_DOWN, "host software down", "warn"),
        State(CUT, "cut off", "dead"),
        State(DEAD, "dead", "dead"),
        State(OFF, "off", "dead"),
        State(BATTERY, "on battery", "warn"),
    )
}


@dataclass(frozen=True, slots=True)
class Serving:
    """One incarnation that has said that it serves."""

    guest_id: str
    host: str
    epoch: int
    port: int


class Watch:
    """`run` it meanwhile; then read `events`, `states` and `lag`."""

    def __init__(self, cluster: Cluster, guests: dict[str, str]) -> None:
        """`guests`: the names of those that are followed, by guest_id."""
        self.events: list[tuple[float, str]] = []
        self.states: dict[str, list[tuple[float, str]]] = {host.name: [] for host in cluster.hosts}
        """By host, in order: (since when, its letter)."""
        self.lag: dict[str, list[tuple[float, float]]] = {name: [] for name in guests.values()}
        """By guest: (when, how many bytes the copy that is farthest behind lacks)."""
        self.memory_of: dict[tuple[str, int], str] = {}
        """memory_id by (guest_id, epoch)."""
        self.incarnations: dict[tuple[str, int], Serving] = {}
        """By (guest_id, epoch), all that ever served."""
        self.machines: dict[str, MachineStatus] = {}
        self.coordination_pid = 0
        self.leader_changes = 0
        self._cluster = cluster
        self._guests = guests
        self._values: dict[bytes, dict[str, Any]] = {}

    def note(self, what: str) -> None:
        self.events.append((asyncio.get_running_loop().time(), what))

    async def run(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._look())
            tasks.create_task(self._follow())
            tasks.create_task(self._measure_lag())

    def record(self, guest_id: str) -> dict[str, Any]:
        return self._values.get(directory.guest_key(guest_id), {})

    # -- the supervisor and the hosts

    async def _look(self) -> None:
        while True:
            try:
                status = await self._cluster.supervisor.status(Empty(), timeout_s=ASK_TIMEOUT_S)
            except EverramError as error:
                self.note(f"the supervisor does not answer: {error.message}")
            else:
                self.coordination_pid = status.coordination.pid
                for machine in status.machines:
                    self._see(machine)
                self._draw()
            await asyncio.sleep(LOOK_S)

    def _see(self, machine: MachineStatus) -> None:
        before, self.machines[machine.name] = self.machines.get(machine.name), machine
        if before is None or machine.state != "up" or before.state != "up":
            return
        if machine.host_state != before.host_state and machine.host_state != "ready":
            self.note(f"the machine {machine.name} sees that its host is {machine.host_state}")
        if machine.host_state == "ready" != before.host_state:
            self.note(f"the host of {machine.name} is ready again")

    async def _measure_lag(self) -> None:
        while True:
            for guest in await self.guests():
                if guest.guest_id in self._guests and guest.copies:
                    behind = max(guest.log.tail - copy.durable for copy in guest.copies)
                    now_s = asyncio.get_running_loop().time()
                    self.lag[self._guests[guest.guest_id]].append((now_s, float(max(0, behind))))
            await asyncio.sleep(LAG_EVERY_S)

    async def guests(self) -> list[Guest]:
        """As their hosts have them, as far as those answer."""
        try:
            return (await self._cluster.guests(patience_s=0.0, timeout_s=ASK_TIMEOUT_S))[0]
        except EverramError:
            return []

    # -- the directory

    async def _follow(self) -> None:
        coordination = CoordinationClient(f"unix:{self._cluster.folders.coordination_socket}")
        try:
            while True:
                try:
                    await self._follow_once(coordination)
                except EverramError:  # it is being restarted
                    await asyncio.sleep(RETRY_S)
        finally:
            await coordination.close()

    async def _follow_once(self, coordination: CoordinationClient) -> None:
        everything = prefix(directory.ROOT)
        revision, pairs = await coordination.range(everything)
        gone = set(self._values) - {pair.key for pair in pairs}
        lost = [Event(True, KeyValue(key=key, value=b"", create_revision=0, mod_revision=0, version=0)) for key in gone]
        self._apply([*lost, *(Event(False, pair) for pair in pairs)], quiet=not self._values)
        async for batch in coordination.watch(everything, start_revision=revision + 1):
            self._apply(batch.events)

    def _apply(self, events: Iterable[Event], *, quiet: bool = False) -> None:
        for event in events:
            before = self._values.pop(event.kv.key, None)
            after = None if event.deleted else _value(event.kv)
            if after is not None:
                self._values[event.kv.key] = after
                self._learn(event.kv.key, after)
            if not quiet:
                for what in self._told(event.kv.key, before or {}, after):
                    self.note(what)
        self._draw()

    def _learn(self, key: bytes, value: dict[str, Any]) -> None:
        for guest_id in self._guests:
            if key == directory.guest_key(guest_id):
                self.memory_of[guest_id, int(value.get("epoch", 0))] = str(value.get("memory_id", ""))
            if key == directory.serving_key(guest_id):
                epoch = int(value.get("epoch", 0))
                seen = Serving(guest_id, str(value.get("host", "")), epoch, int(value.get("port", 0)))
                self.incarnations.setdefault((guest_id, epoch), seen)

    def _told(self, key: bytes, before: dict[str, Any], after: dict[str, Any] | None) -> list[str]:
        """What a change of the directory means."""
        name = key.rpartition(b"/")[2].decode()
        if key.startswith(directory.MACHINES) and after is not None and after.get("state") != before.get("state"):
            return [f"{name} is {'proven dead' if after['state'] == 'dead' else after['state']}"]
        if key.startswith(directory.HOSTS) and (after is None) != (not before):
            return [f"the lease of {name} is over" if after is None else f"{name} has a lease"]
        if key == directory.LEADER and after is not None and after.get("host") != before.get("host"):
            self.leader_changes += 1
            return [f"{after.get('host')} leads"]
        guest = self._guests.get(name, "")
        if guest and key.startswith(directory.SERVING) and after is not None:
            new = before.get("epoch") != after.get("epoch")
            return [f"{after.get('host')} serves {guest}, epoch {after.get('epoch')}"] if new else []
        if guest and key.startswith(directory.GUESTS) and after is not None:
            return self._told_of_guest(guest, before, after)
        return []

    def _told_of_guest(self, guest: str, before: dict[str, Any], after: dict[str, Any]) -> list[str]:
        if after["state"] == "failing-over" != before.get("state"):
            return [f"the copies of {guest} are asked what they hold, for epoch {after['epoch']}"]
        if after["state"] == "chosen" != before.get("state"):
            return [f"{after['host']} is chosen for {guest}"]
        new = self._hosts_of(set(after.get("required") or ()) - set(before.get("required") or ()))
        return [f"{host} holds a copy of {guest}, in sync" for host in new]

    def _hosts_of(self, memory_ids: set[str]) -> list[str]:
        places = [(key, value) for key, value in self._values.items() if key.startswith(directory.HOSTS)]
        return sorted(
            key.removeprefix(directory.HOSTS).decode() for key, value in places if value.get("memory_id") in memory_ids
        )

    # -- lanes

    def _draw(self) -> None:
        if not self._values or not self.machines:
            return  # only half of it is known yet
        serving = {str(self._values.get(directory.serving_key(guest), {}).get("host", "")) for guest in self._guests}
        copies = {
            host for guest in self._guests for host in self._hosts_of(set(self.record(guest).get("required") or ()))
        }
        now_s = asyncio.get_running_loop().time()
        for host, states in self.states.items():
            state = self._state(host, serving, copies)
            if not states or states[-1][1] != state:
                states.append((now_s, state))

    def _state(self, host: str, serving: set[str], copies: set[str]) -> str:
        machine = self.machines.get(host)
        if machine is not None and machine.state in ("dead", "off"):
            return DEAD if machine.state == "dead" else OFF
        if machine is not None and machine.cut:
            return CUT
        if machine is not None and not machine.mains:
            return BATTERY
        if machine is not None and machine.host_state != "ready":
            return SOFTWARE_DOWN
        if directory.host_key(host) not in self._values:
            return NO_LEASE
        return SERVES if host in serving else COPY if host in copies else UP


def _value(pair: KeyValue) -> dict[str, Any]:
    try:
        return directory.decode(pair.value)
    except ValueError:
        return {}
