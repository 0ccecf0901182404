"""The link's session: whatever a network does to batches, what arrives is a prefix, in order, once."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from google.protobuf import descriptor_pb2, message_factory
from hypothesis import given
from hypothesis import strategies as st

from everram.runtime.contracts import common_pb2, link_pb2
from everram.runtime.errors import FailedPrecondition
from everram.runtime.transport.link import Heartbeat, Identity, LinkBroken, LinkSession, Watch

ONE = Identity("c1", "h1", "id-1", "i-1")
TWO = Identity("c1", "h2", "id-2", "i-2")


def numbered(*ids: int) -> link_pb2.Batch:
    batch = link_pb2.Batch()
    for id in ids:
        batch.frames.add(kind=link_pb2.Frame.TELL, id=id)
    return batch


def pair() -> tuple[LinkSession, LinkSession]:
    """Opener and acceptor after their hello."""
    opener, acceptor = LinkSession(ONE, "s"), LinkSession(TWO, "")
    acceptor.decode(opener.encode(link_pb2.Batch()))
    opener.decode(acceptor.encode(link_pb2.Batch()))
    return opener, acceptor


def test_hello_both_ways() -> None:
    opener, acceptor = pair()
    assert opener.peer is not None
    assert acceptor.peer is not None
    assert (opener.peer.host, acceptor.peer.host, acceptor.session) == ("h2", "h1", "s")


# What the network does with each batch: how often it arrives, and how far it is moved back.
Fate = st.tuples(st.sampled_from([1, 1, 1, 1, 0, 2, 3]), st.sampled_from([0, 0, 0, 1, 2, 5]))


@given(st.lists(st.tuples(st.integers(0, 3), Fate), max_size=30))
def test_loss_duplication_and_reordering_give_a_prefix_or_a_broken_stream(
    traffic: list[tuple[int, tuple[int, int]]],
) -> None:
    opener, acceptor = pair()
    sent: list[int] = []
    arrivals: list[tuple[int, bytes]] = []
    for position, (frames, (copies, delay)) in enumerate(traffic):
        ids = list(range(len(sent), len(sent) + frames))
        sent += ids
        data = opener.encode(numbered(*ids))
        arrivals += [(position + delay * copy if copies > 1 else position + delay, data) for copy in range(copies)]
    arrivals.sort(key=lambda arrival: arrival[0])
    received: list[int] = []
    broken = False
    for _, data in arrivals:
        try:
            batch = acceptor.decode(data)
        except LinkBroken:
            broken = True
            break
        if batch is not None:
            received += [frame.id for frame in batch.frames]
    assert received == sent[: len(received)]
    harmless = all(copies >= 1 and delay == 0 for _, (copies, delay) in traffic)
    if harmless:
        assert not broken
        assert received == sent


@given(st.binary(max_size=200))
def test_any_bytes_break_the_stream_or_say_nothing(data: bytes) -> None:
    _, acceptor = pair()
    try:
        batch = acceptor.decode(data)
    except (LinkBroken, FailedPrecondition):
        return
    assert batch is None or batch.sequence == 2


def test_no_changed_bit_goes_unnoticed() -> None:
    opener, acceptor = LinkSession(ONE, "s"), LinkSession(TWO, "")
    hello, data = opener.encode(link_pb2.Batch()), opener.encode(numbered(5))
    for changed in changed_bits(hello):
        with pytest.raises(LinkBroken):
            LinkSession(TWO, "").decode(changed)
    acceptor.decode(hello)
    for changed in changed_bits(data):
        with pytest.raises(LinkBroken):
            acceptor.decode(changed)
    batch = acceptor.decode(data)
    assert batch is not None and batch.frames[0].id == 5


def changed_bits(data: bytes) -> Iterator[bytes]:
    """The data with one bit changed, each bit in its turn."""
    for bit in range(8 * len(data)):
        changed = bytearray(data)
        changed[bit // 8] ^= 1 << bit % 8
        yield bytes(changed)


def test_an_older_peer_sends_no_checksum() -> None:
    hello = link_pb2.Hello(cluster_id="c1", host="h1", session="s", protocol=2)
    acceptor = LinkSession(TWO, "")
    acceptor.decode(link_pb2.Batch(sequence=1, hello=hello).SerializeToString())
    assert acceptor.decode(link_pb2.Batch(sequence=2).SerializeToString()) is not None


def test_a_peer_of_protocol_2_reads_what_is_sent_now() -> None:
    """As it was declared then, without a checksum; a field that it does not know is passed over."""
    files = descriptor_pb2.FileDescriptorSet()
    for module in (common_pb2, link_pb2):
        module.DESCRIPTOR.CopyToProto(files.file.add())
    batch = next(message for message in files.file[1].message_type if message.name == "Batch")
    kept = [field for field in batch.field if field.name != "checksum"]
    del batch.field[:], batch.oneof_decl[:]
    batch.field.extend(kept)
    old = message_factory.GetMessages(files.file)["everram.v1.Batch"]
    opener, _ = pair()
    read = old.FromString(opener.encode(numbered(5, 6)))
    assert (read.sequence, [frame.id for frame in read.frames]) == (2, [5, 6])
    assert old.FromString(LinkSession(ONE, "s").encode(link_pb2.Batch())).hello.host == "h1"


def test_the_first_batch_needs_a_hello() -> None:
    batch = link_pb2.Batch(sequence=1)
    with pytest.raises(LinkBroken, match="no hello"):
        LinkSession(TWO, "").decode(batch.SerializeToString())


def test_another_cluster_is_refused_by_name() -> None:
    stranger = LinkSession(Identity("c2", "h1", "id-1", "i"), "s")
    with pytest.raises(FailedPrecondition, match="h1 belongs to cluster c2, not to c1"):
        LinkSession(TWO, "").decode(stranger.encode(link_pb2.Batch()))


def test_a_protocol_too_old_is_refused_with_both_versions() -> None:
    hello = link_pb2.Hello(cluster_id="c1", host="h1", session="s", protocol=0)
    with pytest.raises(FailedPrecondition, match="speaks link protocol 0, this one 1 to 3"):
        LinkSession(TWO, "").decode(link_pb2.Batch(sequence=1, hello=hello).SerializeToString())


def test_an_answer_for_another_stream_is_refused() -> None:
    opener, acceptor = LinkSession(ONE, "s"), LinkSession(TWO, "other")
    with pytest.raises(LinkBroken, match="another stream"):
        opener.decode(acceptor.encode(link_pb2.Batch()))


def test_heartbeats_are_due_only_in_silence_and_only_if_wanted() -> None:
    assert not Heartbeat(0.0).due(100.0)
    heartbeat = Heartbeat(0.05)
    heartbeat.sent(1.0)
    assert not heartbeat.due(1.04)
    assert heartbeat.due(1.05)


def ticked(watch: Watch, start_s: float, times: int, every_s: float = 0.025) -> None:
    for n in range(1, times + 1):
        watch.tick(start_s + n * every_s, 0.025)


def test_silence_makes_suspect_and_hearing_clears_it() -> None:
    watch = Watch(0.3, 0.0)
    ticked(watch, 0.0, 11)
    assert not watch.suspect
    ticked(watch, 0.275, 2)
    assert watch.suspect
    watch.heard(0.4)
    assert not watch.suspect


def test_a_watcher_that_was_late_itself_accuses_nobody() -> None:
    watch = Watch(0.3, 0.0)
    watch.tick(2.0, 0.025)  # stopped for two seconds
    assert not watch.suspect
    ticked(watch, 2.0, 13)
    assert watch.suspect  # but real silence afterwards still counts


def test_the_end_of_the_stream_is_suspicion_at_once() -> None:
    watch = Watch(0.3, 0.0)
    watch.ended()
    assert watch.suspect
