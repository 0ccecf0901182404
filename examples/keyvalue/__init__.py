"""The parts of `examples/kv.py`, a server of the Redis protocol whose data survives.

    bytes of a client -> resp (requests) -> commands (what each does) -> store (keys in a hash index) -> heap (blocks
    in a region, one transaction for all that was read together) -> server (answers leave when they are promised)

`heap`, `store`, `resp` and `commands` know neither clocks nor sockets; `server` is their only actor.
"""
