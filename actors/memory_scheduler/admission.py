"""Whether a host has room for one more guest, by what those that it has work with.

check_limits(wish)                     # raises InvalidArgument: limits that contradict each other
admit(wish, room)                      # raises ResourceExhausted: does not fit, and what would help
"""

from __future__ import annotations

from dataclasses import dataclass

from everram.runtime.errors import InvalidArgument, ResourceExhausted
from everram.runtime.memory.contract import PAGE_BYTES
from everram.runtime.sizes import size_text

MEMORY_MIN_BYTES = 1 << 20
"""The least volatile memory of a guest: below it the tables cost more than they order."""


@dataclass(frozen=True, slots=True)
class Wish:
    """What a guest's user asks for, in bytes; 0 for what was not said."""

    guest: str
    memory_bytes: int
    min_bytes: int = 0
    max_bytes: int = 0
    again: bool = False
    """It ran before: better that all page than that it stays away."""


@dataclass(frozen=True, slots=True)
class Room:
    """One host, in bytes."""

    limit_bytes: int
    """What guests may have of its memory."""
    min_free_bytes: int
    reserved_bytes: int
    """The minimums of its guests."""
    working_bytes: int
    """What its guests work with, at most, as estimated."""
    promised_bytes: int
    """Their whole memory."""
    swap_bytes: int
    """Of its storage, for pages; 0 where swapping is off."""


def check_limits(wish: Wish) -> None:
    """Raises InvalidArgument."""
    size = wish.memory_bytes
    if size % PAGE_BYTES or size < MEMORY_MIN_BYTES:
        raise InvalidArgument(
            f"{wish.guest} cannot have {size} bytes of memory: give whole pages, at least {size_text(MEMORY_MIN_BYTES)}"
        )
    for word, value in (("min", wish.min_bytes), ("max", wish.max_bytes)):
        if value > size:
            raise InvalidArgument(
                f"the {word} of {wish.guest} ({size_text(value)}) is more than its memory ({size_text(size)})"
            )
    if wish.max_bytes and wish.min_bytes > wish.max_bytes:
        raise InvalidArgument(
            f"the min of {wish.guest} ({size_text(wish.min_bytes)}) is above its max ({size_text(wish.max_bytes)})"
        )


def admit(wish: Wish, room: Room) -> None:
    """Raises ResourceExhausted with the rule that the guest would break."""
    usable = room.limit_bytes - room.min_free_bytes
    if room.reserved_bytes + wish.min_bytes > usable:
        raise ResourceExhausted(
            f"{wish.guest} asks for at least {size_text(wish.min_bytes)}, and {size_text(room.reserved_bytes)} of the "
            f"{size_text(usable)} that guests may have here are reserved: lower a min with `everram memory set`"
        )
    if room.promised_bytes + wish.memory_bytes > usable + room.swap_bytes:
        swap = f"with {size_text(room.swap_bytes)} of swap space" if room.swap_bytes else "and swapping is off"
        raise ResourceExhausted(
            f"{wish.guest} does not fit: guests were promised {size_text(room.promised_bytes)}, and this host has "
            f"{size_text(usable)} for them {swap}: run it with less --memory, or start the cluster with more"
        )
    if room.working_bytes + wish.min_bytes > usable and not wish.again:
        raise ResourceExhausted(
            f"{wish.guest} would only page: the guests here work with {size_text(room.working_bytes)} of "
            f"{size_text(usable)}: run it on another host, or later"
        )
