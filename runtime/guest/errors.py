"""What can go wrong inside a guest, each with a message that says what to do."""

from __future__ import annotations


class GuestError(Exception):
    """Base of all of them."""


class NotAGuest(GuestError):
    """This process was not started by everram, or may not attach."""


class Detached(GuestError):
    """This process is a forked child: it shares its parent's memory but not its right to write it."""


class Fenced(GuestError):
    """The lease has run out: another incarnation may serve. Nothing was written; stop."""


class Timeout(GuestError):
    """Not known in time. The write is in the log; whether others hold it is unknown, not denied."""


class LogFull(GuestError):
    """A copy that has to hold the log lags behind by all that the log can keep, or the host has yet to take in what
    snapshots need. Nothing was written; try again."""


class RegionError(GuestError):
    """No such region, outside of it, or not written in this way."""


class OutOfMemory(GuestError):
    """The guest's volatile memory is full. Nothing was changed; free something first."""


class LogCorrupt(GuestError):
    """The log is not what this guest wrote: nothing was applied from it."""
