"""The availability actor's plain decisions: election, failover, placement, duties, and changes of the record."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from everram.actors.availability import duties, failover, placement
from everram.actors.availability.election import Campaigning, Following, Term, standing
from everram.actors.availability.failover import Appoint, Ask, Lose, Nothing, Raise, Reply, Sight, Wait, choose, decide
from everram.actors.availability.registration import (
    Holder,
    Plan,
    Seen,
    plan_aim,
    plan_disown,
    plan_end_hold,
    plan_give_back,
    plan_hand_to,
    plan_hold,
    plan_limit,
    plan_register,
    plan_set_members,
)
from everram.runtime.contracts.common_pb2 import Guest, GuestSpec
from everram.runtime.coordination.api import Delete, KeyValue, Put, Target
from everram.runtime.coordination.directory import LEADER, decode, encode, guest_key, serving_key
from everram.runtime.coordination.records import GuestNeed, GuestRecord, HostRecord, Place
from everram.runtime.errors import Aborted, DataLoss, FailedPrecondition, InvalidArgument

A, B, C, D = (Place(host, f"m{host}") for host in "abcd")
NOW, LATER = 1000, 2000


def record(state: str = "running", owner: Place = A, **members: Any) -> GuestRecord:
    return GuestRecord.read(owner.value() | {"name": "bank", "epoch": 3, "state": state}).changed(**members)


def sight(*present: Place, dead: str = "", seen: tuple[Place, ...] = (), **other: HostRecord | None) -> Sight:
    hosts: dict[str, HostRecord | None] = {each.host: HostRecord("", each.memory_id, 0) for each in present}
    return Sight(hosts | other, frozenset(dead), frozenset(each.memory_id for each in seen))


# -- election


@pytest.mark.parametrize(
    ("lease_of_key", "lease", "held", "expected"),
    [
        (None, 7, True, Campaigning()),
        (None, 7, False, Following()),
        (None, 0, True, Following()),
        (7, 7, True, Term(42)),
        (7, 7, False, Following()),
        (8, 7, True, Following()),
        (0, 0, True, Following()),
    ],
)
def test_standing(lease_of_key: int | None, lease: int, held: bool, expected: object) -> None:
    key = None if lease_of_key is None else KeyValue(LEADER, b"{}", 42, 50, 1, lease_of_key)
    assert standing(key, lease, held) == expected


# -- what to do about one guest

REPLACED = HostRecord("", "another memory", 0)

TABLE = [
    ("running, its host restarts it", record(required=["mb"]), sight(A, B), Nothing()),
    ("its host's entry cannot be read", record(required=["mb"]), sight(B, a=None), Nothing()),
    ("it left", record(required=["mb"]), sight(B, seen=(A,)), Raise()),
    ("it left, and no member is there", record(required=["mb"]), sight(seen=(A,)), Raise()),
    ("never seen in this term", record(required=["mb"]), sight(B), Wait(LATER)),
    ("never seen, but proved dead", record(required=["mb"]), sight(B, dead="a"), Raise()),
    ("came back empty", record(required=["mb"]), sight(B, a=REPLACED), Raise()),
    ("recorded dead, and yet there", record(required=["mb"]), sight(A, B, dead="a"), Nothing()),
    ("no copies, cut off", record(), sight(B, seen=(A,)), Nothing()),
    ("no copies, dead", record(), sight(B, dead="a"), Lose()),
    ("no copies, came back empty", record(), sight(B, a=REPLACED), Lose()),
    ("stopped by its user", record("stopped", required=["mb"]), sight(B, dead="a"), Nothing()),
    ("lost already", record("lost"), sight(B, dead="a"), Nothing()),
    ("a state of a newer version", record("hibernating", required=["mb"]), sight(B, dead="a"), Nothing()),
    ("handed over", record("moving", required=["mb"], prefer="b"), sight(A, B), Raise()),
    ("asking", record("failing-over", required=["mb", "mc"]), sight(B, C), Ask((B, C))),
    ("asking who is there", record("failing-over", required=["mb", "mc"]), sight(C, D), Ask((C,))),
    ("a member under its old name, empty", record("failing-over", required=["mb"]), sight(b=REPLACED), Nothing()),
    ("its own memory is back", record("failing-over", required=["mb"]), sight(A, B), Appoint(A)),
    ("a move asks first", record("failing-over", required=["mb"], prefer="b"), sight(A, B), Ask((B,))),
    ("a move whose target died", record("failing-over", required=["mb"], prefer="b"), sight(A), Appoint(A)),
    ("nobody is there", record("failing-over", required=["mb"]), sight(D, dead="a"), Nothing()),
    ("nobody can have it", record("failing-over"), sight(D, dead="a"), Lose()),
    ("chosen, being taken over", record("chosen", B, previous=A), sight(B), Nothing()),
    ("chosen and died", record("chosen", B, previous=A), sight(seen=(B,)), Raise()),
    ("chosen, the last two died", record("chosen", B, previous=A), sight(dead="ab"), Lose()),
    ("the last owner is back", record("failing-over", B, previous=A), sight(A, C, dead="b"), Appoint(A)),
    ("the last owner before the chosen", record("failing-over", B, previous=A), sight(A, B), Appoint(A)),
    ("saved, and its copy has less", record(required=["mb"], saved={"drained": []}), sight(B, seen=(A,)), Nothing()),
    ("saved, never seen in this term", record(required=["mb"], saved={"drained": []}), sight(B), Nothing()),
    ("saved, another copy has less", record(required=["mb", "mc"], saved={"drained": ["mc"]}), sight(B), Nothing()),
    (
        "saved, and a copy has as much",
        record(required=["mb", "mc"], saved={"drained": ["mc"]}),
        sight(B, C, seen=(A,)),
        Raise(),
    ),
    (
        "saved, asking who has as much",
        record("failing-over", required=["mb", "mc"], saved={"drained": ["mc"]}),
        sight(B, C),
        Ask((C,)),
    ),
    ("saved, but dead", record(required=["mb"], saved={"drained": []}), sight(B, dead="a"), Raise()),
    ("saved, but came back empty", record(required=["mb"], saved={"drained": []}), sight(B, a=REPLACED), Raise()),
    (
        "saved, but lost since",
        record("failing-over", required=["mb", "mc"], saved={"drained": ["mc"]}),
        sight(B, dead="a"),
        Ask((B,)),
    ),
    ("the last owner may be back", record("failing-over", B, previous=A), sight(C, dead="b"), Nothing()),
]


@pytest.mark.parametrize(("what", "guest", "seen", "expected"), TABLE, ids=[row[0] for row in TABLE])
def test_what_to_do(what: str, guest: GuestRecord, seen: Sight, expected: object) -> None:
    assert decide(guest, False, seen, NOW, LATER) == expected
    assert decide(guest, True, seen, NOW, LATER) == Nothing(), "whoever is served is left alone"


def test_grace_ends() -> None:
    assert decide(record(required=["mb"]), False, sight(B), LATER, LATER) == Raise()


def test_every_case_keeps_the_rules() -> None:
    """Each combination of state, hosts, members and proof: what must never be done, and that something is done."""
    states = ("running", "stopped", "failing-over", "chosen", "moving", "lost", "")
    hosts = [
        dict(zip("abc", each, strict=True))
        for each in itertools.product(("there", "gone", "dead", "replaced"), repeat=3)
    ]
    members = ((), ("mb",), ("mb", "mc"), ("ma",))
    for state, each, required, previous, prefer, seen, now in itertools.product(
        states, hosts, members, (None, C), ("", "b"), ((), (A, B, C)), (NOW, LATER)
    ):
        present = [p for p in (A, B, C) if each[p.host] == "there"]
        replaced: dict[str, HostRecord | None] = {h: REPLACED for h in each if each[h] == "replaced"}
        view = sight(*present, dead="".join(h for h in each if each[h] == "dead"), seen=seen, **replaced)
        guest = record(state, required=required, previous=previous, prefer=prefer or None)
        decision = decide(guest, False, view, now, LATER)
        owners = [A] if previous is None else [A, previous]
        if isinstance(decision, Lose):
            assert not required and all(each[owner.host] in ("dead", "replaced") for owner in owners)
        if isinstance(decision, Raise):
            assert state == "moving" or (state in ("running", "chosen") and A not in present)
        if isinstance(decision, Wait):
            assert now < LATER and not seen and each["a"] == "gone"
        if isinstance(decision, Ask):
            assert state == "failing-over" and decision.members
            assert all(m in present and m.memory_id in required for m in decision.members)
        if isinstance(decision, Appoint):
            assert state == "failing-over" and decision.place in present and decision.place in owners
        if state == "failing-over" and (set(owners) & set(present) or {p.memory_id for p in present} & set(required)):
            assert isinstance(decision, Ask | Appoint), "somebody has it, so it goes on"


def test_appointing() -> None:
    before = record("failing-over", required=["mb", "mc"], destinations=[B, C], prefer="b", aim="b", unknown=1)
    after = failover.appointed(before, B, 100)
    assert (after.state, after.owner, after.epoch, after.start) == ("chosen", B, 3, 100)
    assert (after.required, after.destinations, after.previous) == (("mc",), (C,), A)
    assert (after.prefer, after.aim, after.raw["unknown"]) == ("", "", 1)
    again = failover.appointed(failover.raised(after), C, 100)
    assert again.previous == A, "nothing was written since the last owner"
    assert failover.appointed(failover.raised(after), A, 0).previous is None


replies = st.lists(
    st.builds(
        Reply, st.sampled_from([A, B, C, D]), st.booleans(), st.integers(1, 3), st.integers(0, 3)
    ),
    unique_by=lambda reply: reply.place.host,
)  # fmt: skip


@given(replies, st.sampled_from("abcd "))
def test_the_furthest_complete_copy_is_chosen(given_replies: list[Reply], prefer: str) -> None:
    chosen = choose(given_replies, prefer)
    assert chosen == choose(reversed(given_replies), prefer), "in whatever order they answered"
    complete = [reply for reply in given_replies if reply.complete]
    if chosen is None:
        assert not complete
        return
    assert chosen in complete
    assert all((reply.epoch, reply.lsn) <= (chosen.epoch, chosen.lsn) for reply in complete)
    equals = [r.place.host for r in complete if (r.epoch, r.lsn) == (chosen.epoch, chosen.lsn)]
    assert chosen.place.host == prefer or prefer not in equals


def test_every_change_compares_what_it_was_decided_on() -> None:
    term = Term(42)
    compares = failover.plan("g", 5, failover.lost(record()), term, unserved=True).compare
    assert [(c.key, c.target, c.operand) for c in compares] == [
        (LEADER, Target.CREATE, 42),
        (guest_key("g"), Target.MOD, 5),
        (serving_key("g"), Target.CREATE, 0),
    ]
    assert len(failover.plan("g", 5, record(), term, unserved=False).compare) == 2, "placement, while it is served"


def test_an_epoch_outweighs_a_position() -> None:
    assert choose([Reply(A, True, 2, 10), Reply(B, True, 1, 900)], "b") == Reply(A, True, 2, 10)


# -- placement

places = [Place(f"h{n}", f"m{n}{life}") for n in range(5) for life in "xy"]
cluster = st.lists(
    st.tuples(st.sampled_from(places), st.integers(0, 3)), unique_by=lambda host: host[0].host
).map(lambda hosts: {place.host: HostRecord("", place.memory_id, free) for place, free in hosts})  # fmt: skip
guests = st.builds(
    lambda owner, copies, required, destinations, aim: record(
        owner=owner, copies=copies, destinations=destinations, aim=aim or None,
        required=[each.memory_id for each in required if each != owner],
    ),
    st.sampled_from(places), st.integers(0, 3),
    st.lists(st.sampled_from(places), max_size=3, unique_by=lambda place: place.host),
    st.lists(st.sampled_from(places), max_size=4, unique_by=lambda place: place.host),
    st.sampled_from(["", "h0", "h1"]),
)  # fmt: skip


@given(guests, cluster)
def test_placement(guest: GuestRecord, hosts: dict[str, HostRecord | None]) -> None:
    placed = placement.place(guest, hosts)
    live = {Place(h, entry.memory_id) for h, entry in hosts.items() if entry} - {guest.owner}
    required = {each for each in live if each.memory_id in guest.required}
    aimed = {each for each in live if each.host == guest.aim}
    assert len(set(placed)) == len(placed)
    assert set(placed) <= live, "neither the primary, nor one that is dead, nor an old memory under its old name"
    assert required | aimed <= set(placed)
    assert len(placed) <= max(guest.copies, len(required)) + len(aimed)
    assert len(placed) >= min(guest.copies, len(live))
    assert placement.place(guest.changed(destinations=placed), hosts) == placed, "stable"


NEED = GuestNeed(100, 500)


def test_placement_prefers_hosts_that_have_room_for_what_a_guest_works_with() -> None:
    hosts: dict[str, HostRecord | None] = {
        "a": HostRecord("", "ma", 9, 0),
        "b": HostRecord("", "mb", 9, 99),
        "c": HostRecord("", "mc", 1, 100, 500),
        "d": HostRecord("", "md", 5),
    }
    assert placement.place(record(copies=1), hosts, NEED) == (D,), "which does not say, so it may have room"
    assert placement.place(record(copies=2), hosts, NEED) == (D, C)
    assert placement.place(record(copies=3), hosts, NEED) == (D, C, B), "better one that is cramped than none"
    assert placement.place(record(copies=1), hosts) == (B,), "it has no volatile memory"
    settled = record(copies=1, destinations=(B,))
    assert placement.place(settled, hosts, NEED) == (B,), "nothing is moved for it"


def test_among_equal_copies_one_is_chosen_that_has_room() -> None:
    replies = [Reply(place, True, 3, 70) for place in (B, C, D)]
    assert choose(replies, "", ("b",)) == replies[1]
    assert choose(replies, "", ("b", "c", "d")) == replies[0]
    assert choose(replies, "b", ("b",)) == replies[0], "a person's choice"
    assert choose([*replies[1:], Reply(B, True, 3, 71)], "", ("b",)) == Reply(B, True, 3, 71), "data first"


def test_a_host_that_would_refuse_a_guest_has_no_room_for_it() -> None:
    assert not HostRecord("", "m", 0, 100, 499).has_room(GuestNeed(100, 500))
    assert HostRecord("", "m", 0, 100, 500).has_room(GuestNeed(100, 500))
    assert not HostRecord("", "m", 0, 99, 500).has_room(GuestNeed(100, 500))


def test_what_a_host_says_of_its_guests_memory() -> None:
    guests = {"h": {"working_bytes": 5}, "g": {"working_bytes": 3, "memory_bytes": 9}}
    told = HostRecord.read({"host_id": "1", "guest_memory": {"available_bytes": 7, "guests": guests}})
    assert (told.guest_bytes, told.unpromised_bytes) == (7, 0)
    assert told.needs == (("g", GuestNeed(3, 9)), ("h", GuestNeed(5, 0)))
    assert HostRecord.read({"host_id": "1"}).has_room(GuestNeed(1, 1))


@pytest.mark.parametrize("memory", [7, {"available_bytes": -1}, {"guests": [3]}, {"guests": {"g": "x"}}])
def test_what_is_wrong_in_it_takes_nothing_else_from_the_host(memory: Any) -> None:
    assert HostRecord.read({"host_id": "1", "memory_id": "m", "guest_memory": memory}) == HostRecord("1", "m", 0)


@given(guests, cluster, st.data())
def test_placement_moves_nothing_without_need(
    guest: GuestRecord, hosts: dict[str, HostRecord | None], data: st.DataObject
) -> None:
    settled = guest.changed(destinations=placement.place(guest, hosts))
    changed = {
        host: HostRecord("", entry.memory_id, data.draw(st.integers(0, 9))) for host, entry in hosts.items() if entry
    }
    after: dict[str, HostRecord | None] = {**changed}
    if len(settled.destinations) >= settled.copies:
        assert placement.place(settled, after) == settled.destinations, "whatever memory becomes free elsewhere"
    before = list(placement.place(settled, after))
    named = {each.host for each in before} | {settled.owner.host}
    after = {host: entry for host, entry in after.items() if host in named}
    assert list(placement.place(settled, after)) == before, "whoever else leaves"


def test_the_most_free_memory_first_and_the_aim_on_top() -> None:
    hosts = {h: HostRecord("", f"m{h}", free) for h, free in (("a", 99), ("b", 1), ("c", 5), ("d", 3))}
    assert placement.place(record(copies=1), {**hosts}) == (C,)
    assert placement.place(record(copies=2), {**hosts, "x": None}) == (C, D)
    assert placement.place(record(copies=1, required=["mb"], destinations=[B], aim="d"), {**hosts}) == (B, D)
    assert placement.place(record(copies=1, destinations=[B], aim="b"), {**hosts}) == (B,)
    assert placement.place(record(copies=0), {**hosts}) == ()


def test_who_may_still_come_up_is_expected() -> None:
    guest = record(copies=1, required=["mb"], destinations=[B])
    assert placement.expects(guest, sight(A))
    assert not placement.expects(guest, sight(A, seen=(B,)))
    assert not placement.expects(guest, sight(A, dead="b"))
    assert not placement.expects(guest, sight(A, B))
    assert placement.expects(record(required=["mb"]), sight(A)), "a member whose host nobody remembers"


# -- duties


def test_who_takes_over() -> None:
    assert duties.takes_over(record("chosen", B), B)
    assert not duties.takes_over(record("chosen", B), A)
    assert not duties.takes_over(record("chosen", B), Place("b", "another memory"))
    assert not duties.takes_over(record("running", B), B)


def test_who_is_demoted() -> None:
    request = duties.demotion("g", record("running", B, start=100), A)
    assert request is not None
    assert (request.guest_id, request.epoch, request.start, request.host) == ("g", 3, 100, "b")
    assert duties.demotion("g", record("running", A), A) is None
    assert duties.demotion("g", record("chosen", B, previous=A), A) is None, "it may have it back"
    assert duties.demotion("g", record("chosen", B, previous=C), A) is not None
    assert duties.demotion("g", record("running", Place("", "")), A) is None, "a record that names no memory"
    older = Place("a", "older memory")
    assert duties.demotion("g", record("running", older), A) is not None
    assert duties.demotion("g", record("running", older), A, named_choice=True) is None
    assert duties.demotion("g", record("running", older, required=["mb"]), A, named_choice=True) is not None


def test_who_ships() -> None:
    guest = Guest(guest_id="g", epoch=3)
    ours = record(required=["mb", "mc"], destinations=[B, D])
    request = duties.shipping(guest, ours, A, 7, 7)
    assert request is not None
    assert [(d.host, d.memory_id, d.required) for d in request.destinations] == [("b", "mb", True), ("d", "md", False)]
    assert list(request.required) == ["mb", "mc"]
    assert duties.shipping(guest, ours, B, 7, 7) is None
    assert duties.shipping(guest, ours, A, 6, 7) is None, "served under an earlier lease"
    assert duties.shipping(guest, ours, A, 0, 0) is None
    assert duties.shipping(Guest(guest_id="g", epoch=4), ours, A, 7, 7) is None, "its next epoch has not registered"
    assert duties.shipping(guest, record("moving"), A, 7, 7) is None


STATES = ("running", "stopped", "failing-over", "chosen", "moving", "lost", "", "hibernating")


@pytest.mark.parametrize("state", STATES)
def test_what_is_released(state: str) -> None:
    needless = record(state, required=["mb"], destinations=[B, C], previous=None)
    assert duties.releases(needless, D) == (state in ("running", "stopped"))
    for needed in (A, B, C):
        assert not duties.releases(needless, needed)
    assert not duties.releases(needless.changed(aim="d"), D)
    assert not duties.releases(needless.changed(previous=D), D)
    assert duties.releases(None, D), "its guest was removed"


# -- the guest's own host

ME = Holder("a", "ma", 7)


def pairs(guest: GuestRecord | None, *, lease: int = 7, epoch: int = 3) -> Seen:
    kept = None if guest is None else KeyValue(guest_key("g"), encode(guest.raw), 1, 5, 1)
    serving = KeyValue(serving_key("g"), encode({"host": "a", "epoch": epoch}), 1, 6, 1, lease) if lease else None
    return Seen(kept, None, serving, 9)


def written(plan: Plan | None) -> GuestRecord:
    assert plan is not None
    (value,) = [op.value for op in plan.success if isinstance(op, Put) and op.key == guest_key("g")]
    return GuestRecord.read(decode(value))


def test_registering_keeps_what_the_leader_wrote() -> None:
    guest = Guest(guest_id="g", name="bank", epoch=4, spec=GuestSpec(name="bank", copies=2))
    first = written(plan_register(pairs(None, lease=0), guest, ME))
    assert (first.copies, first.required, first.destinations, first.state) == (2, (), (), "running")
    before = record("chosen", required=["mb"], destinations=[B, C], start=100, prefer="c", previous=D, copies=1)
    after = written(plan_register(pairs(before, lease=0), guest, ME))
    assert (after.state, after.epoch, after.start, after.copies) == ("running", 4, 100, 2)
    assert (after.required, after.destinations, after.prefer, after.previous) == (("mb",), (B, C), "c", None)


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("owner", [B, Place("a", "an older memory"), Place("", "")])
def test_another_memory_may_not_register(state: str, owner: Place) -> None:
    guest = Guest(guest_id="g", name="bank", epoch=9)
    with pytest.raises(FailedPrecondition, match="fenced"):
        plan_register(pairs(record(state, owner), lease=0), guest, ME)


@pytest.mark.parametrize("state", STATES)
def test_an_epoch_that_a_leader_has_raised_is_no_incarnations(state: str) -> None:
    """One that began while its host had no lease reaches the directory late. Members may have promised its epoch to the
    leader meanwhile: they would acknowledge nothing of it, and nobody would ever begin another."""
    seen, guest = pairs(record(state), lease=0), Guest(guest_id="g", name="bank", epoch=3)
    if state in ("failing-over", "chosen"):
        with pytest.raises(Aborted, match="epoch 3 meanwhile"):
            plan_register(seen, guest, ME)
        guest.epoch = 4
    assert written(plan_register(seen, guest, ME)).state == "running", "the same epoch again, or the next"


def test_a_record_that_cannot_be_read_is_overwritten_by_nobody() -> None:
    broken = Seen(KeyValue(guest_key("g"), b'{"epoch": "many"}', 1, 5, 1), None, None, 9)
    with pytest.raises(DataLoss, match="everram/guests/g"):
        plan_register(broken, Guest(guest_id="g", epoch=4), ME)


def test_members() -> None:
    guest = record(required=["mb"], destinations=[B, C])
    assert written(plan_set_members(pairs(guest), "g", 3, ["mc", "mb", "mc"], ME)).required == ("mb", "mc")
    assert written(plan_set_members(pairs(guest), "g", 3, ["mc"], ME)).required == ("mc",)
    # Written even where nothing changes: a change that is still on its way then never comes true.
    assert written(plan_set_members(pairs(guest), "g", 3, ["mb"], ME)).required == ("mb",)
    assert written(plan_set_members(pairs(record()), "g", 3, [], ME)).required == ()
    for refused, epoch, members in (
        (pairs(guest), 2, ["mc"]),
        (pairs(guest), 4, ["mc"]),
        (pairs(guest), 3, []),
        (pairs(guest), 3, ["mb", "md"]),
        (pairs(guest, lease=0), 3, ["mc"]),
        (pairs(guest, lease=8), 3, ["mc"]),
        (pairs(guest, epoch=2), 3, ["mc"]),
        (pairs(record("failing-over", destinations=[C])), 3, ["mc"]),
        (pairs(record("running", B, destinations=[C])), 3, ["mc"]),
        (pairs(None), 3, ["mc"]),
    ):
        with pytest.raises(FailedPrecondition):
            plan_set_members(refused, "g", epoch, members, ME)


def test_aiming() -> None:
    guest = record(required=["mb"], destinations=[B])
    aimed = written(plan_aim(pairs(guest), "g", C, ME))
    assert (aimed.aim, aimed.destinations) == ("c", (B, C))
    assert plan_aim(pairs(aimed), "g", C, ME) is None
    assert written(plan_aim(pairs(aimed), "g", None, ME)).aim == ""
    replaced = written(plan_aim(pairs(aimed), "g", Place("c", "new memory"), ME))
    assert replaced.destinations == (B, Place("c", "new memory"))
    with pytest.raises(InvalidArgument, match="already"):
        plan_aim(pairs(guest), "g", A, ME)
    with pytest.raises(FailedPrecondition):
        plan_aim(pairs(guest, lease=0), "g", C, ME)


def test_limits_stay_in_the_record_whoever_has_the_guest() -> None:
    limited = written(plan_limit(pairs(record(copies=1, required=["mb"])), "g", 4096, 0, ME))
    assert limited.limits == (4096, 0)
    assert plan_limit(pairs(limited), "g", 4096, 0, ME) is None
    with pytest.raises(FailedPrecondition):
        plan_limit(pairs(limited, lease=0), "g", 0, 0, ME)
    elsewhere = failover.appointed(failover.raised(limited), B, 7)
    begun = plan_register(
        Seen(pairs(elsewhere).guest, None, None, 9),
        Guest(guest_id="g", name="bank", epoch=5),
        Holder("b", "mb", lease=8),
    )
    assert written(begun).limits == (4096, 0)


def test_handing_over() -> None:
    guest = record(required=["mb", "mc"], destinations=[B, C], aim="c")
    plan = plan_hand_to(pairs(guest), "g", 3, C, ME)
    handed = written(plan)
    assert plan is not None
    assert Delete(serving_key("g")) in plan.success
    assert (handed.state, handed.prefer, handed.aim, handed.epoch) == ("moving", "c", "", 3)
    assert plan_hand_to(pairs(handed, lease=0), "g", 3, C, ME) is None, "asked again"
    gone_on = failover.appointed(failover.raised(handed), C, 100)
    assert plan_hand_to(pairs(gone_on, lease=0), "g", 3, C, ME) is None, "asked again when it has happened"
    with pytest.raises(FailedPrecondition, match="in sync"):
        plan_hand_to(pairs(guest), "g", 3, D, ME)
    with pytest.raises(FailedPrecondition):
        plan_hand_to(pairs(guest), "g", 2, C, ME)


def test_holding_for_what_was_saved() -> None:
    guest = record(required=["mb", "mc"])
    held = written(plan_hold(pairs(guest), "g", ["mc", "md"], ME))
    assert held.saved == ("mc",)
    assert written(plan_end_hold(pairs(held), "g", ME)).saved is None
    assert written(plan_end_hold(pairs(held), "g", None)).saved is None, "by a person"
    assert plan_end_hold(pairs(held), "g", Holder("b", "mb", 7)) is None, "not by another host"
    assert plan_end_hold(pairs(guest), "g", None) is None
    assert failover.appointed(failover.raised(held), C, 9).saved == ("mc",), "until it has registered"
    registration = Guest(guest_id="g", name="bank", epoch=4, spec=GuestSpec(copies=1))
    assert written(plan_register(pairs(held), registration, ME)).saved is None


def test_machines_that_lose_their_mains_one_after_the_other() -> None:
    """A saved all and drained to B alone; B is chosen, and cut before it has registered: C, which has less, waits."""
    held = record(required=["mb", "mc"], saved={"drained": ["mb"]})
    chosen = failover.appointed(failover.raised(held), B, 100)
    both_off = sight(C, seen=(A, B))
    assert decide(chosen, False, both_off, NOW, LATER) == Nothing()
    assert decide(failover.raised(chosen), False, both_off, NOW, LATER) == Nothing()
    for back in (A, B):
        assert decide(chosen, False, sight(back, C, seen=(A, B)), NOW, LATER) in (Raise(), Nothing())
        assert decide(failover.raised(chosen), False, sight(back, C), NOW, LATER) == Appoint(back)
    one_gone = sight(C, seen=(A, B), dead="a")
    assert decide(failover.raised(chosen), False, one_gone, NOW, LATER) == Nothing(), "B has everything still"
    both_gone = sight(C, seen=(A, B), dead="ab")
    assert decide(failover.raised(chosen), False, both_gone, NOW, LATER) == Ask((C,))


def test_nobody_is_held_without_need() -> None:
    assert plan_hold(pairs(record(required=["mb", "mc"])), "g", ["mb", "mc"], ME) is None, "all have everything"
    assert plan_hold(pairs(record()), "g", [], ME) is None, "without copies it waits anyway"
    assert plan_hold(pairs(record("failing-over", required=["mb"])), "g", [], ME) is None, "it is too late"
    assert plan_hold(pairs(record(owner=B, required=["mb"])), "g", [], ME) is None, "it is another's"
    assert plan_hold(pairs(None), "g", [], ME) is None, "it was removed"


def test_disowning_what_was_lost_here() -> None:
    guest = record(required=["mb"], saved={"drained": []})
    disowned = written(plan_disown(pairs(guest), "g", ME))
    assert disowned.owner.host == "a"
    seen_after = sight(A, B)
    assert decide(disowned, False, seen_after, NOW, LATER) == Raise()
    assert decide(failover.raised(disowned), False, seen_after, NOW, LATER) == Ask((B,)), (
        "what was saved is no candidate"
    )
    assert duties.demotion("g", failover.appointed(disowned, B, 9), A) is not None
    assert written(plan_disown(pairs(record()), "g", ME)).state == "stopped", "nobody else has it"
    assert plan_disown(pairs(record(owner=B)), "g", ME) is None
    assert plan_disown(pairs(None), "g", ME) is None


def test_giving_back() -> None:
    assert written(plan_give_back(pairs(record()), "g", 3, ME, again=False)).state == "stopped"
    plan = plan_give_back(pairs(record()), "g", 3, ME, again=True)
    assert plan is not None
    assert plan.success == (Delete(serving_key("g")),)
    assert plan_give_back(pairs(record(), lease=0), "g", 3, ME, again=False) is None


@pytest.mark.parametrize(
    "value",
    [{"epoch": "1"}, {"epoch": -1}, {"epoch": True}, {"required": "mb"}, {"required": [1]}, {"destinations": ["b"]},
     {"host": 1}, {"previous": "a"}, {"copies": 1.5}],
)  # fmt: skip
def test_what_cannot_be_read(value: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"not|expected"):
        GuestRecord.read(value)
