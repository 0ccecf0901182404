"""A region that was reverted is what its snapshot holds: what was committed since is gone for nobody's fault.

Whoever asks for it says so before, and again when it was acknowledged; every incarnation says what it finds. Between
the two it may have been done or not, and whoever asked and was not told asks for no other.
"""

from __future__ import annotations

from everram.actors.chaos.journal import Found

PROPERTY = "a reverted region is what its snapshot holds"


class RevertExact:
    """Of one guest."""

    def __init__(self) -> None:
        self._asked: Found | None = None
        """What its region is once it was reverted; None: nobody asked, or it has been found so."""
        self._found = False
        """An incarnation has begun with that since it was asked for."""
        self._acknowledged = False

    def asked(self, state: Found) -> None:
        self._asked, self._found, self._acknowledged = state, False, False

    def acknowledged(self) -> None:
        self._acknowledged = True
        self._settle()

    def begins(self, found: Found) -> tuple[bool, str | None]:
        """An incarnation that finds this: whether what was committed since the snapshot may be gone, and what is wrong
        with it."""
        asked = self._asked
        self._found = self._found or found == asked
        wrong = None
        if self._acknowledged and not self._found:
            wrong = f"it was reverted to {asked}, and holds {found}"
        self._settle()
        return found == asked, wrong

    def _settle(self) -> None:
        if self._acknowledged and self._found:
            self._asked, self._found, self._acknowledged = None, False, False
