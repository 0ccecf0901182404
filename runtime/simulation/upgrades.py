"""The upgrade of the host software on a simulated machine: the production core's own steps, carried out on domains.

    machine.upgrade(pause=True)                  # the scenario asks; how it ended is in `machine.upgrades.ended`

A successor is a host's coroutine in a domain of its own, with a port that says `is_successor`; it reads the memory
objects through `peek`, judges, and is the machine's host once `taken` returns.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from everram.runtime.errors import EverramError
from everram.runtime.machine import effects as effect_of

if TYPE_CHECKING:
    from everram.runtime.simulation.machine import Host, SimulatedMachine

OLD, NEW = "old", "new"


class SimulatedUpgrades:
    """Of one machine; see the module."""

    def __init__(self, machine: SimulatedMachine) -> None:
        self._machine = machine
        self.successor: Host | None = None
        self.ended: list[EverramError | None] = []
        """How each upgrade ended, in their order; None: well."""
        self.former_used = 0
        """How often the former software came back."""

    def perform(self, effect: effect_of.Effect) -> bool:
        """Whether it is one of an upgrade's."""
        machine = self._machine
        match effect:
            case effect_of.StartSuccessor(incarnation):
                machine.within(machine.draw(machine.delays.host_start), partial(self._begin, incarnation))
            case effect_of.EndSuccessor():
                self._end()
            case effect_of.HandOver():
                if machine.host is not None:
                    machine.to_host(machine.host, machine.host.handing.set)
            case effect_of.PassMemory():
                self._pass()
            case effect_of.UseFormer():
                self.former_used += 1
            case effect_of.Upgraded(error):
                self.ended.append(error)
            case _:
                return False
        return True

    def _begin(self, incarnation: int) -> None:
        machine, upgrade = self._machine, self._machine.core.upgrade
        if upgrade.step != "warming" or upgrade.incarnation != incarnation:
            return  # it was ended before it had begun
        self.successor = machine.begin_process(incarnation, successor=True)

    def _end(self) -> None:
        successor, self.successor = self.successor, None
        if successor is not None and successor.domain.alive:
            self._machine.loop.kill(successor.domain)

    def _pass(self) -> None:
        machine, successor = self._machine, self.successor
        assert successor is not None, "there is nobody to pass the memory to"
        self.successor, machine.host = None, successor
        machine.to_host(successor, lambda: None if successor.taken.done() else successor.taken.set_result(None))

    def died(self, host: Host) -> bool:
        """Whether it was the successor. Until the machine is told it may pass the memory to it, and is told then that
        its host has exited."""
        if host is not self.successor:
            return False
        machine = self._machine
        machine.within(machine.draw(machine.delays.signal), partial(self._exited, host))
        return True

    def _exited(self, host: Host) -> None:
        machine, status = self._machine, host.exit_status
        if host is self.successor:
            self.successor = None
            machine.event(machine.core.upgrade.successor_exited, host.incarnation, status)
        else:
            machine.event(machine.core.host_exited, host.incarnation, status)
