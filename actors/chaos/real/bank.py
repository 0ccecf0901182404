"""The guest of a chaos run: a ledger of the simulation, served over TCP to one teller.

    python -m everram.actors.chaos.real.bank

One request a line, one line back:

    STATE                              OK session epoch count balance,balance,...
    MOVE session number from to amount filler-length    OK epoch replicated(0|1) LSN
    HERE                               OK epoch
    KEEP blocks                        OK epoch blocks looked-at wrong          of its volatile memory (`vault`)

`STATE` begins a session, and whatever an older session still asks is refused: what its teller had sent before it lost
the connection then happens before the answer or never. Every answer but an error is given under the lease.
"""

from __future__ import annotations

import asyncio
import sys

from everram.actors.chaos import ledger_region
from everram.actors.chaos.real.vault import Vault
from everram.runtime import guest

REGION = "data"
WAIT_S = 0.5
"""For the copies, before an answer says that it is not known whether they hold it."""


class Bank:
    def __init__(self, me: guest.AsyncGuest) -> None:
        self._me = me
        self._region = me.region(REGION)
        self._vault = Vault(me.memory)
        self._session = 0
        self.stopped: asyncio.Future[guest.Fenced] = asyncio.get_running_loop().create_future()

    async def talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while line := await reader.readline():
                writer.write(f"{await self._answer(line.decode().split())}\n".encode())
                await writer.drain()
        except ConnectionError:
            pass  # its teller asks again
        except guest.Fenced as error:
            if not self.stopped.done():
                self.stopped.set_result(error)
        finally:
            writer.close()

    async def _answer(self, words: list[str]) -> str:
        me = self._me
        match words:
            case ["HERE"]:
                me.core.check_lease()
                return f"OK {me.epoch}"
            case ["STATE"]:
                me.core.check_lease()
                self._session += 1
                found = ledger_region.read(self._region)
                return f"OK {self._session} {me.epoch} {found.count} {','.join(map(str, found.balances))}"
            case ["MOVE", session, number, source, target, amount, filler]:
                if int(session) != self._session:
                    return "ERR a later session has begun"
                return await self._move(int(number), int(source), int(target), int(amount), int(filler))
            case ["KEEP", blocks]:
                looked, wrong = await self._vault.keep(int(blocks))
                return f"OK {me.epoch} {self._vault.blocks} {looked} {wrong}"
        return "ERR say STATE, MOVE, HERE or KEEP"

    async def _move(self, number: int, source: int, target: int, amount: int, filler: int) -> str:
        me, done = self._me, ledger_region.read(self._region).count
        if number != done + 1:
            return f"ERR the next transfer is {done + 1}"
        try:
            async with me.transaction() as tx:
                ledger_region.transfer(tx, self._region, number, source, target, amount, bytes([number % 251]) * filler)
        except guest.LogFull:
            return "ERR the log is full until a copy has caught up"
        replicated = 0
        if me.core.ring.copies:
            try:
                await me.wait_replicated(tx.lsn, WAIT_S)
                replicated = 1
            except guest.Timeout:
                pass
        return f"OK {me.epoch} {replicated} {tx.lsn}"


async def serve(me: guest.AsyncGuest) -> None:
    bank = Bank(me)
    async with await asyncio.start_server(bank.talk, "127.0.0.1", me.port):
        await bank.stopped


def main() -> None:
    me = guest.attach_async()
    if not me.port:
        sys.exit("bank: it serves a TCP port: run it with --publish PORT")
    asyncio.run(serve(me))


if __name__ == "__main__":
    main()
