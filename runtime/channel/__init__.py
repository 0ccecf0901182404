"""The channel: one-sided access to the memory of other hosts. `contract` says what it promises; begin there.

    contract            the verbs: regions, queue pairs, work requests, completions
    host_channel        one host's channel: its carriers, and which of them leads to a peer
    protection_domain   what is registered, for every carrier; `generations` is the table that says what is valid
    completions, turns  the completion queue, and the order of requests
    addresses           where peers connect

Carriers: `shared_memory` and `shared_memory_pair` between hosts of one computer, with `frames` (what they say to each
other) and `seqpacket` (the sockets); `tcp`, `tcp_responder` and `tcp_pair` between computers, with `tcp_frames`,
`tcp_framing` and `tcp_sockets`; `everram.runtime.simulation.channel` is the simulated one.
"""
