"""The bank of the examples: each transfer once, the sum never changes, and any line gets an answer."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import socket

import pytest

from everram.examples import ledger
from everram.examples.ledger import ACCOUNTS, Bank, answer
from everram.runtime.guest import AsyncGuest, Fenced
from everram.runtime.guest.core import GuestCore
from everram.runtime.guest.region import Region
from everram.runtime.log.ring import MIN_CAPACITY_BYTES, Destination, Ring
from everram.runtime.memory.contract import Mapping
from everram.runtime.simulation.memory import Recording

GUEST_ID = "0123456789abcdef"
REGION_BYTES = 8192
"""Room for 64 clients."""
LOG_BYTES = Ring.total_bytes(MIN_CAPACITY_BYTES)


class Died(BaseException):
    """The process, in the midst of a store."""


def new_memory(history_bytes: int = 0) -> Recording:
    memory = Recording(bytes(LOG_BYTES), bytes(REGION_BYTES), *([bytes(history_bytes)] if history_bytes else []))
    Ring.format(memory.map(0), guest_id=GUEST_ID, epoch=0, capacity_bytes=MIN_CAPACITY_BYTES)
    return memory


def incarnate(memory: Recording) -> AsyncGuest:
    log: Mapping = memory.map(0)
    ring = Ring.open(log)
    epoch = ring.epoch + 1
    ring.begin_epoch(epoch)
    regions = [
        Region(name, number, "logged", memory.map(number + 1), memory.map(number + 1).size_bytes)
        for number, name in zip(range(len(memory.contents) - 1), ("ledger", "history"), strict=False)
    ]
    return AsyncGuest(
        GuestCore(guest_id=GUEST_ID, name="bank", epoch=epoch, ring=ring, regions=regions, now_ns=lambda: 1)
    )


def ask(bank: Bank, line: str) -> str:
    return answer(bank, line.encode())


def test_a_bank_opens_once() -> None:
    memory = new_memory()
    bank = Bank(incarnate(memory))
    assert [ask(bank, line) for line in ("PING", "SUM", "COUNT", "BALANCE 99", "LAST ann")] == [
        "OK", "OK 100000", "OK 0", "OK 1000", "OK 0",
    ]  # fmt: skip
    lsn = bank.me.core.lsn
    assert Bank(incarnate(memory)).me.core.lsn == lsn


def test_a_request_is_done_once_however_often_it_is_sent() -> None:
    memory = new_memory()
    bank = Bank(incarnate(memory))
    first = ask(bank, "TRANSFER 1 2 10 ann:1")
    assert first == "OK 1"
    assert ask(bank, "TRANSFER 1 2 10 ann:1") == first
    bank = Bank(incarnate(memory))
    assert ask(bank, "TRANSFER 1 2 10 ann:1") == first
    assert ask(bank, "TRANSFER 1 2 10 bob:1").startswith("OK")
    assert [ask(bank, f"BALANCE {n}") for n in (1, 2)] == ["OK 980", "OK 1020"]
    assert [ask(bank, line) for line in ("COUNT", "LAST ann", "LAST bob", "SUM")] == [
        "OK 2",
        "OK 1",
        "OK 1",
        "OK 100000",
    ]


def test_a_history_names_every_transfer_in_commit_order() -> None:
    memory = new_memory(history_bytes=4096)
    for sequence in (1, 2):
        bank = Bank(incarnate(memory))
        assert ask(bank, f"TRANSFER {sequence} 9 10 ann:{sequence}") == f"OK {sequence}"
        assert ask(bank, "EPOCH") == f"OK {sequence}"
    assert ask(bank, "TRANSFER 1 9 5 bob:1") == "OK 3"
    assert ask(bank, "TRANSFER 2 9 10 ann:2") == "OK 2"
    assert [ask(bank, f"HISTORY {number}") for number in (1, 2, 3)] == [
        "OK 1 1 9 10 ann:1",
        "OK 2 2 9 10 ann:2",
        "OK 2 1 9 5 bob:1",
    ]
    assert ask(bank, "HISTORY 4") == "ERR the history has transfers 1 to 3, not 4"
    for sequence in range(3, 130):
        ask(bank, f"TRANSFER 50 51 1 ann:{sequence}")
    assert ask(bank, "HISTORY 2") == "ERR the history has transfers 3 to 130, not 2"
    assert ask(bank, "HISTORY 3") == "OK 2 1 9 5 bob:1"
    assert ask(bank, "HISTORY 130") == "OK 2 50 51 1 ann:129"
    assert ask(Bank(incarnate(new_memory())), "HISTORY 1").startswith("ERR nobody keeps a history")


def test_a_refused_transfer_uses_no_number() -> None:
    bank = Bank(incarnate(new_memory()))
    assert ask(bank, "TRANSFER 1 2 1001 ann:1") == "ERR account 1 has only 1000"
    assert ask(bank, "TRANSFER 1 2 1000 ann:1").startswith("OK")


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("", "say TRANSFER"),
        ("transfer 1 2 3 a:1", "say TRANSFER"),
        ("TRANSFER 1 2 3", "say TRANSFER"),
        ("TRANSFER 1 2 3 a", "a is not"),
        ("TRANSFER 1 2 3 a:0", "a:0 is not an id: it is CLIENT:SEQUENCE, counted from 1"),
        ("TRANSFER 1 2 3 :1", ":1 is not an id"),
        ("TRANSFER 1 2 3 a:9999999999999999999", "9999999999999999999 is not a sequence number"),
        (f"TRANSFER 1 2 3 {'a' * 49}:1", "not an id"),
        ("TRANSFER 1 2 3 a\0b:1", "not an id"),
        ("TRANSFER 1 2 -3 a:1", "-3 is not an amount"),
        ("TRANSFER 1 2 ٣ a:1", "٣ is not an amount"),
        ("TRANSFER 1 2 0 a:1", "a transfer moves more than 0"),
        ("TRANSFER 1 1 3 a:1", "between two different accounts"),
        ("TRANSFER 1 100 3 a:1", "there is no account 100: they are 0 to 99"),
        ("BALANCE x", "x is not an account"),
        ("TRANSFER 1 2 3 old:2", "client old is at 3 already: 2 is in the past"),
        ("x" * 257, "a request has at most 256 bytes"),
    ],
)
def test_bad_requests_get_plain_words(line: str, reason: str) -> None:
    bank = Bank(incarnate(new_memory()))
    ask(bank, "TRANSFER 5 6 1 old:3")
    reply = ask(bank, line)
    assert reply.startswith("ERR ") and reason in reply
    assert (bank.count(), bank.sum()) == (1, 100000)


def test_any_bytes_get_an_answer() -> None:
    bank = Bank(incarnate(new_memory()))
    dice = random.Random(1)
    words = [b"TRANSFER", b"BALANCE", b"LAST", b"SUM", b"1", b"2", b"a:1", b"\xff\xfe", b"\0", b"-1", b":", b"9" * 30]
    for _ in range(2000):
        reply = answer(bank, b" ".join(dice.choices(words, k=dice.randrange(6))))
        assert reply.startswith(("OK", "ERR ")) and "\n" not in reply
    assert bank.sum() == 100000


def test_more_clients_than_there_is_room_for() -> None:
    memory = new_memory()
    bank = Bank(incarnate(memory))
    for client in range(64):
        assert ask(bank, f"TRANSFER 1 2 1 {client}:7").startswith("OK")
    assert ask(bank, "TRANSFER 1 2 1 late:1") == "ERR there are 64 clients already: run the bank with a larger region"
    bank = Bank(incarnate(memory))
    assert ask(bank, "TRANSFER 1 2 1 late:1").startswith("ERR there are 64 clients")
    assert [ask(bank, f"LAST {client}") for client in range(64)] == ["OK 7"] * 64


def test_killed_at_any_store_and_asked_again_it_is_exactly_once() -> None:
    """A client sends each request until it is answered, over as many incarnations as that takes."""
    dice = random.Random(7)
    memory = new_memory()
    Bank(incarnate(memory))
    left = 0

    def before_store() -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise Died

    memory.before_store = before_store
    expected = [1000] * ACCOUNTS
    incarnations, bank = 0, None
    for sequence in range(1, 200):
        source, target = dice.sample(range(ACCOUNTS), 2)
        while True:
            try:
                if bank is None:
                    left, incarnations = dice.randrange(60), incarnations + 1
                    bank = Bank(incarnate(memory))
                assert ask(bank, f"TRANSFER {source} {target} 5 ann:{sequence}").startswith("OK")
                break
            except Died:
                bank = None
        expected[source] -= 5
        expected[target] += 5
    memory.before_store = None
    bank = Bank(incarnate(memory))
    assert [bank.balance(account) for account in range(ACCOUNTS)] == expected
    assert (bank.count(), bank.last("ann")) == (199, 199)
    assert incarnations > 20


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


async def connect(port: int, serving: asyncio.Task[None]) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    while True:
        try:
            return await asyncio.open_connection("127.0.0.1", port)
        except ConnectionRefusedError:
            assert not serving.done()
            await asyncio.sleep(0.001)


async def test_a_connection_survives_bad_lines_and_ends_with_sigterm(capsys: pytest.CaptureFixture[str]) -> None:
    bank, port = Bank(incarnate(new_memory())), free_port()
    serving = asyncio.create_task(ledger.serve(bank, port))
    reader, writer = await connect(port, serving)
    writer.write(b"PING\r\nTRANSFER 1 2 3 a:1\n" + b"x" * 300_000 + b"\nnonsense\nSUM\nCOU")
    assert await reader.readline() == b"OK\n"
    assert await reader.readline() == b"OK 1\n"
    assert await reader.readline() == b"ERR a request has at most 256 bytes\n"
    assert (await reader.readline()).startswith(b"ERR say TRANSFER")
    assert await reader.readline() == b"OK 100000\n"
    writer.write(b"NT\n")
    assert await reader.readline() == b"OK 1\n"
    os.kill(os.getpid(), signal.SIGTERM)
    await serving
    writer.close()
    await writer.wait_closed()
    assert capsys.readouterr().out == f"bank: 0 transfers so far, sum 100000; serving 127.0.0.1:{port}\n"


async def test_a_replicated_answer_waits_for_the_copy_and_none_is_sent_without(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ledger, "ACK_TIMEOUT_S", 0.2)
    bank, port = Bank(incarnate(new_memory())), free_port()
    ring = bank.me.core.ring
    ring.set_copies(1)
    ring.set_destination(0, Destination(required=True, memory_id="f" * 16, durable_lsn=0))
    ring.set_durable(0, bank.me.core.lsn)
    serving = asyncio.create_task(ledger.serve(bank, port, ack_replicated=True))
    reader, writer = await connect(port, serving)
    writer.write(b"PING\n")
    assert await reader.readline() == b"OK\n"
    writer.write(b"TRANSFER 1 2 3 a:1\n")
    while True:
        if bank.count():
            break
        await asyncio.sleep(0.001)
    ring.set_durable(0, bank.me.core.lsn)
    assert await reader.readline() == b"OK 1\n"
    writer.write(b"TRANSFER 1 2 3 a:2\n")
    assert await reader.readline() == b"", "what no copy holds in time is not acknowledged"
    writer.close()
    reader, writer = await connect(port, serving)
    writer.write(b"COUNT\n")
    assert await reader.readline() == b"", "nor told of"
    ring.set_durable(0, bank.me.core.lsn)
    writer.close()
    reader, writer = await connect(port, serving)
    writer.write(b"TRANSFER 1 2 3 a:2\nCOUNT\n")
    assert [await reader.readline() for _ in range(2)] == [b"OK 2\n", b"OK 2\n"]
    os.kill(os.getpid(), signal.SIGTERM)
    await serving
    writer.close()
    await writer.wait_closed()


async def test_a_fenced_bank_stops_without_an_answer() -> None:
    bank, port = Bank(incarnate(new_memory())), free_port()
    serving = asyncio.create_task(ledger.serve(bank, port))
    reader, writer = await connect(port, serving)
    bank.me.core.ring.set_lease_deadline_ns(1)
    writer.write(b"TRANSFER 1 2 3 a:1\n")
    assert await reader.readline() == b""
    with pytest.raises(Fenced):
        await serving
    writer.close()
    await writer.wait_closed()
    assert bank.count() == 0
