"""What happens in a real cluster while somebody works with it: followed in its directory, and seen from its supervisor.

    watch = Watch(cluster, {guest_id: "bank"})
    tasks.create_task(watch.run())

The directory says what was decided, at the moment it was: who is dead, whose lease is over, who was chosen, who serves.
The supervisor says how the hosts are, looked at every `look_s`. Both become events, for the timeline, and for each host
the state it was in, a letter, for its lane. The demo and `everram chaos run` see by it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

from everram.actors.chaos.lanes import State
from everram.runtime.client import Cluster
from everram.runtime.contracts.common_pb2 import Empty
from everram.runtime.contracts.supervisor_pb2 import MachineStatus
from everram.runtime.coordination import directory
from everram.runtime.coordination.api import Event, KeyValue, prefix
from everram.runtime.coordination.client import CoordinationClient
from everram.runtime.errors import EverramError

LOOK_S = 0.05
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
        State(SOFTWARE_DOWN, "host software down, memory and guests live", "warn"),
        State(CUT, "cut off", "dead"),
        State(DEAD, "dead", "dead"),
        State(OFF, "off, its memory saved or not", "dead"),
        State(BATTERY, "on battery", "warn"),
    )
}


def legend_of(guest: str) -> dict[str, State]:
    """For one guest alone."""
    serves, copy = LEGEND[SERVES], LEGEND[COPY]
    own = {SERVES: replace(serves, words=f"serves {guest}"), COPY: replace(copy, words=f"keeps a copy of {guest}")}
    return LEGEND | own


@dataclass(frozen=True, slots=True)
class Serving:
    """One incarnation that has said that it serves."""

    guest_id: str
    host: str
    epoch: int
    port: int


class Watch:
    """`run` it meanwhile; then read `events` and `states`."""

    def __init__(self, cluster: Cluster, guests: dict[str, str], *, look_s: float = LOOK_S) -> None:
        """`guests`: what those that are followed are called in sentences, by guest_id."""
        self.began_s = asyncio.get_running_loop().time()
        self.legend = LEGEND if len(guests) != 1 else legend_of(*guests.values())
        self.events: list[tuple[float, str]] = []
        self.states: dict[str, list[tuple[float, str]]] = {host.name: [] for host in cluster.hosts}
        """By host, in order: (since when, its letter)."""
        self.memory_of: dict[tuple[str, int], str] = {}
        """memory_id by (guest_id, epoch)."""
        self.incarnations: dict[tuple[str, int], Serving] = {}
        """By (guest_id, epoch), all that ever served."""
        self.failovers: list[tuple[float, str, str]] = []
        """(when, guest, the host that was chosen)."""
        self.machines: dict[str, MachineStatus] = {}
        self.coordination_pid = 0
        self.leader_changes = 0
        self.dying = ""
        """A machine that is being lost: that its host goes first means nothing."""
        self.changed = asyncio.Event()
        """Set, and replaced by a new one, at every change in the directory."""
        self._cluster = cluster
        self._guests = guests
        self._look_s = look_s
        self._values: dict[bytes, dict[str, Any]] = {}
        self._ready: dict[str, tuple[int, int]] = {}
        """By host: (pid of its process, of its machine's), of the last that was ready."""
        self._restarts: dict[str, int] = {}

    def note(self, what: str) -> None:
        self.events.append((asyncio.get_running_loop().time(), what))

    async def run(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._look())
            tasks.create_task(self._follow())

    def record(self, guest_id: str) -> dict[str, Any]:
        """Of a guest, as the directory has it."""
        return self._values.get(directory.guest_key(guest_id), {})

    def serving_epoch(self, guest_id: str) -> int:
        """Of the incarnation that serves; 0: none does."""
        return int(self._values.get(directory.serving_key(guest_id), {}).get("epoch", 0))

    def restarts(self, host: str) -> int:
        """How many host processes were seen ready on a machine after the first."""
        return self._restarts.get(host, 0)

    # -- the supervisor

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
            await asyncio.sleep(self._look_s)

    def _see(self, machine: MachineStatus) -> None:
        name = machine.name
        before, self.machines[name] = self.machines.get(name), machine
        if before is None:
            self._ready[name] = machine.host_pid, machine.pid
        if before is None or machine.state in ("dead", "off") or name == self.dying:
            return
        if machine.host_state != before.host_state and machine.host_state != "ready":
            self.note(f"the machine {name} sees that its host is {machine.host_state}")
        host_pid, machine_pid = self._ready[name]
        if machine.host_state == "ready" and machine.host_pid != host_pid:
            self._ready[name] = machine.host_pid, machine.pid
            self._restarts[name] = self.restarts(name) + 1
            memory = ", with the old memory" if machine.pid == machine_pid else ""
            self.note(f"a new host is ready on {name}{memory}")
        elif machine.host_state == "ready" != before.host_state:
            self.note(f"the host of {name} is ready again")

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
        self.changed.set()
        self.changed = asyncio.Event()

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
            return [f"{after.get('host')} starts {guest}, epoch {after.get('epoch')}"] if new else []
        if guest and key.startswith(directory.GUESTS) and after is not None:
            return self._told_of_guest(guest, before, after)
        return []

    def _told_of_guest(self, guest: str, before: dict[str, Any], after: dict[str, Any]) -> list[str]:
        if after["state"] == "failing-over" != before.get("state"):
            return [f"the copies of {guest} are asked what they hold, for epoch {after['epoch']}"]
        if after["state"] == "chosen" != before.get("state"):
            self.failovers.append((asyncio.get_running_loop().time(), guest, str(after["host"])))
            held = f"its copy holds everything before {after.get('start', 0)}"
            return [f"{after['host']} is chosen for {guest}: {held}"]
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
        if machine is not None and machine.host_state != "ready" and host != self.dying:
            return SOFTWARE_DOWN
        if directory.host_key(host) not in self._values and host != self.dying:
            return NO_LEASE
        return SERVES if host in serving else COPY if host in copies else UP


def _value(pair: KeyValue) -> dict[str, Any]:
    try:
        return directory.decode(pair.value)
    except ValueError:
        return {}
