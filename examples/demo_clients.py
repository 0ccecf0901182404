"""The demo's clients: each transfers money at the bank (`ledger.py`), and records what it asked for and was answered.

A client that gets no answer connects again and asks the same again, to whatever incarnation serves then: the bank does
each request once. What the bank answers is the transfer's number in its commit order; the first question on each
connection is for the incarnation's epoch, so a record says which incarnation promised what.
"""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass, field

from everram.examples.ledger import ACCOUNTS
from everram.runtime.errors import Unavailable

THINK_S = 0.002
"""Between a client's transfers: a load that leaves a laptop's two cores some air."""
ANSWER_TIMEOUT_S = 20.0
"""Without an answer for so long the demo has failed: every promise is far below it."""
SEED = 7
PIPELINE = 200
"""Questions sent at once when the whole history is read."""
STRAY = "stray"
TRY_AGAIN = "ERR the log is full"


@dataclass(frozen=True, slots=True)
class Transfer:
    source: int
    target: int
    amount: int
    sequence: int


@dataclass(frozen=True, slots=True)
class Acknowledgement:
    at_s: float
    sequence: int
    number: int
    """Which transfer of all it was, as the bank said."""
    epoch: int
    """Of the incarnation that said so."""


@dataclass(slots=True)
class Record:
    """One client's own record."""

    name: str
    asked: dict[int, Transfer] = field(default_factory=dict)
    """By sequence number, from 1 on; all but those without an acknowledgement were answered."""
    acknowledged: list[Acknowledgement] = field(default_factory=list)
    refused: int = 0
    """Transfers that the bank declined for want of money; they changed nothing."""
    errors: list[str] = field(default_factory=list)
    """Connections that broke: each was followed by the same request again."""
    longest_wait_s: tuple[float, float] = (0.0, 0.0)
    """From a request to its answer, every retry included: when it began, and when it ended."""


class Connection:
    """One connection to one incarnation of the bank. Every method raises ConnectionError or EOFError when it breaks."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, epoch: int = 0) -> None:
        self._reader, self._writer = reader, writer
        self.epoch = epoch

    @staticmethod
    async def open(port: int) -> Connection:
        connection = Connection(*await asyncio.open_connection("127.0.0.1", port))
        try:
            connection.epoch = number_of(await connection.ask("EPOCH"))
        except BaseException:
            connection.close()
            raise
        return connection

    async def ask(self, question: str) -> str:
        return (await self.ask_all([question]))[0]

    async def ask_all(self, questions: list[str]) -> list[str]:
        self._writer.write("".join(f"{question}\n" for question in questions).encode())
        return [(await self._reader.readuntil(b"\n")).decode().strip() for _ in questions]

    def close(self) -> None:
        self._writer.close()


class Client:
    """Transfers as fast as it is answered, until it is told to stop."""

    def __init__(self, port: int, name: str, seed: int, running: asyncio.Event) -> None:
        self.record = Record(name)
        self._port = port
        self._random = random.Random(SEED * 1000 + seed)
        self._running = running
        self._connection: Connection | None = None

    async def run(self) -> None:
        try:
            while self._running.is_set():
                await self._transfer()
                await asyncio.sleep(THINK_S)
        finally:
            self.close()

    async def _transfer(self) -> None:
        loop, record = asyncio.get_running_loop(), self.record
        transfer = self.new_transfer()
        began_s = loop.time()
        try:
            async with asyncio.timeout(ANSWER_TIMEOUT_S):
                answer, epoch = await self._ask_until_answered(transfer)
        except TimeoutError:
            raise Unavailable(f"{record.name} got no answer in {ANSWER_TIMEOUT_S:g} s") from None
        waited_s = (began_s, loop.time())
        record.longest_wait_s = max(record.longest_wait_s, waited_s, key=lambda wait: wait[1] - wait[0])
        if answer.startswith("OK "):
            record.acknowledged.append(Acknowledgement(loop.time(), transfer.sequence, number_of(answer), epoch))
        else:
            record.refused += 1
            del record.asked[transfer.sequence]

    def new_transfer(self) -> Transfer:
        source, target = self._random.sample(range(ACCOUNTS), 2)
        transfer = Transfer(source, target, self._random.randint(1, 50), len(self.record.asked) + 1)
        self.record.asked[transfer.sequence] = transfer
        return transfer

    async def _ask_until_answered(self, transfer: Transfer) -> tuple[str, int]:
        """The answer, and the epoch of who gave it."""
        while True:
            try:
                if self._connection is None:
                    self._connection = await Connection.open(self._port)
                answer = await self._connection.ask(request(self.record.name, transfer))
                if not answer.startswith(TRY_AGAIN):
                    return answer, self._connection.epoch
            except (ConnectionError, EOFError) as error:
                self.record.errors.append(f"{type(error).__name__} at transfer {transfer.sequence}")
                self.close()
            await asyncio.sleep(THINK_S)

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None


class Stray(Client):
    """A client on the wrong side of a cut: it reaches the cut-off incarnation directly, and asks until that is gone."""

    def __init__(self, port: int, epoch: int, running: asyncio.Event) -> None:
        """`epoch`: of the incarnation that listens on `port`, which could not say so once its copy is out of reach."""
        super().__init__(port, f"{STRAY}-{epoch}", 0, running)
        self._epoch = epoch

    async def run(self) -> None:
        try:
            connection = Connection(*await asyncio.open_connection("127.0.0.1", self._port), epoch=self._epoch)
            while self._running.is_set():
                transfer = self.new_transfer()
                answer = await connection.ask(request(self.record.name, transfer))
                if answer.startswith("OK "):
                    at_s = asyncio.get_running_loop().time()
                    number = number_of(answer)
                    acknowledgement = Acknowledgement(at_s, transfer.sequence, number, connection.epoch)
                    self.record.acknowledged.append(acknowledgement)
                else:
                    del self.record.asked[transfer.sequence]
                await asyncio.sleep(THINK_S)
            connection.close()
        except (ConnectionError, EOFError) as error:
            self.record.errors.append(f"{type(error).__name__} at transfer {len(self.record.asked)}")


def request(name: str, transfer: Transfer) -> str:
    return f"TRANSFER {transfer.source} {transfer.target} {transfer.amount} {name}:{transfer.sequence}"


def number_of(answer: str) -> int:
    """Raises Unavailable if the bank answered anything else."""
    word, _, number = answer.partition(" ")
    if word != "OK":
        raise Unavailable(f"the bank answered: {answer}")
    return int(number)


@dataclass(frozen=True, slots=True)
class Entry:
    """One transfer as the bank remembers it."""

    number: int
    epoch: int
    client: str
    transfer: Transfer

    @staticmethod
    def read(number: int, answer: str) -> Entry:
        """Raises Unavailable if the bank answered anything else."""
        match answer.split():
            case ["OK", epoch, source, target, amount, identity]:
                client, _, sequence = identity.rpartition(":")
                return Entry(number, int(epoch), client, Transfer(int(source), int(target), int(amount), int(sequence)))
        raise Unavailable(f"the bank answered HISTORY {number} with: {answer}")


@dataclass(frozen=True, slots=True)
class Memory:
    """What the bank remembers."""

    history: list[Entry]
    """In its commit order, from number 1 on."""
    balances: list[int]


async def ask_memory(port: int) -> Memory:
    """Raises Unavailable if the bank does not answer in time."""
    try:
        async with asyncio.timeout(ANSWER_TIMEOUT_S):
            while True:
                try:
                    return await _ask_memory(await Connection.open(port))
                except (ConnectionError, EOFError):
                    await asyncio.sleep(THINK_S)
    except TimeoutError:
        raise Unavailable(f"the bank did not tell what it remembers in {ANSWER_TIMEOUT_S:g} s") from None


async def _ask_memory(connection: Connection) -> Memory:
    try:
        count = number_of(await connection.ask("COUNT"))
        history: list[Entry] = []
        while len(history) < count:
            numbers = range(len(history) + 1, min(len(history) + PIPELINE, count) + 1)
            answers = await connection.ask_all([f"HISTORY {number}" for number in numbers])
            history += map(Entry.read, numbers, answers)
        balances = await connection.ask_all([f"BALANCE {account}" for account in range(ACCOUNTS)])
        return Memory(history, [number_of(balance) for balance in balances])
    finally:
        connection.close()
