"""Where guests are, as the cluster's directory has it: read by clients before they ask hosts.

    places = await whereabouts.read()          # by guest_id; None while coordination does not answer
    place = named(places, "bank")              # by name or guest_id

A host knows the guests in its own memory, also those that another host has taken over meanwhile. Only the directory
says whose a guest is, and knows those that nobody has.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from everram.runtime.coordination import directory
from everram.runtime.coordination.api import Compare, Delete, KeyValue, Relation, Target, prefix
from everram.runtime.errors import Aborted, EverramError, FailedPrecondition

if TYPE_CHECKING:
    from everram.runtime.coordination.client import CoordinationClient

TIMEOUT_S = 1.0
"""A client that cannot read the directory by then goes by what the hosts say."""
SETTLING = frozenset({"failing-over", "chosen", "moving"})
"""States in which no host has the guest, but one soon will, if any can."""
LOST = "lost"


@dataclass(frozen=True, slots=True)
class Place:
    """What the directory says of one guest."""

    guest_id: str
    name: str
    host: str
    epoch: int
    state: str
    revision: int
    waits: bool = False
    """For the saved memory of `host`, unless somebody serves it: its copies have less."""

    @staticmethod
    def of(pair: KeyValue) -> Place:
        record = directory.decode(pair.value)
        return Place(
            guest_id=pair.key.removeprefix(directory.GUESTS).decode(),
            name=str(record.get("name", "")),
            host=str(record.get("host", "")),
            epoch=int(record.get("epoch", 0)),
            state=str(record.get("state", "")),
            revision=pair.mod_revision,
            waits=record.get("saved") is not None,
        )


class Whereabouts:
    """Connects when it is first asked."""

    def __init__(self, address: str) -> None:
        self._address = address
        self._client: CoordinationClient | None = None

    def _coordination(self) -> CoordinationClient:
        from everram.runtime.coordination.client import CoordinationClient

        if self._client is None:
            self._client = CoordinationClient(self._address, timeout_s=TIMEOUT_S)
        return self._client

    async def read(self) -> dict[str, Place] | None:
        try:
            _, pairs = await self._coordination().range(prefix(directory.GUESTS))
        except EverramError:
            return None
        return {place.guest_id: place for place in map(Place.of, pairs)}

    async def forget_lost(self, place: Place) -> None:
        """Take a guest that nobody has any more out of the directory. Raises FailedPrecondition if it is not lost,
        Aborted if its record changes meanwhile."""
        if place.state != LOST:
            raise FailedPrecondition(f"guest {place.name} is {place.state}, not lost")
        key, name_key = directory.guest_key(place.guest_id), directory.name_key(place.name)
        unchanged = Compare(key, Target.MOD, Relation.EQUAL, place.revision)
        own = directory.encode({"guest_id": place.guest_id})
        own_name = Compare(name_key, Target.VALUE, Relation.EQUAL, own)
        done = await self._coordination().txn((unchanged, own_name), (Delete(key), Delete(name_key)))
        if not done.succeeded:
            done = await self._coordination().txn((unchanged,), (Delete(key),))  # its name is another guest's
        if not done.succeeded:
            raise Aborted(f"guest {place.name} has changed meanwhile: look at `everram guests`")

    async def close(self) -> None:
        if self._client is not None:
            await self._client.close()


def named(places: Mapping[str, Place], name: str) -> Place | None:
    """By name or guest_id."""
    return places.get(name) or next((place for place in places.values() if place.name == name), None)
