"""The fault service as the hypervisor sees it: who serves the page faults of guests' tracked regions."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Protocol

from everram.runtime.environment import MachineEvent


class FaultService(Protocol):
    """One per host. The real one is `everram.runtime.memory.page_service`."""

    def attach(self, event: MachineEvent) -> None:
        """Serve the ranges of an "attached" event from now on; the descriptor is the service's own."""

    def detach(self, guest_id: str) -> None:
        """Stop serving a guest that has ended; its written pages stay known."""

    def unserved(self, guest_id: str, arenas: Sequence[str]) -> None:
        """A guest has attached without letting all faults of these memories be served: nobody sees its stores to them,
        until it is detached."""

    def all_came(self) -> None:
        """Whoever ran before this host did is attached by now, or known to be unserved."""

    def is_served(self, guest_id: str, region: str) -> bool:
        """Whether stores of this guest to this region, wherever in it, can be trapped now."""

    def written_pages(self, guest_id: str, region: str) -> int | None:
        """How many pages of a tracked region were written; None if it is not tracked here."""


class Restoring(Protocol):
    """Memory that comes from an image while its guests run already; `everram.actors.power_monitor.backfill`."""

    def start(self, spawn: Callable[..., asyncio.Task[None]], on_damage: Callable[[str, str], None]) -> None:
        """Once every guest that lives is served. `on_damage`: (guest_id, what is lost of its memory), perhaps again."""

    def may_lack(self, arena: str) -> bool:
        """Whether pages of this memory are still to come."""
