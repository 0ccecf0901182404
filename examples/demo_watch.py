"""What happens in a cluster while the demo's clients work: followed in its directory, and seen from its supervisor.

The directory says what was decided, at the moment it was: who is dead, whose lease is over, who was chosen, who serves.
The supervisor says how the hosts are, looked at every LOOK_S. Both become events, for the timeline, and for each host
the state it was in, a letter, for its lane.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any

from everram.actors.chaos.lanes import State
from everram.runtime.client import Cluster
from everram.runtime.contracts.common_pb2 import Empty
from everram.runtime.contracts.supervisor_pb2 import MachineStatus
from everram.runtime.coordination import directory
from everram.runtime.coordination.api import Event, KeyValue, prefix
from everram.runtime.coordination.client import CoordinationClient
from everram.runtime.errors import EverramError

LOOK_S = 0.02
RETRY_S = 0.05
SERVES, COPY, UP, SOFTWARE_DOWN, CUT, DEAD, OFF = "=", "c", "-", "!", "/", "x", "o"
LEGEND = {
    state.letter: state
    for state in (
        State(SERVES, "serves the bank", "serves"),
        State(COPY, "keeps its copy", "copy"),
        State(UP, "up"),
        State(SOFTWARE_DOWN, "host software down, memory and guests live", "warn"),
        State(CUT, "cut off", "dead"),
        State(DEAD, "dead", "dead"),
        State(OFF, "off, its memory saved or not", "dead"),
    )
}


class Watch:
    """`run` it while the clients work; then read `events` and `states`."""

    def __init__(self, cluster: Cluster, guest_id: str) -> None:
        self.began_s = asyncio.get_running_loop().time()
        self.events: list[tuple[float, str]] = []
        self.states: dict[str, list[tuple[float, str]]] = {host.name: [] for host in cluster.hosts}
        """By host, in order: (since when, its letter)."""
        self.legend = LEGEND
        self.dying = ""
        """A machine that is being lost: that its host goes first means nothing."""
        self.changed = asyncio.Event()
        """Set, and replaced by a new one, at every change in the directory."""
        self._cluster = cluster
        self._guest_id = guest_id
        self._machines: dict[str, MachineStatus] = {}
        self._values: dict[bytes, dict[str, Any]] = {}
        self._ready_pids: dict[str, int] = {}
        self._restarts: dict[str, int] = {}

    def note(self, what: str) -> None:
        self.events.append((asyncio.get_running_loop().time(), what))

    @property
    def serving_epoch(self) -> int:
        """Of the incarnation that serves the bank; 0: none does."""
        return int(self._values.get(directory.serving_key(self._guest_id), {}).get("epoch", 0))

    def restarts(self, host: str) -> int:
        """How many host processes were seen ready on a machine after the first."""
        return self._restarts.get(host, 0)

    async def run(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._look())
            tasks.create_task(self._follow())

    # -- the supervisor

    async def _look(self) -> None:
        while True:
            for machine in (await self._cluster.supervisor.status(Empty())).machines:
                self._see(machine)
            self._draw()
            await asyncio.sleep(LOOK_S)

    def _see(self, machine: MachineStatus) -> None:
        before, self._machines[machine.name] = self._machines.get(machine.name), machine
        if before is None:
            self._ready_pids[machine.name] = machine.host_pid
        if before is None or machine.state in ("dead", "off") or machine.name == self.dying:
            return
        if machine.host_state != before.host_state and machine.host_state != "ready":
            self.note(f"the machine {machine.name} sees that its host is {machine.host_state}")
        if machine.host_state == "ready" and machine.host_pid != self._ready_pids[machine.name]:
            self._ready_pids[machine.name] = machine.host_pid
            self._restarts[machine.name] = self.restarts(machine.name) + 1
            self.note(f"a new host is ready on {machine.name}, with the old memory")

    # -- the directory

    async def _follow(self) -> None:
        address = f"unix:{self._cluster.folders.coordination_socket}"
        coordination = CoordinationClient(address)
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
        self._apply([Event(False, pair) for pair in pairs], quiet=not self._values)
        async for batch in coordination.watch(everything, start_revision=revision + 1):
            self._apply(batch.events)

    def _apply(self, events: Iterable[Event], *, quiet: bool = False) -> None:
        for event in events:
            before = self._values.pop(event.kv.key, None)
            after = None if event.deleted else _value(event.kv)
            if after is not None:
                self._values[event.kv.key] = after
            if not quiet:
                for what in self._told(event.kv.key, before or {}, after):
                    self.note(what)
        self._draw()
        self.changed.set()
        self.changed = asyncio.Event()

    def _told(self, key: bytes, before: dict[str, Any], after: dict[str, Any] | None) -> list[str]:
        """What a change of the directory means."""
        name = key.rpartition(b"/")[2].decode()
        if key.startswith(directory.MACHINES) and after is not None and after.get("state") != before.get("state"):
            return [f"{name} is {'proven dead' if after['state'] == 'dead' else after['state']}"]
        if key.startswith(directory.HOSTS) and (after is None) != (not before):
            return [f"the lease of {name} is over" if after is None else f"{name} has a lease"]
        if key == directory.serving_key(self._guest_id) and after is not None:
            new = before.get("epoch") != after.get("epoch")
            return [f"{after.get('host')} starts the bank, epoch {after.get('epoch')}"] if new else []
        if key == directory.guest_key(self._guest_id) and after is not None:
            return self._told_of_guest(before, after)
        return []

    def _told_of_guest(self, before: dict[str, Any], after: dict[str, Any]) -> list[str]:
        if after["state"] == "failing-over" != before.get("state"):
            return [f"the copies are asked what they hold, for epoch {after['epoch']}"]
        if after["state"] == "chosen" != before.get("state"):
            return [f"{after['host']} is chosen: its copy holds everything before {after.get('start', 0)}"]
        new = self._hosts_of(set(after.get("required") or ()) - set(before.get("required") or ()))
        return [f"{host} holds a copy, in sync" for host in new]

    def _hosts_of(self, memory_ids: set[str]) -> list[str]:
        places = [(key, value) for key, value in self._values.items() if key.startswith(directory.HOSTS)]
        return sorted(
            key.removeprefix(directory.HOSTS).decode() for key, value in places if value.get("memory_id") in memory_ids
        )

    # -- lanes

    def _draw(self) -> None:
        if not self._values or not self._machines:
            return  # only half of it is known yet
        serving = str(self._values.get(directory.serving_key(self._guest_id), {}).get("host", ""))
        guest = self._values.get(directory.guest_key(self._guest_id), {})
        copies = self._hosts_of(set(guest.get("required") or ()))
        now_s = asyncio.get_running_loop().time()
        for host, states in self.states.items():
            state = self._state(host, serving, copies)
            if not states or states[-1][1] != state:
                states.append((now_s, state))

    def _state(self, host: str, serving: str, copies: list[str]) -> str:
        machine = self._machines.get(host)
        if machine is not None and machine.state in ("dead", "off"):
            return DEAD if machine.state == "dead" else OFF
        if machine is not None and machine.cut:
            return CUT
        if machine is not None and machine.host_state != "ready" and host != self.dying:
            return SOFTWARE_DOWN
        return SERVES if host == serving else COPY if host in copies else UP


def _value(pair: KeyValue) -> dict[str, Any]:
    try:
        return directory.decode(pair.value)
    except ValueError:
        return {}
