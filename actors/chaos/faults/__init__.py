"""Every fault of the simulation, by name. A new kind goes into one of these modules, or into a new one named here."""

from __future__ import annotations

from everram.actors.chaos.fault import Kind
from everram.actors.chaos.faults import disks, memory, network, orders, power, processes, software

_MODULES = (processes, network, power, disks, memory, software, orders)
KINDS: dict[str, Kind] = {name: kind for module in _MODULES for name, kind in module.KINDS.items()}
