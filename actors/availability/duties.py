"""What a host owes because of what the directory says about a guest: plain decisions on one record.

    the record says                                          this host
    chosen, and its memory is ours                           takes it over, until it has registered
    another memory's, and that has registered                demotes the guest that it has itself
    running, ours, served under our lease                    ships its log to the destinations
    nothing at all, or running elsewhere without us          releases the copies that it keeps

The last owner is not demoted before the chosen one has registered: until then it may have the guest back. A copy is
released only where nobody can ever ask for it: not by a failover (members of the required set), not by the primary
(destinations), and never while the record is on its way from one owner to the next.
"""

from __future__ import annotations

from everram.actors.availability.registration import claims
from everram.runtime.contracts.common_pb2 import Guest
from everram.runtime.contracts.hypervisor_pb2 import DemoteRequest
from everram.runtime.contracts.replicator_pb2 import Destination, ShipRequest
from everram.runtime.coordination.records import CHOSEN, RUNNING, STOPPED, GuestRecord, Place


def takes_over(record: GuestRecord, me: Place) -> bool:
    return record.state == CHOSEN and record.owner == me


def demotion(guest_id: str, record: GuestRecord, me: Place, *, named_choice: bool = False) -> DemoteRequest | None:
    """For a guest that this host has in its own memory. `named_choice`: see `registration.claims`."""
    owner, previous = record.owner, record.previous
    if not owner.memory_id or owner.memory_id == me.memory_id or claims(record, me, named_choice):
        return None
    if previous is not None and previous.memory_id == me.memory_id:
        return None
    return DemoteRequest(guest_id=guest_id, epoch=record.epoch, start=record.start, host=owner.host)


def shipping(guest: Guest, record: GuestRecord, me: Place, served_under: int, lease: int) -> ShipRequest | None:
    """`served_under`: the lease of the guest's `serving/` key, 0 without one."""
    ours = record.owner == me and record.state == RUNNING and record.epoch == guest.epoch
    if not ours or not lease or served_under != lease:
        return None
    destinations = [
        Destination(host=each.host, memory_id=each.memory_id, required=each.memory_id in record.required)
        for each in record.destinations
    ]
    return ShipRequest(guest=guest, destinations=destinations, required=record.required)


def releases(record: GuestRecord | None, me: Place) -> bool:
    """Whether a copy that this host keeps is needed no more. None: the guest has no record (not: an unreadable one)."""
    if record is None:
        return True
    named = {record.owner.memory_id, *record.required, *(each.memory_id for each in record.destinations)}
    if record.previous is not None:
        named.add(record.previous.memory_id)
    return record.state in (RUNNING, STOPPED) and me.memory_id not in named and record.aim != me.host
