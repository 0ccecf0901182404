"""A key-value server that speaks the Redis protocol, and whose data survives the machine.

    everram run --name kv --region kv=64MiB --publish 6380 -- python examples/kv.py
    redis-cli -p 6380 SET greeting hello

Unmodified clients work: redis-cli, redis-benchmark, redis-py. Strings and expiry are there, other types are not. With
`--ack replicated` (the default) it answers once as many copies hold a change as the guest was run with (`--copies`);
`--ack local` does not wait for them. A connection that ends without an answer means "unknown".

A value takes at most a quarter of the guest's log: 1 MiB, more with `everram run --log SIZE`. How it works:
`examples/keyvalue/`.
"""

from __future__ import annotations

import argparse
import asyncio
import sys

from everram.examples.keyvalue.server import Server
from everram.runtime import guest


async def serve(me: guest.AsyncGuest, region: str, ack: str) -> None:
    await Server(me, me.region(region), ack=ack).serve(me.port)


def main() -> None:
    parser = argparse.ArgumentParser(prog="kv.py", description="A key-value server of the Redis protocol, as a guest.")
    parser.add_argument("--ack", choices=("local", "replicated"), default="replicated", help="when to answer")
    parser.add_argument("--region", default="kv", metavar="NAME", help="where the data lies")
    arguments = parser.parse_args()
    try:
        me = guest.attach_async()
        if not me.port:
            sys.exit("kv.py serves a TCP port: run it with --publish PORT")
        run = asyncio.run
        try:
            import uvloop

            run = uvloop.run
        except ImportError:
            pass  # slower, and no different otherwise
        run(serve(me, arguments.region, arguments.ack))
    except (guest.GuestError, OSError) as error:
        sys.exit(f"kv: {error}")


if __name__ == "__main__":
    main()
