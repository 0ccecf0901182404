"""`environment.Logs` of a simulated host: what the guests of its machine printed."""

from __future__ import annotations

from everram.runtime.simulation.machine import SimulatedMachine


class SimulatedLogs:
    def __init__(self, machine: SimulatedMachine) -> None:
        self._output = machine.output

    async def read(self, path: str, offset: int, limit: int) -> bytes:
        return bytes(self._output.get(path, b"")[offset : offset + limit])

    async def size(self, path: str) -> int:
        return len(self._output.get(path, b""))

    async def remove(self, path: str) -> None:
        self._output.pop(path, None)
