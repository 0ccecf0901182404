"""The channel: one-sided access to the memory of other hosts. `contract` says what it promises; begin there.

The owner's half of every carrier is `registry` (regions and immediates) on `generations` (the table by which peers see
what is revoked). `shared_memory` and `shared_memory_pair` are the carrier between hosts of one computer, with `frames`
(what they say to each other) and `seqpacket` (the sockets); `everram.runtime.simulation.channel` is the simulated one.
"""
