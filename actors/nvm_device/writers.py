"""Guests' stores as the NVM device sees them: who traps the first one to each page of a region."""

from __future__ import annotations

from typing import Protocol


class Writers(Protocol):
    """One per host. The real one is `everram.runtime.memory.page_service`."""

    def is_served(self, guest_id: str, region: str) -> bool:
        """Whether stores of this guest to this region, wherever in it, can be trapped now."""

    def protect(self, guest_id: str, region: str) -> None:
        """From the return of this call on the guest's next store to any page is asked about. Raises Unavailable."""

    def retry_all(self) -> None:
        """There is room again: ask once more for every page whose writer waits."""

    def waiting_pages(self) -> int: ...
