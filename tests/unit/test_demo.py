"""The demo's proof finds what it is there to find, and its picture draws what happened."""

from __future__ import annotations

from typing import Any

import pytest

from everram.examples.demo import Record, Transfer, holds, verify
from everram.examples.lanes import Lane, draw
from everram.examples.ledger import ACCOUNTS, OPENING_BALANCE


def record(
    name: str, *transfers: tuple[int, int, int], acknowledged: int | None = None, first_lsn: int = 100
) -> Record:
    """A client that asked for `transfers` and got answers to the first `acknowledged` of them."""
    asked = [Transfer(source, target, amount, n) for n, (source, target, amount) in enumerate(transfers, start=1)]
    answered = len(asked) if acknowledged is None else acknowledged
    return Record(name, asked, [(float(n), first_lsn + n) for n in range(answered)])


def balances(*moves: tuple[int, int, int]) -> list[int]:
    found = [OPENING_BALANCE] * ACCOUNTS
    for source, target, amount in moves:
        found[source] -= amount
        found[target] += amount
    return found


A, B, C = (1, 2, 10), (2, 3, 20), (3, 1, 5)
REST = {"acknowledged_after_fault": 1, "guest_pid_unchanged": True, "client_errors": 0}


def test_what_is_right_holds() -> None:
    proof = verify([record("x", A, B), record("y", C)], {"x": 2, "y": 1}, 3, balances(A, B, C))
    assert (proof["acknowledged"], proof["recovered"], proof["lost"], proof["duplicated"]) == (3, 3, 0, 0)
    assert holds(proof | REST)


def test_a_transfer_that_was_done_and_not_answered_is_no_fault() -> None:
    proof = verify([record("x", A, B, acknowledged=1)], {"x": 2}, 2, balances(A, B))
    assert holds(proof | REST)


@pytest.mark.parametrize(
    ("last", "count", "found", "wrong"),
    [
        ({"x": 1, "y": 1}, 2, balances(A, C), {"lost": 1}),
        ({"x": 2, "y": 1}, 4, balances(A, B, C, C), {"duplicated": 1, "balances_match": False}),
        ({"x": 3, "y": 1}, 4, balances(A, B, C, C), {"duplicated": 1, "balances_match": False}),
        ({"x": 2, "y": 1}, 3, balances(A, B), {"balances_match": False}),
        ({"x": 2, "y": 1}, 3, [OPENING_BALANCE] * (ACCOUNTS - 1) + [0], {"balances_match": False}),
    ],
)
def test_what_is_wrong_is_found(last: dict[str, int], count: int, found: list[int], wrong: dict[str, Any]) -> None:
    proof = verify([record("x", A, B), record("y", C)], last, count, found)
    assert {key: proof[key] for key in wrong} == wrong
    assert (proof["invariant"] == "holds") == (sum(found) == ACCOUNTS * OPENING_BALANCE)
    assert not holds(proof | REST)


def test_a_hole_in_commit_order_is_no_prefix() -> None:
    """x's second transfer is lost although y's, which was committed later, is there."""
    records = [record("x", A, B, first_lsn=100), record("y", C, first_lsn=200)]
    assert not verify(records, {"x": 1, "y": 1}, 2, balances(A, C))["prefix_holds"]
    records = [record("x", A, B, first_lsn=300), record("y", C, first_lsn=200)]
    assert verify(records, {"x": 1, "y": 1}, 2, balances(A, C))["prefix_holds"]


@pytest.mark.parametrize(
    "missing", [{"guest_pid_unchanged": False}, {"client_errors": 1}, {"acknowledged_after_fault": 0}]
)
def test_the_fault_must_not_show(missing: dict[str, Any]) -> None:
    proof = verify([record("x", A)], {"x": 1}, 1, balances(A))
    assert not holds(proof | REST | missing)


def test_lanes() -> None:
    lanes = [
        Lane.of_rate("rate", [0.1, 0.2, 0.3, 1.5]),
        Lane.of_states("host", [(0.0, "="), (2.4, "x"), (2.5, "=")]),
        Lane.of_mark("fault", 2.2, "^"),
    ]
    assert draw(lanes, 0.0, 4.0, unicode=False, columns=8).splitlines() == [
        " rate |@  -    |",
        " host |====x===|",
        "fault |    ^   |",
        "       0  4.0 s",
    ]
