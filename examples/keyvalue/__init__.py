"""The parts of `examples/kv.py`, a server of the Redis protocol whose data survives.

    bytes of a client -> resp (requests) -> commands (strings, keys, about) -> store (keys in a hash index)
    -> heap (blocks in a region, one transaction for all that was read together) -> server (answers, once promised)

All but `server` know neither clocks nor sockets.
"""
