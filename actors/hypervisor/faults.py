"""The fault service as the hypervisor sees it: who serves the page faults of guests' tracked regions."""

from __future__ import annotations

from typing import Protocol

from everram.runtime.environment import MachineEvent


class FaultService(Protocol):
    """One per host. The real one is `everram.runtime.memory.page_service`."""

    def attach(self, event: MachineEvent) -> None:
        """Serve the ranges of an "attached" event from now on; the descriptor is the service's own."""

    def detach(self, guest_id: str) -> None:
        """Stop serving a guest that has ended; its written pages stay known."""

    def written_pages(self, guest_id: str, region: str) -> int | None:
        """How many pages of a tracked region were written; None if it is not tracked here."""
