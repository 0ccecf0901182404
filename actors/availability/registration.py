"""What changes in the directory when an incarnation begins, ends or is removed: plain decisions on what was read.

Each `plan_*` takes the pairs of a guest as `Seen` and gives a transaction that holds only if they are still the same,
or refuses with a sentence. Members of a record that this version does not know are kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from everram.runtime.contracts.common_pb2 import Guest
from everram.runtime.coordination.api import Compare, Delete, KeyValue, Put, Range, Relation, Target
from everram.runtime.coordination.directory import decode, encode, guest_key, name_key, serving_key
from everram.runtime.errors import AlreadyExists, FailedPrecondition


@dataclass(frozen=True, slots=True)
class Holder:
    """The host in whose name the directory is changed."""

    host: str
    memory_id: str
    lease: int


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

    Raises AlreadyExists (the name is another guest's), FailedPrecondition (the epoch is not higher).
    """
    record = _value(found.guest)
    there = int(record.get("epoch", 0))
    ours = record.get("host") == holder.host and record.get("memory_id") == holder.memory_id
    if guest.epoch < there or (guest.epoch == there and not ours):
        raise FailedPrecondition(
            f"{guest.name} has begun epoch {there} on {record.get('host')}: an incarnation of epoch {guest.epoch} is "
            f"fenced; begin one above {there}"
        )
    owner = _value(found.name).get("guest_id", guest.guest_id)
    if owner != guest.guest_id:
        raise AlreadyExists(
            f"a guest named {guest.name} exists already ({owner}): choose another name, or remove it with "
            f"`everram rm {guest.name}`"
        )
    record |= {
        "name": guest.name,
        "host": holder.host,
        "memory_id": holder.memory_id,
        "epoch": guest.epoch,
        "state": "running",
        "publish_port": guest.spec.publish_port,
    }
    serving = {"host": holder.host, "epoch": guest.epoch, "port": guest.port}
    puts = [
        Put(guest_key(guest.guest_id), encode(record)),
        Put(serving_key(guest.guest_id), encode(serving), holder.lease),
    ]
    compares = [_same(guest_key(guest.guest_id), found.guest), _same(serving_key(guest.guest_id), found.serving)]
    if guest.name:
        puts.append(Put(name_key(guest.name), encode(_value(found.name) | {"guest_id": guest.guest_id})))
        compares.append(_same(name_key(guest.name), found.name))
    return Plan(tuple(compares), tuple(puts))


def plan_give_back(found: Seen, guest_id: str, epoch: int, holder: Holder) -> Plan | None:
    """Nobody serves the guest any more; None if there is nothing of this epoch and host to give back."""
    serving, record = _value(found.serving), _value(found.guest)
    if serving.get("host") != holder.host or int(serving.get("epoch", 0)) != epoch:
        return None
    changes: list[Put | Delete] = [Delete(serving_key(guest_id))]
    compares = [_same(serving_key(guest_id), found.serving), _same(guest_key(guest_id), found.guest)]
    if found.guest is not None:
        changes.append(Put(guest_key(guest_id), encode(record | {"state": "stopped"})))
    return Plan(tuple(compares), tuple(changes))


def plan_forget(found: Seen, guest_id: str, holder: Holder) -> Plan | None:
    """The guest is removed; None if it is gone already or has moved to another host."""
    record = _value(found.guest)
    if found.guest is None or record.get("host") != holder.host:
        return None
    changes = [Delete(guest_key(guest_id)), Delete(serving_key(guest_id))]
    compares = [_same(guest_key(guest_id), found.guest)]
    if found.name is not None and _value(found.name).get("guest_id") == guest_id:
        changes.append(Delete(found.name.key))
        compares.append(_same(found.name.key, found.name))
    return Plan(tuple(compares), tuple(changes))


def name_in(found: Seen) -> str:
    return str(_value(found.guest).get("name", ""))


def _value(pair: KeyValue | None) -> dict[str, Any]:
    return decode(pair.value) if pair is not None else {}


def _same(key: bytes, pair: KeyValue | None) -> Compare:
    """Holds while nobody has changed the pair since it was read."""
    return Compare(key, Target.MOD, Relation.EQUAL, pair.mod_revision if pair is not None else 0)
