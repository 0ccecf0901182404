"""Every fault of the simulation, by name. A new kind goes into one of these modules, or into a new one named here."""

from __future__ import annotations

from everram.actors.chaos.fault import Kind
from everram.actors.chaos.faults import disks, memory, network, power, processes

KINDS: dict[str, Kind] = processes.KINDS | network.KINDS | power.KINDS | disks.KINDS | memory.KINDS
