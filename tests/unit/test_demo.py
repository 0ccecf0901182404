"""The demo's proof finds what it is there to find, and its picture draws what happened."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from everram.actors.chaos.drawing import svg
from everram.actors.chaos.lanes import Lane, Layer, Marks, Rate, Spans, Stack, State, States, draw
from everram.examples.demo import holds
from everram.examples.demo_clients import Acknowledgement, Entry, Memory, Record, Transfer
from everram.examples.demo_proof import verify
from everram.examples.ledger import ACCOUNTS, OPENING_BALANCE

Move = tuple[int, int, int]
A, B, C, D = (1, 2, 10), (2, 3, 20), (3, 1, 5), (4, 5, 1)
REST = {
    "acknowledged_after_fault": 1,
    "fault": "machine-kill",
    "host": "h1",
    "host_after": "h2",
    "epoch": 1,
    "epoch_after": 2,
    "guest_pid_unchanged": False,
    "set_aside": None,
    "restored_same": False,
}
STAYED = {"host_after": "h1", "epoch_after": 1, "guest_pid_unchanged": True}


def record(name: str, *transfers: tuple[Move, int | None], epoch: int = 1) -> Record:
    """A client that asked for each of these, and was told its number; None: it was not answered."""
    found = Record(name)
    for sequence, (move, number) in enumerate(transfers, start=1):
        found.asked[sequence] = Transfer(*move, sequence)
        if number is not None:
            found.acknowledged.append(Acknowledgement(float(sequence), sequence, number, epoch))
    return found


def memory(*entries: tuple[str, int, Move], epochs: tuple[int, ...] = ()) -> Memory:
    """A bank that did these transfers, each by its client and sequence number, all in epoch 1 unless `epochs` say."""
    history, balances = [], [OPENING_BALANCE] * ACCOUNTS
    for number, (client, sequence, move) in enumerate(entries, start=1):
        source, target, amount = move
        epoch = epochs[number - 1] if epochs else 1
        history.append(Entry(number, epoch, client, Transfer(source, target, amount, sequence)))
        balances[source] -= amount
        balances[target] += amount
    return Memory(history, balances)


RECORDS = (record("x", (A, 1), (B, 3)), record("y", (C, 2)))
WHOLE = memory(("x", 1, A), ("y", 1, C), ("x", 2, B))


def test_what_is_right_holds() -> None:
    proof = verify(RECORDS, WHOLE, promised=True)
    assert (proof["acknowledged"], proof["recovered"], proof["lost"], proof["duplicated"]) == (3, 3, 0, 0)
    assert holds(proof | REST)


def test_a_transfer_that_was_done_and_not_answered_is_no_fault() -> None:
    assert holds(verify([record("x", (A, 1), (B, None))], memory(("x", 1, A), ("x", 2, B)), promised=True) | REST)
    assert holds(verify([record("x", (A, 1), (B, None))], memory(("x", 1, A)), promised=True) | REST)


@pytest.mark.parametrize(
    ("found", "wrong"),
    [
        (memory(("x", 1, A), ("y", 1, C)), {"lost": 1, "duplicated": 0}),
        (memory(("x", 1, A), ("y", 1, C), ("x", 2, B), ("x", 2, B)), {"lost": 0, "duplicated": 1}),
        (memory(("x", 1, A), ("y", 1, C), ("x", 2, B), ("z", 1, D)), {"lost": 0, "duplicated": 1}),
        (memory(("x", 1, A), ("y", 1, C), ("x", 2, D)), {"lost": 0, "duplicated": 1}),
        (Memory(WHOLE.history, [OPENING_BALANCE] * ACCOUNTS), {"invariant": "broken: the balance of account 1 "}),
        (Memory(WHOLE.history, [0] * ACCOUNTS), {"invariant": "broken: the sum of all balances is 0"}),
    ],
)
def test_what_is_wrong_is_found(found: Memory, wrong: dict[str, Any]) -> None:
    proof = verify(RECORDS, found, promised=True)
    assert all(str(proof[key]).startswith(str(value)) for key, value in wrong.items()), proof
    assert not holds(proof | REST)


def test_what_nobody_promised_is_counted_apart() -> None:
    proof = verify(RECORDS, memory(("x", 1, A), ("y", 1, C)), promised=False)
    assert (proof["lost"], proof["lost_unpromised"], proof["prefix_holds"]) == (0, 1, True)
    assert holds(proof | REST)


@pytest.mark.parametrize(
    ("found", "prefix"),
    [
        # The old incarnation did A, C and B. What the new one did after what it had recovered is D.
        (memory(("x", 1, A), ("y", 1, C), ("z", 1, D), epochs=(1, 1, 2)), True),
        (memory(("x", 1, A), ("z", 1, D), epochs=(1, 2)), True),
        # C is missing, and B, which was committed later, is there.
        (memory(("x", 1, A), ("x", 2, B), ("z", 1, D), epochs=(1, 1, 2)), False),
        # As if something unanswered had been committed in between; but its client was told another number.
        (memory(("x", 1, A), ("z", 1, D), ("x", 2, B), epochs=(1, 1, 1)), False),
        # Two were exchanged.
        (memory(("y", 1, C), ("x", 1, A), ("x", 2, B), ("z", 1, D), epochs=(1, 1, 1, 2)), False),
        # The new incarnation did again what the old one had done and acknowledged.
        (memory(("x", 1, A), ("y", 1, C), ("x", 2, B), ("z", 1, D), epochs=(1, 1, 2, 2)), False),
        # An old incarnation wrote after the new one had begun.
        (memory(("x", 1, A), ("y", 1, C), ("z", 1, D), epochs=(1, 2, 1)), False),
    ],
)
def test_a_hole_in_commit_order_is_no_prefix(found: Memory, prefix: bool) -> None:
    records = [*RECORDS, record("z", (D, None))]
    assert verify(records, found, promised=False)["prefix_holds"] == prefix


def test_an_answer_to_the_second_asking_tells_of_the_first_doing() -> None:
    """Asked of the old incarnation, answered by the new one: it was recovered, so its number stands."""
    records = [record("x", (A, 1), epoch=2)]
    assert verify(records, memory(("x", 1, A), epochs=(1,)), promised=True)["prefix_holds"]
    assert not verify(records, memory(("x", 1, A), epochs=(3,)), promised=True)["prefix_holds"]


@pytest.mark.parametrize(
    "differently",
    [
        {"acknowledged_after_fault": 0},
        {"host_after": "h1"},
        {"epoch_after": 1},
        {"fault": "hang"},
        {"fault": "hang"} | STAYED | {"guest_pid_unchanged": False},
        {"fault": "partition"},
        {"set_aside": {"transactions": 0}},
    ],
)
def test_the_fault_must_do_what_it_does_and_no_more(differently: dict[str, Any]) -> None:
    assert not holds(verify(RECORDS, WHOLE, promised=True) | REST | differently)


def test_each_fault_can_hold() -> None:
    proof = verify(RECORDS, WHOLE, promised=True)
    assert holds(proof | REST | {"fault": "hang"} | STAYED)
    assert holds(proof | REST | {"fault": "partition", "set_aside": {"transactions": 3}})


def test_lanes() -> None:
    legend = {"=": State("=", "serves", "serves"), "x": State("x", "dead", "dead")}
    lanes: list[Lane] = [
        Rate("rate", [0.1, 0.2, 0.3, 1.5]),
        States("host", [(0.0, "="), (2.4, "x"), (2.5, "=")], legend),
        Marks("fault", [(2.2, "^ h1")]),
        Spans("gap", [(0.6, 2.9, "2")]),
        Spans("short", [(0.6, 1.4, "7 ms")]),
        Stack("pages", (Layer("in use", "one", [(0.0, 2.0)]), Layer("free & cold", "two", [(2.0, 2.0)])), "MiB"),
    ]
    assert draw(lanes, 0.0, 4.0, unicode=False, columns=8).splitlines() == [
        " rate |@  -    |",
        " host |====x===|",
        "fault |    ^ h1|",
        "  gap | < 2 >  |",
        "short | <> 7 ms|",
        "pages |===@@@@@|",
        "       0  4.0 s",
    ]
    words = "".join(ElementTree.fromstring(svg(lanes, 0.0, 4.0, title="t")).itertext())
    assert all(said in words for said in ("in use", "free & cold", "to 4 MiB"))


def test_a_run_becomes_a_picture() -> None:
    states = [{"at_ms": 0.0, "state": "serves the bank"}, {"at_ms": 50.0, "state": "dead"}]
    report = (
        verify(RECORDS, WHOLE, promised=True)
        | REST
        | {
            "clients": 2,
            "end_ms": 100.0,
            "fault_ms": 40.0,
            "gap_ms": [40.0, 70.0],
            "answers": {"bin_ms": 25, "counts": [1, 1, 0, 1]},
            "hosts": {"h1": states, "<h2>": [{"at_ms": 0.0, "state": "unheard of"}]},
            "timeline": [{"at_ms": 45.0, "what": "h1 is proven dead"}],
        }
    )
    script = runpy.run_path(str(Path(__file__).parents[2] / "docs" / "draw_failover.py"))
    drawn = ElementTree.fromstring(script["draw"](report))
    words = "".join(drawn.itertext())
    assert all(said in words for said in ("machine-kill of h1", "<h2>", "30 ms", "+5 ms proven dead", "3 transfers"))
