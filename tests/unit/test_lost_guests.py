"""Guests that no memory brought back leave the directory; everybody else stays."""

from __future__ import annotations

from typing import Any, cast

from everram.runtime.cluster.lost_guests import forget_lost
from everram.runtime.coordination import directory
from everram.runtime.coordination.api import Compare, Delete, KeyValue, Range, Target, TxnResult


class Directory:
    """As much of coordination as is asked for: a dictionary of values, and the revision each was written at."""

    def __init__(self) -> None:
        self.values: dict[bytes, bytes] = {}

    def guest(self, guest_id: str, name: str, host: str, **more: object) -> None:
        self.values[directory.guest_key(guest_id)] = directory.encode({"name": name, "host": host, **more})
        self.values[directory.serving_key(guest_id)] = directory.encode({"host": host})
        self.values.setdefault(directory.name_key(name), directory.encode({"guest_id": guest_id}))

    async def range(self, op: Range) -> tuple[int, list[KeyValue]]:
        found = [(k, v) for k, v in sorted(self.values.items()) if op.key <= k < op.range_end]
        return 7, [KeyValue(k, v, 1, 5, 1) for k, v in found]

    async def txn(self, compare: list[Compare], success: list[Delete]) -> TxnResult:
        for each in compare:
            now = self.values.get(each.key)
            if (now != each.operand) if each.target is Target.VALUE else (now is None or each.operand != 5):
                return TxnResult(False, 7, ())
        for deletion in success:
            self.values.pop(deletion.key, None)
        return TxnResult(True, 8, ())


async def test_only_what_is_on_no_host_is_forgotten() -> None:
    store = Directory()
    store.guest("g1", "kept", "h1")
    store.guest("g2", "lost", "h1")
    store.guest("g3", "elsewhere", "other-cluster")
    store.guest("g4", "kept", "h2")  # lost too, and its name is g1's by now
    asked = []

    async def resident(host: str) -> set[str] | None:
        asked.append(host)
        return {"h1": {"g1"}, "h2": set[str]()}.get(host)

    assert await forget_lost(cast("Any", store), resident) == [("lost", "h1"), ("kept", "h2")]
    assert asked == ["h1", "h2", "other-cluster"]
    left = sorted(key.removeprefix(directory.ROOT).decode() for key in store.values)
    assert left == ["guests/g1", "guests/g3", "names/elsewhere", "names/kept", "serving/g1", "serving/g3"]


async def test_a_guest_with_copies_elsewhere_is_not_lost() -> None:
    store = Directory()
    store.guest("g1", "copied", "h1", required=["m2"])
    store.guest("g2", "alone", "h1", required=[])

    async def resident(host: str) -> set[str] | None:
        return set()

    assert await forget_lost(cast("Any", store), resident) == [("alone", "h1")]


async def test_an_empty_directory_asks_nobody() -> None:
    async def resident(host: str) -> set[str] | None:
        raise AssertionError("nobody is asked")

    assert await forget_lost(cast("Any", Directory()), resident) == []
