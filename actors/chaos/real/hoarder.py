"""Makes one bank use its volatile memory: a little always, and nearly all of it while memory is to be short.

    hoarder = Hoarder("bank-1", port, findings)
    hoarder.blocks = HIGH                          # from its next turn on
    await hoarder.run()

All banks of a host together were promised more than it has, so it takes pages from them, by balloon or by swap. What
the bank then finds in them is compared with what it had stored.
"""

from __future__ import annotations

import asyncio

from everram.actors.chaos.real.findings import Findings

PROPERTY = "volatile memory holds what was stored, wherever it was meanwhile"
LOW, HIGH = 6, 40
"""Blocks of 1 MiB."""
TURN_S = 0.3
SILENT_S = 5.0


class Hoarder:
    def __init__(self, name: str, port: int, findings: Findings) -> None:
        self.blocks = LOW
        self._name = name
        self._port = port
        self._findings = findings
        self._most = 0

    async def run(self) -> None:
        """Until it is cancelled; a bank that does not answer is asked again."""
        while True:
            try:
                await self._talk()
            except (OSError, TimeoutError):
                pass
            await asyncio.sleep(TURN_S)

    async def _talk(self) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
        try:
            while True:
                writer.write(f"KEEP {self.blocks}\n".encode())
                async with asyncio.timeout(SILENT_S):
                    words = (await reader.readline()).decode().split()
                if words[:1] != ["OK"]:
                    return
                self._found(*map(int, words[1:]))
                await asyncio.sleep(TURN_S)
        finally:
            writer.close()

    def _found(self, epoch: int, blocks: int, looked: int, wrong: int) -> None:
        if not looked:
            return
        verdict = self._findings.look(PROPERTY)
        verdict.looked += looked - 1
        self._most = max(self._most, blocks)
        verdict.evidence = (
            "of blocks of 1 MiB, looked at again and again while their hosts take pages and give them back"
        )
        if wrong:
            self._findings.violate(PROPERTY, f"{wrong} of {looked} blocks of {self._name}, epoch {epoch}")
