"""Where each published port leads, as the cluster's directory says: plain data, fed with the directory's changes.

A guest's record names its published port and its epoch; its `serving` record names the port that its incarnation really
listens on. Only a `serving` record of the current epoch counts: the epoch is raised before a new incarnation starts, so
an old incarnation loses its connections before the new one takes any (D18).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from everram.runtime.coordination import directory
from everram.runtime.coordination.api import Event, KeyValue

ENDED_STATES = frozenset({"stopped", "exited", "failed"})
"""In these a guest may or may not serve soon, so new connections are not kept waiting long."""


@dataclass(frozen=True, slots=True)
class Route:
    """What lies behind one published port now."""

    guest_id: str
    name: str
    epoch: int
    backend_port: int = 0
    """0: no incarnation serves."""
    expected: bool = True
    """Whether an incarnation will serve soon, as far as the directory knows."""
    host: str = ""
    """Where it serves."""


class Routes:
    """The directory's `guests/` and `serving/` records, and what follows from them."""

    def __init__(self) -> None:
        self._guests: dict[str, dict[str, Any]] = {}
        self._serving: dict[str, dict[str, Any]] = {}

    def reset(self, pairs: Iterable[KeyValue]) -> None:
        """Forget everything and take these pairs as all there is."""
        self._guests.clear()
        self._serving.clear()
        for kv in pairs:
            self._put(kv)

    def apply(self, event: Event) -> None:
        if not event.deleted:
            self._put(event.kv)
            return
        for root, records in self._tables():
            if event.kv.key.startswith(root):
                records.pop(event.kv.key.removeprefix(root).decode(), None)

    def _put(self, kv: KeyValue) -> None:
        for root, records in self._tables():
            if kv.key.startswith(root):
                records[kv.key.removeprefix(root).decode()] = directory.decode(kv.value)

    def _tables(self) -> tuple[tuple[bytes, dict[str, dict[str, Any]]], ...]:
        return ((directory.GUESTS, self._guests), (directory.SERVING, self._serving))

    def ports(self) -> dict[int, Route]:
        """Every published port. Should two guests claim one, the smaller guest_id has it."""
        found: dict[int, Route] = {}
        for guest_id, guest in sorted(self._guests.items()):
            port = int(guest.get("publish_port") or 0)
            if port and port not in found:
                found[port] = self._route(guest_id, guest)
        return found

    def _route(self, guest_id: str, guest: dict[str, Any]) -> Route:
        serving = self._serving.get(guest_id, {})
        epoch = int(guest.get("epoch") or 0)
        current = int(serving.get("epoch") or 0) == epoch
        return Route(
            guest_id=guest_id,
            name=str(guest.get("name", "")),
            epoch=epoch,
            backend_port=int(serving.get("port") or 0) if current else 0,
            expected=str(guest.get("state", "")).lower() not in ENDED_STATES,
            host=str(serving.get("host", "")) if current else "",
        )
