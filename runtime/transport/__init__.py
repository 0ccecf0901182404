"""How messages travel. One message, from ask to reply:

    in a host          ref -> mailbox -> handler -> future
    between hosts      ref -> outbound -> batch -> stream -> inbound -> mailbox -> handler -> control -> batch -> future
    from outside       ref -> channel carrier -> gRPC -> front -> mailbox -> handler -> front -> gRPC

`link` is the protocol of a stream without any I/O, `outbound` and `inbound` are the asking and the serving side of
one peer, `peer` owns the stream between, `links` all peers of a host. `front` serves gRPC, `channel_carrier` is its
client. Which of them carried a message shows neither in the code that asks nor in the error that comes back.
"""
