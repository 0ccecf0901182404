"""The directory's values as typed records, read defensively.

    record = GuestRecord.read(decode(pair.value))     # raises ValueError with the member that is wrong
    changed = record.changed(state=CHOSEN, epoch=7)   # keeps every member that this version does not know

What the members mean is in `everram.runtime.coordination.directory`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

RUNNING, STOPPED, FAILING_OVER, CHOSEN, MOVING, LOST = (
    "running", "stopped", "failing-over", "chosen", "moving", "lost",
)  # fmt: skip
"""A guest's states; who goes from which to which is in `everram.actors.availability.failover`."""
DEAD = "dead"
"""A machine's state once somebody has proved that it ended with all its memory."""


@dataclass(frozen=True, slots=True)
class Place:
    """One memory, and the host that serves it."""

    host: str
    memory_id: str

    def value(self) -> dict[str, str]:
        return {"host": self.host, "memory_id": self.memory_id}


@dataclass(frozen=True, slots=True)
class GuestNeed:
    """Of volatile memory."""

    working_bytes: int = 0
    """What it works with, as its host's scheduler estimates it."""
    memory_bytes: int = 0
    """What it was promised."""


@dataclass(frozen=True, slots=True)
class HostRecord:
    host_id: str
    memory_id: str
    memory_free_bytes: int
    guest_bytes: int | None = None
    """What is left for guests' volatile memory beside what its guests work with; None: it does not say."""
    unpromised_bytes: int | None = None
    """The same beside what its guests were promised: more is refused."""
    needs: tuple[tuple[str, GuestNeed], ...] = ()
    """Of its guests, by guest_id."""

    @staticmethod
    def read(value: dict[str, Any]) -> HostRecord:
        record = HostRecord(_text(value, "host_id"), _text(value, "memory_id"), _whole(value, "memory_free_bytes"))
        try:
            return replace(record, **_guest_memory(value.get("guest_memory")))
        except ValueError:
            return record  # a hint for placement: without it the host is there all the same

    def has_room(self, need: GuestNeed) -> bool:
        """As far as is known."""
        pages = self.guest_bytes is not None and self.guest_bytes < need.working_bytes
        refuses = self.unpromised_bytes is not None and self.unpromised_bytes < need.memory_bytes
        return not pages and not refuses


@dataclass(frozen=True, slots=True)
class MachineRecord:
    state: str

    @staticmethod
    def read(value: dict[str, Any]) -> MachineRecord:
        return MachineRecord(_text(value, "state"))


@dataclass(frozen=True, slots=True)
class LeaderRecord:
    host: str

    @staticmethod
    def read(value: dict[str, Any]) -> LeaderRecord:
        return LeaderRecord(_text(value, "host"))


@dataclass(frozen=True, slots=True)
class ServingRecord:
    host: str
    epoch: int

    @staticmethod
    def read(value: dict[str, Any]) -> ServingRecord:
        return ServingRecord(_text(value, "host"), _whole(value, "epoch"))


@dataclass(frozen=True, slots=True, eq=False)
class GuestRecord:
    raw: dict[str, Any]
    """The whole value; unknown members are written back as they were."""
    owner: Place
    epoch: int
    state: str
    start: int
    copies: int
    required: tuple[str, ...]
    destinations: tuple[Place, ...]
    prefer: str
    aim: str
    previous: Place | None
    limits: tuple[int, int] | None
    """Of its volatile memory: (min, max), if a person has ever set them."""
    saved: tuple[str, ...] | None
    """None: it waits for nobody's saved memory. Otherwise which copies have everything that this memory has."""

    @staticmethod
    def read(value: dict[str, Any]) -> GuestRecord:
        return GuestRecord(
            raw=value,
            owner=_place(value),
            epoch=_whole(value, "epoch"),
            state=_text(value, "state"),
            start=_whole(value, "start"),
            copies=_whole(value, "copies"),
            required=_texts(value, "required"),
            destinations=tuple(_place(member) for member in _several(value, "destinations")),
            prefer=_text(value, "prefer"),
            aim=_text(value, "aim"),
            previous=_place(value["previous"]) if value.get("previous") else None,
            limits=_limits(value["limits"]) if value.get("limits") else None,
            saved=_texts(value["saved"], "drained") if value.get("saved") else None,
        )

    def changed(self, **members: Any) -> GuestRecord:
        """With these members; None takes one away. Places and tuples are written as their values."""
        raw = {name: member for name, member in self.raw.items() if name not in members}
        raw |= {name: _plain(member) for name, member in members.items() if member is not None}
        return GuestRecord.read(raw)


def _plain(member: Any) -> Any:
    if isinstance(member, Place):
        return member.value()
    return [_plain(each) for each in member] if isinstance(member, (tuple, list)) else member


def _place(value: Any) -> Place:
    if not isinstance(value, dict):
        raise ValueError(f"a host with its memory_id was expected, not {value!r}")
    return Place(_text(value, "host"), _text(value, "memory_id"))


def _guest_memory(value: Any) -> dict[str, Any]:
    if value is None:
        return {}
    guests = value.get("guests") or {} if isinstance(value, dict) else None
    if not isinstance(guests, dict) or not all(isinstance(need, dict) for need in guests.values()):
        raise ValueError(f"guest_memory is {value!r}, not what a host says of its guests' memory")
    needs = [(g, GuestNeed(_whole(need, "working_bytes"), _whole(need, "memory_bytes"))) for g, need in guests.items()]
    return {
        "guest_bytes": _whole(value, "available_bytes"),
        "unpromised_bytes": _whole(value, "unpromised_bytes"),
        "needs": tuple(sorted(needs, key=lambda need: need[0])),
    }


def _limits(value: Any) -> tuple[int, int]:
    if not isinstance(value, dict):
        raise ValueError(f"limits are {value!r}, not a min and a max")
    return _whole(value, "min_bytes"), _whole(value, "max_bytes")


def _text(value: dict[str, Any], name: str) -> str:
    member = value.get(name) or ""
    if not isinstance(member, str):
        raise ValueError(f"{name} is {member!r}, not a text")
    return member


def _texts(value: Any, name: str) -> tuple[str, ...]:
    if not isinstance(value, dict):
        raise ValueError(f"an object with {name} was expected, not {value!r}")
    return tuple(_text({name: member}, name) for member in _several(value, name))


def _whole(value: dict[str, Any], name: str) -> int:
    member = value.get(name) or 0
    if not isinstance(member, int) or isinstance(member, bool) or member < 0:
        raise ValueError(f"{name} is {member!r}, not a whole number")
    return member


def _several(value: dict[str, Any], name: str) -> Sequence[Any]:
    member = value.get(name) or []
    if not isinstance(member, list):
        raise ValueError(f"{name} is {member!r}, not a list")
    return member
