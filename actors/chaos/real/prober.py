"""Asks every incarnation of a guest, past the forwarder, whether it still serves: no two may at once.

An incarnation answers only while its own lease is valid. It has served alone if no answer of it was asked for after an
answer of a later one had come: what lies between question and answer may be any moment of it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from everram.actors.chaos.checks.one_incarnation import PROPERTY
from everram.actors.chaos.real.findings import Findings
from everram.actors.chaos.watch import Serving, Watch

PROBE_EVERY_S = 0.02
NEW_EVERY_S = 0.05
TRIES = 200
"""An incarnation is known before its program listens; by then it does, or has ended."""


class Prober:
    def __init__(self, watch: Watch, findings: Findings, now_s: Callable[[], float], names: dict[str, str]) -> None:
        """`names` by guest_id."""
        self._watch = watch
        self._findings = findings
        self._now_s = now_s
        self._names = names
        self._first: dict[tuple[str, int], float] = {}
        """When the first answer of an incarnation had come, by (guest_id, epoch)."""

    async def run(self) -> None:
        probed: set[tuple[str, int]] = set()
        async with asyncio.TaskGroup() as tasks:
            while True:
                for key, serving in list(self._watch.incarnations.items()):
                    if key not in probed and serving.port:
                        probed.add(key)
                        tasks.create_task(self._probe(serving))
                await asyncio.sleep(NEW_EVERY_S)

    async def _probe(self, serving: Serving) -> None:
        """From when it listens until it refuses, or ends."""
        for _ in range(TRIES):
            try:
                reader, writer = await asyncio.open_connection("127.0.0.1", serving.port)
                break
            except OSError:
                await asyncio.sleep(NEW_EVERY_S)
        else:
            return
        try:
            while True:
                asked_s = self._now_s()
                writer.write(b"HERE\n")
                answer = (await reader.readline()).decode().split()
                if answer != ["OK", str(serving.epoch)]:
                    return
                self._answered(serving, asked_s)
                await asyncio.sleep(PROBE_EVERY_S)
        except ConnectionError:
            return
        finally:
            writer.close()

    def _answered(self, serving: Serving, asked_s: float) -> None:
        verdict = self._findings.look(PROPERTY)
        verdict.evidence = f"of {len(self._first)} incarnations, each asked every {1000 * PROBE_EVERY_S:g} ms"
        self._first.setdefault((serving.guest_id, serving.epoch), self._now_s())
        for (guest_id, epoch), first_s in self._first.items():
            if guest_id == serving.guest_id and epoch > serving.epoch and asked_s > first_s:
                name = self._names[guest_id]
                self._findings.violate(
                    PROPERTY,
                    f"epoch {serving.epoch} of {name} on {serving.host} served {asked_s - first_s:.3f} s after {epoch}",
                )
