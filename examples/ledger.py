"""A bank whose money survives: accounts in a region, transfers as transactions, served over TCP.

    everram run --name bank --region ledger=16MiB --publish 7777 -- python examples/ledger.py --ack replicated

One request a line, one line back, `OK ...` or `ERR plain words` (try it with `nc 127.0.0.1 7777`):

    TRANSFER from to amount CLIENT:SEQUENCE    OK number    done, as the number-th transfer of all, from 1 on
    BALANCE account                            OK balance
    SUM                                        OK the sum of all balances, which never changes
    COUNT                                      OK how many transfers were done
    LAST client                                OK the sequence number of its last transfer that was done; 0: none
    EPOCH                                      OK the epoch of this incarnation
    HISTORY number                             OK epoch from to amount CLIENT:SEQUENCE, of the number-th transfer
    PING                                       OK

Each transfer is done exactly once: the bank remembers a client's last sequence number in the same transaction. A client
that did not get its answer sends the same line again, to this or any later incarnation, and gets the same `OK`.

`--ack local` (the default) answers when a transfer is committed in this machine's memory. `--ack replicated` answers
when the copies hold everything that the answer may tell of, reads included. Whether they do is not known in time if no
copy can be reached; then the connection is closed without an answer, and the client has to ask again. A second region,
`history`, keeps who was paid in which order, for `HISTORY`; without one the bank does not know.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import struct
import sys

from everram.runtime import guest

ACCOUNTS = 100
OPENING_BALANCE = 1000
LINE_BYTES_MAX = 256
ACK_ENVIRONMENT = "EVERRAM_LEDGER_ACK"
"""Stands in for `--ack`."""
ACK_TIMEOUT_S = 2.0
"""For the copies: longer than a host takes to come back, shorter than a person waits before asking again."""

# What lies where in the region `ledger`. All of it begins as zeros.
ACCOUNTS_AT, COUNT_AT = 0, 8
BALANCES_AT = 64
CLIENTS_AT = 4096
WORD = struct.Struct("<q")
CLIENT = struct.Struct("<qq48s")
"""The sequence number and the number of its last transfer, and its name; an empty name: nobody has this place yet."""
NAME_BYTES_MAX = 48
ENTRY = struct.Struct("<QQQIHH")
"""One transfer in the region `history`: its epoch, its client's place, its sequence number, amount, from, to."""
AMOUNT_MAX = (1 << 32) - 1


class Refused(Exception):
    """A request that the bank cannot do; the message tells its client why."""


class Bank:
    """The accounts in a guest's region `ledger`, opened with the first incarnation."""

    def __init__(self, me: guest.AsyncGuest) -> None:
        self.me = me
        self.region = me.region("ledger")
        self.history = me.region("history") if "history" in me.core.regions else None
        """A circle of the last transfers."""
        self.clients: dict[str, int] = {}
        """Where the record of each client lies."""
        if not self._word(ACCOUNTS_AT):
            self._open_accounts()
        self.free_at = self._find_clients()

    def _open_accounts(self) -> None:
        with self.me.transaction() as tx:
            for account in range(ACCOUNTS):
                tx.store(self.region, BALANCES_AT + WORD.size * account, WORD.pack(OPENING_BALANCE))
            tx.store(self.region, ACCOUNTS_AT, WORD.pack(ACCOUNTS))

    def _find_clients(self) -> int:
        """Fill `clients`; returns where the next new one goes."""
        at = CLIENTS_AT
        while at + CLIENT.size <= len(self.region):
            _, _, name = CLIENT.unpack(self.region.load(at, CLIENT.size))
            if not name.strip(b"\0"):
                break
            self.clients[name.rstrip(b"\0").decode()] = at
            at += CLIENT.size
        return at

    def transfer(self, source: int, target: int, amount: int, client: str, sequence: int) -> int:
        """Move money once, however often it is asked for; returns which transfer of all it was."""
        done = self.last(client)
        if sequence == done:
            return self._word(self.clients[client] + WORD.size)
        if sequence < done:
            raise Refused(f"client {client} is at {done} already: {sequence} is in the past")
        if source == target or not 0 < amount <= AMOUNT_MAX:
            raise Refused("a transfer moves more than 0 between two different accounts")
        balance = self.balance(source)
        if balance < amount:
            raise Refused(f"account {source} has only {balance}")
        at, number = self._client_at(client), self.count() + 1
        with self.me.transaction() as tx:  # all of this, or nothing
            tx.store(self.region, _balance_at(source), WORD.pack(balance - amount))
            tx.store(self.region, _balance_at(target), WORD.pack(self.balance(target) + amount))
            tx.store(self.region, COUNT_AT, WORD.pack(number))
            tx.store(self.region, at, CLIENT.pack(sequence, number, client.encode()))
            if self.history is not None:
                entry = ENTRY.pack(self.me.epoch, at, sequence, amount, source, target)
                tx.store(self.history, self._entry_at(number), entry)
        if client not in self.clients:
            self.clients[client] = at
            self.free_at = at + CLIENT.size
        return number

    def tell_history(self, number: int) -> str:
        if self.history is None:
            raise Refused("nobody keeps a history: run the bank with a region of this name")
        last = self.count()
        first = max(1, last - len(self.history) // ENTRY.size + 1)
        if not first <= number <= last:
            raise Refused(f"the history has transfers {first} to {last}, not {number}")
        entry = self.history.load(self._entry_at(number), ENTRY.size)
        epoch, at, sequence, amount, source, target = ENTRY.unpack(entry)
        _, _, name = CLIENT.unpack(self.region.load(at, CLIENT.size))
        return f"{epoch} {source} {target} {amount} {name.rstrip(bytes(1)).decode()}:{sequence}"

    def _entry_at(self, number: int) -> int:
        assert self.history is not None
        return (number - 1) % (len(self.history) // ENTRY.size) * ENTRY.size

    def balance(self, account: int) -> int:
        return self._word(_balance_at(account))

    def sum(self) -> int:
        return sum(self.balance(account) for account in range(ACCOUNTS))

    def count(self) -> int:
        return self._word(COUNT_AT)

    def last(self, client: str) -> int:
        at = self.clients.get(client)
        return 0 if at is None else self._word(at)

    def _client_at(self, client: str) -> int:
        at = self.clients.get(client, self.free_at)
        if at + CLIENT.size > len(self.region):
            raise Refused(f"there are {len(self.clients)} clients already: run the bank with a larger region")
        return at

    def _word(self, at: int) -> int:
        word: int = WORD.unpack(self.region.load(at, WORD.size))[0]
        return word


def _balance_at(account: int) -> int:
    return BALANCES_AT + WORD.size * account


def answer(bank: Bank, line: bytes) -> str:
    """What to answer to a request. Whatever the line is, it is answered and the bank goes on."""
    if len(line) > LINE_BYTES_MAX:
        return f"ERR a request has at most {LINE_BYTES_MAX} bytes"
    try:
        match line.decode(errors="replace").split():
            case ["TRANSFER", source, target, amount, request]:
                client, sequence = _request_id(request)
                money = _number(amount, "an amount")
                return f"OK {bank.transfer(_account(source), _account(target), money, client, sequence)}"
            case ["BALANCE", account]:
                return f"OK {bank.balance(_account(account))}"
            case ["SUM"]:
                return f"OK {bank.sum()}"
            case ["COUNT"]:
                return f"OK {bank.count()}"
            case ["LAST", client]:
                return f"OK {bank.last(client)}"
            case ["EPOCH"]:
                return f"OK {bank.me.epoch}"
            case ["HISTORY", number]:
                return f"OK {bank.tell_history(_number(number, 'a number'))}"
            case ["PING"]:
                return "OK"
        return (
            "ERR say TRANSFER from to amount CLIENT:SEQUENCE, BALANCE account, SUM, COUNT, LAST client, EPOCH, "
            "HISTORY number, or PING"
        )
    except Refused as reason:
        return f"ERR {reason}"
    except guest.LogFull:
        return "ERR the log is full until a copy has caught up: try again"


def _number(word: str, what: str) -> int:
    if not (word.isascii() and word.isdigit() and len(word) <= 18):
        raise Refused(f"{word} is not {what}")
    return int(word)


def _account(word: str) -> int:
    account = _number(word, "an account")
    if account >= ACCOUNTS:
        raise Refused(f"there is no account {account}: they are 0 to {ACCOUNTS - 1}")
    return account


def _request_id(word: str) -> tuple[str, int]:
    client, _, digits = word.rpartition(":")
    sequence = _number(digits, "a sequence number; an id is CLIENT:SEQUENCE, counted from 1")
    if not client.isprintable() or not 0 < len(client.encode()) <= NAME_BYTES_MAX or not sequence:
        raise Refused(f"{word} is not an id: it is CLIENT:SEQUENCE, counted from 1")
    return client, sequence


async def serve(bank: Bank, port: int, *, ack_replicated: bool = False) -> None:
    """Answer clients until SIGTERM or SIGINT. Raises Fenced when another incarnation may serve, OSError."""
    stopped: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def stop(error: guest.Fenced | None = None) -> None:
        if not stopped.done():
            stopped.set_result(None) if error is None else stopped.set_exception(error)

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        rest = b""
        try:
            while data := await reader.read(64 * 1024):
                *lines, rest = (rest + data).split(b"\n")
                rest = rest[: LINE_BYTES_MAX + 1]  # enough to see that it is too long
                answers = b"".join(answer(bank, line).encode() + b"\n" for line in lines)
                if ack_replicated and answers:
                    # Of the last commit of all: an answer may tell of other clients' transfers too.
                    await bank.me.wait_replicated(bank.me.core.lsn, ACK_TIMEOUT_S)
                writer.write(answers)
                await writer.drain()
        except ConnectionError:
            pass  # the client has gone; what it asked for before is done
        except guest.Timeout:
            pass  # unknown, and nothing is as good as no answer to say so: the client asks again
        except guest.Fenced as error:
            stop(error)
        finally:
            writer.close()

    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop)
    server = await asyncio.start_server(talk, "127.0.0.1", port)
    print(f"{bank.me.name}: {bank.count()} transfers so far, sum {bank.sum()}; serving 127.0.0.1:{port}", flush=True)
    async with server:
        await stopped


def main() -> None:
    parser = argparse.ArgumentParser(description="A bank whose money survives.")
    acks = ("local", "replicated")
    parser.add_argument("--ack", choices=acks, help=f"when to answer: by default ${ACK_ENVIRONMENT}, or local")
    ack = parser.parse_args().ack or os.environ.get(ACK_ENVIRONMENT) or "local"
    if ack not in acks:
        sys.exit(f"ledger: {ACK_ENVIRONMENT} is {ack}: choose {' or '.join(acks)}")
    me = guest.attach_async()
    if not me.port:
        sys.exit("the ledger serves a TCP port: run it with --publish PORT")
    try:
        asyncio.run(serve(Bank(me), me.port, ack_replicated=ack == "replicated"))
    except (guest.GuestError, OSError) as error:
        sys.exit(f"ledger: {error}")


if __name__ == "__main__":
    main()
