"""A bank whose money survives: accounts in a region, transfers as transactions, served over TCP.

    everram run --name bank --region ledger=16MiB --publish 7777 -- python examples/ledger.py

One request a line, one line back, `OK ...` or `ERR plain words` (try it with `nc 127.0.0.1 7777`):

    TRANSFER from to amount CLIENT:SEQUENCE    OK lsn    done, and everything before `lsn` is committed
    BALANCE account                            OK balance
    SUM                                        OK the sum of all balances, which never changes
    COUNT                                      OK how many transfers were done
    LAST client                                OK the sequence number of its last transfer that was done; 0: none
    PING                                       OK

Each transfer is done exactly once: the bank remembers a client's last sequence number in the same transaction. A client
that did not get its answer sends the same line again, to this or any later incarnation, and gets `OK` either way.
"""

from __future__ import annotations

import asyncio
import signal
import struct
import sys

from everram.runtime import guest

ACCOUNTS = 100
OPENING_BALANCE = 1000
LINE_BYTES_MAX = 256

# What lies where in the region. All of it begins as zeros.
ACCOUNTS_AT, COUNT_AT = 0, 8
BALANCES_AT = 64
CLIENTS_AT = 4096
WORD = struct.Struct("<q")
CLIENT = struct.Struct("<q56s")
"""Its last sequence number and its name; an empty name: nobody has this place yet."""
NAME_BYTES_MAX = 56


class Refused(Exception):
    """A request that the bank cannot do; the message tells its client why."""


class Bank:
    """The accounts in a guest's region `ledger`, opened with the first incarnation."""

    def __init__(self, me: guest.AsyncGuest) -> None:
        self.me = me
        self.region = me.region("ledger")
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
            _, name = CLIENT.unpack(self.region.load(at, CLIENT.size))
            if not name.strip(b"\0"):
                break
            self.clients[name.rstrip(b"\0").decode()] = at
            at += CLIENT.size
        return at

    def transfer(self, source: int, target: int, amount: int, client: str, sequence: int) -> int:
        """Move money once, however often it is asked for; returns an LSN before which that is committed."""
        done = self.last(client)
        if sequence == done:
            return self.me.core.lsn
        if sequence < done:
            raise Refused(f"client {client} is at {done} already: {sequence} is in the past")
        if source == target or amount <= 0:
            raise Refused("a transfer moves more than 0 between two different accounts")
        balance = self.balance(source)
        if balance < amount:
            raise Refused(f"account {source} has only {balance}")
        at = self._client_at(client)
        with self.me.transaction() as tx:  # all of this, or nothing
            tx.store(self.region, _balance_at(source), WORD.pack(balance - amount))
            tx.store(self.region, _balance_at(target), WORD.pack(self.balance(target) + amount))
            tx.store(self.region, COUNT_AT, WORD.pack(self.count() + 1))
            tx.store(self.region, at, CLIENT.pack(sequence, client.encode()))
        if client not in self.clients:
            self.clients[client] = at
            self.free_at = at + CLIENT.size
        return tx.lsn

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
            case ["PING"]:
                return "OK"
        return "ERR say TRANSFER from to amount CLIENT:SEQUENCE, BALANCE account, SUM, COUNT, LAST client, or PING"
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


async def serve(bank: Bank, port: int) -> None:
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
                for line in lines:
                    writer.write(answer(bank, line).encode() + b"\n")
                await writer.drain()
        except ConnectionError:
            pass  # the client has gone; what it asked for before is done
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
    me = guest.attach_async()
    if not me.port:
        sys.exit("the ledger serves a TCP port: run it with --publish PORT")
    try:
        asyncio.run(serve(Bank(me), me.port))
    except (guest.GuestError, OSError) as error:
        sys.exit(f"ledger: {error}")


if __name__ == "__main__":
    main()
