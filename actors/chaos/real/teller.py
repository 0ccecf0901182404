"""The only client of one bank: makes transfers, keeps their journal, and compares what each connection finds with it.

The checkers are those of the simulation. A teller that gets no answer connects again, asks what is there, and goes on
from that: the one transfer that was open has happened or not.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from everram.actors.chaos.checks import all_or_nothing, commit_order, nothing_lost, nothing_promised_lost
from everram.actors.chaos.checks.snapshots_exact import History
from everram.actors.chaos.journal import Found, Journal, Transfer
from everram.actors.chaos.ledger_region import ACCOUNTS, FILLER_MAX_BYTES
from everram.actors.chaos.real.findings import Findings
from everram.runtime.simulation.entropy import Stream

THINK_S = (0.001, 0.02)
RETRY_S = 0.01
SILENT_S = 1.0
"""A connection that says nothing for so long is given up, and another one made."""
UNSERVED_S = 0.25
"""A wait that is longer counts as a time without service."""
ANSWERED, EPOCHS = "every request ends by its deadline", "epochs only grow"
PATIENCE_S = 40.0
"""From a request to its answer, whatever fault there is: the longest lasts seconds, and a lease has to run out."""


@dataclass(slots=True)
class Record:
    """What a teller saw."""

    answered: list[float] = field(default_factory=list)
    """When, in order."""
    waits_s: list[float] = field(default_factory=list)
    replicated: int = 0
    unserved: list[tuple[float, float]] = field(default_factory=list)
    """Waits longer than UNSERVED_S: from the request to its answer."""
    broken: int = 0
    """Connections that ended, or said nothing."""
    undone: int = 0
    """Transfers that had been committed on memory that was lost, before any copy was known to hold them."""


class Teller:
    """`memory_of(epoch)` is the memory that an incarnation runs on, empty while nobody knows."""

    def __init__(
        self,
        name: str,
        port: int,
        stream: Stream,
        findings: Findings,
        now_s: Callable[[], float],
        memory_of: Callable[[int], str],
    ) -> None:
        self.name = name
        self.record = Record()
        self.epoch = 0
        """Of the latest incarnation that answered."""
        self.history = History()
        """What the bank held behind each answer."""
        self._journal = Journal(ACCOUNTS, 0)
        self.port = port
        self._stream = stream
        self._findings = findings
        self._now_s = now_s
        self._memory_of = memory_of
        self._memory = ""
        self._connection: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
        self._session = ""

    async def run(self, ending: asyncio.Event) -> None:
        """Transfers until `ending`; then a last look at what is there."""
        try:
            while not ending.is_set():
                await self._in_time(self._transfer())
                await asyncio.sleep(self._stream.uniform(*THINK_S))
            self._drop()
            await self._in_time(self._connect())
        finally:
            self._drop()

    async def _in_time(self, doing: Awaitable[None]) -> None:
        verdict = self._findings.look(ANSWERED)
        began_s = self._now_s()
        try:
            async with asyncio.timeout(PATIENCE_S):
                await doing
        except TimeoutError:
            self._findings.violate(ANSWERED, f"{self.name} got no answer in {PATIENCE_S:g} s")
            self._drop()
            self._unserved(began_s)
        self._findings.longest_s = max(self._findings.longest_s, self._now_s() - began_s)
        verdict.evidence = f"the longest wait was {self._findings.longest_s:.3f} s"

    async def _transfer(self) -> None:
        """One transfer, until it is known to be done. Waits for service are part of the first that is asked for."""
        began_s = self._now_s()
        while True:
            await self._connect()
            source, target = self._stream.sample(range(ACCOUNTS), 2)
            filler = self._stream.randrange(1, FILLER_MAX_BYTES) if self._stream.random() < 0.3 else 0
            transfer = self._journal.begin(source, target, self._stream.randrange(1, 100))
            if await self._ask_for(transfer, filler):
                break
            await asyncio.sleep(RETRY_S)
        at_s = self._now_s()
        self.record.answered.append(at_s)
        self.record.waits_s.append(at_s - began_s)
        self._unserved(began_s)

    def _unserved(self, began_s: float) -> None:
        if self._now_s() - began_s > UNSERVED_S:
            self.record.unserved.append((began_s, self._now_s()))

    async def _ask_for(self, transfer: Transfer, filler: int) -> bool:
        """Whether it was done; if not, it was not even begun, or nobody knows and the connection is gone."""
        move = f"{transfer.number} {transfer.source} {transfer.target} {transfer.amount} {filler}"
        answer = await self._ask(f"MOVE {self._session} {move}")
        if answer is None:
            return False
        if answer[0] != "OK":
            self._journal.discard(transfer)
            self._drop()
            return False
        transfer.lsn = transfer.number
        held = Found(transfer.number, self._journal.balances_after(transfer.number))
        self.history.note(int(answer[1]), int(answer[3]), held)
        if answer[2] == "1":
            self._journal.promised = max(self._journal.promised, transfer.number)
            self.record.replicated += 1
        return True

    # -- the connection

    async def _connect(self) -> None:
        """Until a bank answers what is there."""
        while self._connection is None:
            try:
                self._connection = await asyncio.open_connection("127.0.0.1", self.port)
            except OSError:
                await asyncio.sleep(RETRY_S)
                continue
            answer = await self._ask("STATE")
            if answer is None or answer[0] != "OK":
                self._drop()
                await asyncio.sleep(RETRY_S)
                continue
            _, self._session, epoch, count, balances = answer
            await self._compare(int(epoch), Found(int(count), tuple(map(int, balances.split(",")))))

    async def _ask(self, question: str) -> list[str] | None:
        """None if the connection broke, or nothing was answered in time."""
        assert self._connection is not None
        reader, writer = self._connection
        try:
            async with asyncio.timeout(SILENT_S):
                writer.write(f"{question}\n".encode())
                line = await reader.readline()
        except (TimeoutError, ConnectionError):
            line = b""
        if not line.endswith(b"\n"):
            self.record.broken += 1
            self._drop()
            return None
        return line.decode().split()

    def _drop(self) -> None:
        if self._connection is not None:
            self._connection[1].close()
            self._connection = None

    # -- what is found

    async def _compare(self, epoch: int, found: Found) -> None:
        moved = await self._moved(epoch)
        checks = [nothing_promised_lost, all_or_nothing, commit_order]
        if not moved:
            checks.insert(0, nothing_lost)
        self.record.undone += max(0, self._journal.committed - found.count)
        for check in checks:
            verdict = self._findings.look(check.PROPERTY)
            verdict.evidence = "of what every new connection finds, against its teller's journal"
            wrong = check.check(self._journal, found)
            if wrong is not None:
                self._findings.violate(check.PROPERTY, f"{self.name}, epoch {epoch}: {wrong}")
        self._findings.look(EPOCHS).evidence = f"{self.name} has reached epoch {epoch}"
        if epoch < self.epoch:
            self._findings.violate(EPOCHS, f"{self.name} answers in epoch {epoch} after {self.epoch}")
        elif epoch > self.epoch:
            self.history.note(epoch, 0, found)
        self.epoch = epoch
        self._journal.settle(found.count)

    async def _moved(self, epoch: int) -> bool:
        """Whether this incarnation runs on other memory than the one that answered before: then what was not known to
        be replicated may be gone."""
        if epoch == self.epoch:
            return False
        for _ in range(100):
            if memory := self._memory_of(epoch):
                moved = self._memory not in ("", memory)
                self._memory = memory
                return moved
            await asyncio.sleep(RETRY_S)
        self._memory = ""
        return True  # nobody knows: then less is demanded
