"""What the leader does about one guest now: plain decisions on what its mirror of the directory shows.

A guest's record and how its state changes. L: by the leader's transaction, which compares its term, the record's
mod_revision and, for all but placement, that nobody serves the guest. H: by its own host.

    from            what is seen                                                   to
    -               its first incarnation registers                             H  running
    running         not served, its memory has left the directory,              L  failing-over, epoch + 1
                    and somebody may have a copy
    running         the same, but its memory was saved when the mains were      -  (it waits)
                    lost, and is not gone, and no copy that is there has as much
    running         not served, nobody has a copy, and its memory is gone       L  lost
    running         its user stopped it                                         H  stopped
    running         its host hands it over                                      H  moving, prefer
    moving          not served                                                  L  failing-over, epoch + 1
    failing-over    its own memory is back, and it is not being moved           L  chosen: itself
    failing-over    members have promised: the furthest complete copy           L  chosen: that one
    failing-over    nobody can have a copy, and its own memory is gone          L  lost
    failing-over    its own memory is back and registers                        H  running
    chosen          its host registers                                          H  running
    chosen          not served, and its memory has left the directory           L  failing-over, epoch + 1
    stopped, lost   its host registers                                          H  running

*Left*: no `hosts/` entry has the memory_id, so its host's lease has ended: by proof of death, by being given back, or
by its time. *Gone*: the machine is recorded dead, or its host is there with another memory. A memory that this leader
has never seen gets a grace at the beginning of its term: a whole cluster that starts comes up one host after the other.

Each step is found in the record alone, so a new leader goes on where a dead one stopped, and asking twice does no harm:
a promise of the same epoch is the same promise, and of two choices only one finds the record as it was read. A raised
epoch is no incarnation's: members may have promised to acknowledge nothing of it, so who registers has a higher one.

*Saved*: whose machine lost its mains is promised that nothing committed is lost if the battery lasts. If its log could
not be drained to every member, only those that have everything may go on with the guest; the others would lose what the
saved image has, also if the one that was chosen is lost before it has registered. So it waits for one of those or for
its owner, until a person says otherwise (`everram start GUEST
--from-copy`), or the image turns out to be of no use: then its machine comes back with another memory.

While a chosen memory has not registered, nothing was written in its epoch. So the owner before it (`previous`) still
has everything, and if the chosen one dies it may have the guest back.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from everram.actors.availability.election import Term
from everram.actors.availability.registration import Plan
from everram.runtime.coordination.api import Compare, Put, Relation, Target
from everram.runtime.coordination.directory import encode, guest_key, serving_key
from everram.runtime.coordination.records import (
    CHOSEN,
    FAILING_OVER,
    LOST,
    MOVING,
    RUNNING,
    GuestRecord,
    HostRecord,
    Place,
)


@dataclass(frozen=True, slots=True)
class Sight:
    """What the directory says about hosts and machines."""

    hosts: Mapping[str, HostRecord | None]
    """None: there is an entry that cannot be read, so nothing is known about that host but that it is there."""
    dead: frozenset[str] = frozenset()
    """Machines whose death is proved."""
    seen: frozenset[str] = frozenset()
    """memory_ids that were in `hosts/` at any time since this host began to look."""

    def present(self, place: Place) -> bool:
        if place.host not in self.hosts:
            return False
        entry = self.hosts[place.host]
        return entry is None or entry.memory_id == place.memory_id

    def gone(self, place: Place) -> bool:
        """Whether it is proved that this memory does not exist any more."""
        entry = self.hosts.get(place.host)
        return not self.present(place) and (place.host in self.dead or entry is not None)

    def left(self, place: Place) -> bool:
        """Whether it is known to have been there, and is there no more."""
        return not self.present(place) and (place.memory_id in self.seen or self.gone(place))

    def of(self, memory_ids: Iterable[str]) -> tuple[Place, ...]:
        """Where these memories are served now, in the order of the hosts' names."""
        wanted = set(memory_ids)
        entries = sorted(self.hosts.items())
        return tuple(Place(host, entry.memory_id) for host, entry in entries if entry and entry.memory_id in wanted)


@dataclass(frozen=True, slots=True)
class Nothing:
    """It is well, or only another change of the directory can help."""


@dataclass(frozen=True, slots=True)
class Wait:
    until_ns: int


@dataclass(frozen=True, slots=True)
class Raise:
    """Raise the epoch: from then on its old incarnation is fenced."""


@dataclass(frozen=True, slots=True)
class Ask:
    """Have these members promise the epoch, then `choose`."""

    members: tuple[Place, ...]


@dataclass(frozen=True, slots=True)
class Appoint:
    """Let this memory go on with what it has."""

    place: Place


@dataclass(frozen=True, slots=True)
class Lose:
    """Nobody has it any more."""


Decision = Nothing | Wait | Raise | Ask | Appoint | Lose


@dataclass(frozen=True, slots=True)
class Reply:
    """What a member promised, and what it has."""

    place: Place
    complete: bool
    epoch: int
    lsn: int


def decide(record: GuestRecord, served: bool, sight: Sight, now_ns: int, grace_until_ns: int) -> Decision:
    if served:
        return Nothing()
    if record.state == MOVING:
        return Raise()
    if record.state == FAILING_OVER:
        return _go_on(record, sight)
    if record.state not in (RUNNING, CHOSEN) or not record.owner.memory_id or sight.present(record.owner):
        return Nothing()
    if _hopeless(record, sight):
        return Lose()
    if not record.required and record.previous is None:
        return Nothing()
    if _is_held(record, sight) and not sight.of(candidates(record, sight)) and returned(record, sight) is None:
        return Nothing()
    if not sight.left(record.owner) and now_ns < grace_until_ns:
        return Wait(grace_until_ns)
    return Raise()


def _go_on(record: GuestRecord, sight: Sight) -> Decision:
    members, back = sight.of(candidates(record, sight)), returned(record, sight)
    if members and (record.prefer or back is None):
        return Ask(members)
    if back is not None:
        return Appoint(back)
    return Lose() if _hopeless(record, sight) else Nothing()


def candidates(record: GuestRecord, sight: Sight) -> tuple[str, ...]:
    """The members of the required set that may go on with the guest: while a memory that has everything may come back,
    only those that have as much."""
    if record.saved is None or not _is_held(record, sight):
        return record.required
    return tuple(member for member in record.required if member in record.saved)


def _is_held(record: GuestRecord, sight: Sight) -> bool:
    """Whether a memory with all that was saved may come back: the one that wrote last, or one chosen in its place that
    has as much and has not registered yet."""
    if record.saved is None:
        return False
    writer = record.previous or record.owner
    holders = [writer] if record.owner.memory_id not in record.saved else [writer, record.owner]
    return not all(sight.gone(holder) for holder in holders)


def _hopeless(record: GuestRecord, sight: Sight) -> bool:
    owners = [record.owner] if record.previous is None else [record.owner, record.previous]
    return not record.required and all(sight.gone(owner) for owner in owners)


def returned(record: GuestRecord, sight: Sight) -> Place | None:
    """The memory that wrote the guest last, if it is there: nobody has more than it."""
    owners = [record.owner] if record.previous is None else [record.previous, record.owner]
    return next((owner for owner in owners if sight.present(owner)), None)


def choose(replies: Iterable[Reply], prefer: str, cramped: Collection[str] = ()) -> Reply | None:
    """The complete copy that reaches furthest; among equals `prefer` (a host), and none of `cramped` (hosts without
    room for what the guest works with) if there is another. None: there is none.

    Any complete copy of a member has everything that was promised, because a promise needs every member. So whoever
    could not be asked in time is not waited for; the furthest is chosen to save what was not promised, too.
    """
    complete = [reply for reply in replies if reply.complete]
    furthest = max(((reply.epoch, reply.lsn) for reply in complete), default=None)
    equals = [reply for reply in complete if (reply.epoch, reply.lsn) == furthest]
    return min(equals, key=lambda reply: _rank(reply.place.host, prefer, cramped), default=None)


def _rank(host: str, prefer: str, cramped: Collection[str]) -> tuple[bool, bool, str]:
    return host != prefer, host in cramped, host


def raised(record: GuestRecord) -> GuestRecord:
    return record.changed(state=FAILING_OVER, epoch=record.epoch + 1)


def lost(record: GuestRecord) -> GuestRecord:
    return record.changed(state=LOST)


def appointed(record: GuestRecord, place: Place, start: int) -> GuestRecord:
    """`start`: where its epoch begins; what other memories have beyond is not part of the guest."""
    last = record.previous or record.owner
    return record.changed(
        state=CHOSEN,
        host=place.host,
        memory_id=place.memory_id,
        start=start,
        required=tuple(member for member in record.required if member != place.memory_id),
        destinations=tuple(each for each in record.destinations if each.memory_id != place.memory_id),
        previous=None if last.memory_id == place.memory_id else last,
        prefer=None,
        aim=None,
    )


def plan(guest_id: str, mod_revision: int, changed: GuestRecord, term: Term, *, unserved: bool) -> Plan:
    """Write the record if the term lasts and nobody has changed it; `unserved`: and nobody serves the guest."""
    key = guest_key(guest_id)
    compares = [term.compare(), Compare(key, Target.MOD, Relation.EQUAL, mod_revision)]
    if unserved:
        compares.append(Compare(serving_key(guest_id), Target.CREATE, Relation.EQUAL, 0))
    return Plan(tuple(compares), (Put(key, encode(changed.raw)),))
