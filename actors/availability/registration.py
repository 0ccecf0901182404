"""What a guest's own host changes in the directory, from its first incarnation to its removal: plain decisions on what
was read.

Each `plan_*` takes the pairs of a guest as `Seen` and gives a transaction that holds only if they are still the same,
or refuses with a sentence. Members of a record that this version does not know are kept. What the leader changes is in
`failover`, with the table of a record's states.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from everram.runtime.contracts.common_pb2 import Guest
from everram.runtime.coordination.api import Compare, Delete, KeyValue, Put, Range, Relation, Target
from everram.runtime.coordination.directory import decode, encode, guest_key, name_key, serving_key
from everram.runtime.coordination.records import CHOSEN, FAILING_OVER, MOVING, RUNNING, STOPPED, GuestRecord, Place
from everram.runtime.errors import Aborted, AlreadyExists, DataLoss, FailedPrecondition, InvalidArgument

DAMAGED = "damaged-"
"""Before the memory_id of one that has lost part of a guest: no memory has that name."""
RAISED = frozenset({FAILING_OVER, CHOSEN})
"""States whose epoch is a leader's: no incarnation has it, and members may have promised it."""


@dataclass(frozen=True, slots=True)
class Holder:
    """The host in whose name the directory is changed."""

    host: str
    memory_id: str
    lease: int
    named_choice: bool = False
    """Its user named an image that may not be opened silently (D1), so its memory is new, and older than it was."""

    @property
    def place(self) -> Place:
        return Place(self.host, self.memory_id)


@dataclass(frozen=True, slots=True)
class Seen:
    """A guest's pairs as they were read; None where there is none."""

    guest: KeyValue | None
    name: KeyValue | None
    serving: KeyValue | None
    revision: int


@dataclass(frozen=True, slots=True)
class Plan:
    compare: tuple[Compare, ...]
    success: tuple[Put | Delete, ...]


def reads(guest_id: str, name: str) -> tuple[Range, ...]:
    """What to read, in the order of `Seen`; the name is read only where it is known."""
    operations = [Range(guest_key(guest_id)), Range(serving_key(guest_id))]
    return (*operations, Range(name_key(name))) if name else tuple(operations)


def seen(revision: int, ranges: Sequence[Sequence[KeyValue]]) -> Seen:
    """The answer to `reads`."""
    pairs = [found[0] if found else None for found in ranges]
    return Seen(pairs[0], pairs[2] if len(pairs) > 2 else None, pairs[1], revision)


def served_elsewhere(found: Seen, holder: Holder) -> bool:
    """Whether somebody may still be serving the guest under a lease that is not ours."""
    return found.serving is not None and found.serving.lease != holder.lease


def plan_register(found: Seen, guest: Guest, holder: Holder) -> Plan:
    """Raise the guest's epoch and serve. Asking again for what is there already is no error.

    Raises AlreadyExists (the name is another guest's), FailedPrecondition (fenced: the epoch is not higher, or the
    guest is another memory's now), Aborted (a leader has just raised the epoch to this one: begin the next).
    """
    record = _record(found)
    if record is not None:
        _check_not_fenced(record, guest, holder)
    owner = _value(found.name).get("guest_id", guest.guest_id)
    if owner != guest.guest_id:
        raise AlreadyExists(
            f"a guest named {guest.name} exists already ({owner}): choose another name, or remove it with "
            f"`everram rm {guest.name}`"
        )
    registered = (record or GuestRecord.read({})).changed(
        name=guest.name,
        host=holder.host,
        memory_id=holder.memory_id,
        epoch=guest.epoch,
        state=RUNNING,
        publish_port=guest.spec.publish_port,
        copies=guest.spec.copies,
        required=record.required if record else (),
        destinations=record.destinations if record else (),
        previous=None,
        saved=None,
    )
    serving = {"host": holder.host, "epoch": guest.epoch, "port": guest.port}
    puts = [
        Put(guest_key(guest.guest_id), encode(registered.raw)),
        Put(serving_key(guest.guest_id), encode(serving), holder.lease),
    ]
    compares = [_same(guest_key(guest.guest_id), found.guest), _same(serving_key(guest.guest_id), found.serving)]
    if guest.name:
        puts.append(Put(name_key(guest.name), encode(_value(found.name) | {"guest_id": guest.guest_id})))
        compares.append(_same(name_key(guest.name), found.name))
    return Plan(tuple(compares), tuple(puts))


def plan_give_back(found: Seen, guest_id: str, epoch: int, holder: Holder, *, again: bool) -> Plan | None:
    """Nobody serves the guest any more; None if there is nothing of this epoch and host to give back.

    `again`: its host begins it again at once, so it is not stopped: should that host die first, it is failed over.
    """
    serving, record = _value(found.serving), _record(found)
    if serving.get("host") != holder.host or int(serving.get("epoch", 0)) != epoch:
        return None
    changes: list[Put | Delete] = [Delete(serving_key(guest_id))]
    compares = [_same(serving_key(guest_id), found.serving), _same(guest_key(guest_id), found.guest)]
    if record is not None and not again:
        changes.append(Put(guest_key(guest_id), encode(record.changed(state=STOPPED).raw)))
    return Plan(tuple(compares), tuple(changes))


def plan_set_members(found: Seen, guest_id: str, epoch: int, required: Sequence[str], holder: Holder) -> Plan:
    """Commit the required set. It is written even if it is this one already: an earlier change of this host that is
    still on its way then finds another revision of the record, and never comes true.

    Raises FailedPrecondition unless this host serves this epoch, or for a set that would become empty, or would get a
    member that is no destination (any more): the leader may have taken it away, and its copy may be erased already.
    """
    record = _served(found, guest_id, epoch, holder)
    members = tuple(sorted(set(required)))
    if not members and record.required:
        raise FailedPrecondition(f"the required set of guest {guest_id} may not become empty: replace its members")
    allowed = {*record.required, *(each.memory_id for each in record.destinations)}
    strangers = [member for member in members if member not in allowed]
    if strangers:
        raise FailedPrecondition(f"{', '.join(strangers)} is no destination of guest {guest_id}: it cannot be required")
    return _rewrite(found, guest_id, record.changed(required=members))


def plan_aim(found: Seen, guest_id: str, target: Place | None, holder: Holder) -> Plan | None:
    """Make `target` a destination besides those it has; None: no longer. Gives None if that is so already.

    Raises FailedPrecondition unless this host serves the guest, InvalidArgument if it is to be moved to itself.
    """
    record = _served(found, guest_id, None, holder)
    if target is None:
        return _rewrite(found, guest_id, record.changed(aim=None)) if record.aim else None
    if target.memory_id == holder.memory_id:
        raise InvalidArgument(f"guest {guest_id} runs on {target.host} already: name another host")
    destinations = record.destinations
    if target not in destinations:
        destinations = (*(each for each in destinations if each.host != target.host), target)
    if record.aim == target.host and destinations == record.destinations:
        return None
    return _rewrite(found, guest_id, record.changed(aim=target.host, destinations=destinations))


def plan_hand_to(found: Seen, guest_id: str, epoch: int, target: Place, holder: Holder) -> Plan | None:
    """Nobody serves the guest any more, and the leader lets it go on at `target`; None if that was done already.

    Raises FailedPrecondition unless this host serves this epoch, or if `target` is not a member of the required set.
    """
    before = _record(found)
    if before is not None and before.prefer == target.host and before.state in (MOVING, FAILING_OVER):
        return None
    if before is not None and before.owner == target and before.epoch > epoch:
        return None
    record = _served(found, guest_id, epoch, holder)
    if target.memory_id not in record.required:
        raise FailedPrecondition(
            f"{target.host} has no copy of guest {guest_id} that is in sync and required: wait until it has, then move"
        )
    planned = _rewrite(found, guest_id, record.changed(state=MOVING, prefer=target.host, aim=None))
    return Plan(planned.compare, (*planned.success, Delete(serving_key(guest_id))))


def plan_limit(found: Seen, guest_id: str, min_bytes: int, max_bytes: int, holder: Holder) -> Plan | None:
    """How much a guest's volatile memory has of its host's, wherever it begins from now on; None if that is so already.

    Raises FailedPrecondition unless this host serves the guest.
    """
    record = _served(found, guest_id, None, holder)
    if record.limits == (min_bytes, max_bytes):
        return None
    return _rewrite(found, guest_id, record.changed(limits={"min_bytes": min_bytes, "max_bytes": max_bytes}))


def plan_forget(found: Seen, guest_id: str, holder: Holder) -> Plan | None:
    """The guest is removed; None if it is gone already or has moved to another host."""
    record = _value(found.guest)
    if found.guest is None or record.get("host") != holder.host or record.get("memory_id") != holder.memory_id:
        return None
    changes = [Delete(guest_key(guest_id)), Delete(serving_key(guest_id))]
    compares = [_same(guest_key(guest_id), found.guest)]
    if found.name is not None and _value(found.name).get("guest_id") == guest_id:
        changes.append(Delete(found.name.key))
        compares.append(_same(found.name.key, found.name))
    return Plan(tuple(compares), tuple(changes))


def plan_hold(found: Seen, guest_id: str, drained: Sequence[str], holder: Holder) -> Plan | None:
    """Let the guest wait for this host's saved memory, unless a copy with everything is there. None if nobody could go
    on with less: every member of the required set has everything, or it is not this memory's (any more) to wait for.
    """
    record = _record(found)
    if record is None or record.owner != holder.place or record.state != RUNNING:
        return None
    held_by = sorted(set(drained) & set(record.required))
    if len(held_by) == len(record.required):
        return None
    return _rewrite(found, guest_id, record.changed(saved={"drained": held_by}))


def plan_end_hold(found: Seen, guest_id: str, holder: Holder | None) -> Plan | None:
    """Nobody waits for saved memory (of `holder`, if one is given); None if nobody does."""
    record = _record(found)
    if record is None or record.saved is None or (holder is not None and record.owner != holder.place):
        return None
    return _rewrite(found, guest_id, record.changed(saved=None))


def plan_disown(found: Seen, guest_id: str, holder: Holder) -> Plan | None:
    """Part of the guest's memory here is lost, and no process of it lives. With a required set the guest belongs to a
    memory that does not exist any more, so that one of the members is chosen; without one it is stopped. None if it is
    not ours."""
    record = _record(found)
    if record is None or record.owner != holder.place or record.state not in (RUNNING, CHOSEN):
        return None
    lost = record.changed(memory_id=f"{DAMAGED}{holder.memory_id}") if record.required else None
    planned = _rewrite(found, guest_id, lost or record.changed(state=STOPPED))
    return Plan(planned.compare, (*planned.success, Delete(serving_key(guest_id))))


def name_in(found: Seen) -> str:
    return str(_value(found.guest).get("name", ""))


def claims(record: GuestRecord, place: Place, named_choice: bool) -> bool:
    """Whether a host may go on with a guest from the image that its user named, though it is another memory now.

    Only where no other memory has a better right: with a required set its members are asked.
    """
    return named_choice and record.owner.host == place.host and not record.required


def _check_not_fenced(record: GuestRecord, guest: Guest, holder: Holder) -> None:
    ours = record.owner == holder.place or claims(record, holder.place, holder.named_choice)
    if guest.epoch < record.epoch or (guest.epoch == record.epoch and not ours):
        raise FailedPrecondition(
            f"{guest.name} has begun epoch {record.epoch} on {record.owner.host}: an incarnation of epoch "
            f"{guest.epoch} is fenced; begin one above {record.epoch}"
        )
    if not ours:
        raise FailedPrecondition(
            f"{guest.name} is {record.owner.host}'s since epoch {record.epoch}: what this memory has of it is fenced, "
            "and is set aside"
        )
    if guest.epoch == record.epoch and record.state in RAISED:
        raise Aborted(
            f"the leader has raised {guest.name} to epoch {record.epoch} meanwhile, and its copies may have promised "
            "to acknowledge nothing of it: begin the next one"
        )


def _served(found: Seen, guest_id: str, epoch: int | None, holder: Holder) -> GuestRecord:
    """The record of a guest that this host serves, in `epoch` if one is given. Raises FailedPrecondition."""
    record, serving = _record(found), found.serving
    if record is None:
        raise FailedPrecondition(f"guest {guest_id} is not in the directory: it has been removed")
    if record.owner != holder.place or record.state != RUNNING or epoch not in (None, record.epoch):
        raise FailedPrecondition(
            f"guest {guest_id} is {record.state} in epoch {record.epoch} on {record.owner.host}, not running here"
            + (f" in epoch {epoch}" if epoch is not None else "")
        )
    current = int(_value(serving).get("epoch", 0)) == record.epoch
    if serving is None or not current or not holder.lease or serving.lease != holder.lease:
        raise FailedPrecondition(f"guest {guest_id} is not served under this host's lease: wait until it is")
    return record


def _rewrite(found: Seen, guest_id: str, changed: GuestRecord) -> Plan:
    """The record, if it and who serves are still as they were read."""
    key = guest_key(guest_id)
    compares = (_same(key, found.guest), _same(serving_key(guest_id), found.serving))
    return Plan(compares, (Put(key, encode(changed.raw)),))


def _record(found: Seen) -> GuestRecord | None:
    """Raises DataLoss."""
    return record_of(found.guest) if found.guest is not None else None


def record_of(pair: KeyValue) -> GuestRecord:
    """Raises DataLoss for a record that cannot be read: nobody may overwrite it."""
    try:
        return GuestRecord.read(decode(pair.value))
    except ValueError as error:
        raise DataLoss(
            f"the directory's {pair.key.decode()} cannot be read ({error}): repair or delete that key"
        ) from error


def _value(pair: KeyValue | None) -> dict[str, Any]:
    return decode(pair.value) if pair is not None else {}


def _same(key: bytes, pair: KeyValue | None) -> Compare:
    """Holds while nobody has changed the pair since it was read."""
    return Compare(key, Target.MOD, Relation.EQUAL, pair.mod_revision if pair is not None else 0)
