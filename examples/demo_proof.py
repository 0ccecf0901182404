"""The demo's proof: what the bank remembers, held against what its clients recorded. Plain arithmetic on both.

The bank remembers its transfers in commit order, each with the epoch of the incarnation that did it. A client recorded
for each answer the number that its transfer had in that order, and the epoch of the incarnation that answered. So both
sides say independently what an incarnation had committed, and where what was recovered of it ends:

- *lost*: acknowledged, promised to be kept, and not in the history. *Unpromised*: the same where nobody had promised it
  (`--ack local`, and the machine is gone).
- *duplicated*: in the history twice, or without anybody having asked for it.
- *a prefix in commit order*: every acknowledged transfer that is there has the number that its client was told, and
  every one that is missing has a number beyond the last that was recovered of its incarnation. The numbers of an
  incarnation have no gaps in the history, so nothing between can be missing unseen.
- *the invariant*: the sum of all balances is what it was, and each balance is what the history makes it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from everram.examples.demo_clients import Acknowledgement, Entry, Memory, Record
from everram.examples.ledger import ACCOUNTS, OPENING_BALANCE


def verify(records: Sequence[Record], memory: Memory, *, promised: bool) -> dict[str, Any]:
    """`promised`: whether what was acknowledged had to outlive the fault."""
    done = {(entry.client, entry.transfer.sequence): entry for entry in reversed(memory.history)}
    missing_by = [
        (record.name, ack)
        for record in records
        for ack in record.acknowledged
        if (record.name, ack.sequence) not in done
    ]
    missing = [ack for _, ack in missing_by]
    return {
        "acknowledged": sum(len(record.acknowledged) for record in records),
        "recovered": len(memory.history),
        "lost": len(missing) if promised else 0,
        "lost_unpromised": 0 if promised else len(missing),
        "missing": [{"client": name, "number": ack.number, "epoch": ack.epoch} for name, ack in missing_by],
        "duplicated": _duplicated(records, memory.history),
        "prefix_holds": _is_prefix(records, memory.history, done, missing),
        "invariant": _invariant(memory),
    }


def _duplicated(records: Sequence[Record], history: Sequence[Entry]) -> int:
    asked = {(record.name, sequence): transfer for record in records for sequence, transfer in record.asked.items()}
    times = Counter((entry.client, entry.transfer.sequence) for entry in history)
    invented = sum(asked.get((entry.client, entry.transfer.sequence)) != entry.transfer for entry in history)
    return invented + sum(count - 1 for count in times.values())


def _is_prefix(
    records: Sequence[Record],
    history: Sequence[Entry],
    done: dict[tuple[str, int], Entry],
    missing: Sequence[Acknowledgement],
) -> bool:
    epochs = [entry.epoch for entry in history]
    if epochs != sorted(epochs) or [entry.number for entry in history] != list(range(1, len(history) + 1)):
        return False
    for record in records:
        for ack in record.acknowledged:
            entry = done.get((record.name, ack.sequence))
            if entry is not None and (entry.number != ack.number or entry.epoch > ack.epoch):
                return False
    return all(ack.number > recovered_of(history, ack.epoch) for ack in missing)


def recovered_of(history: Sequence[Entry], epoch: int) -> int:
    """The number of the last transfer that was recovered of this incarnation, or of earlier ones."""
    return max((entry.number for entry in history if entry.epoch <= epoch), default=0)


def _invariant(memory: Memory) -> str:
    expected = [OPENING_BALANCE] * ACCOUNTS
    for entry in memory.history:
        expected[entry.transfer.source] -= entry.transfer.amount
        expected[entry.transfer.target] += entry.transfer.amount
    if sum(memory.balances) != ACCOUNTS * OPENING_BALANCE:
        return f"broken: the sum of all balances is {sum(memory.balances)}"
    differing = [account for account in range(ACCOUNTS) if memory.balances[account] != expected[account]]
    return f"broken: the balance of account {differing[0]} is not what its history makes it" if differing else "holds"
