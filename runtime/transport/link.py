"""The link's session: what two hosts say to each other on one stream of batches, without any I/O.

    opener    Batch 1: hello, nothing else             ->
              <-                                          Batch 1: hello, and what is queued    acceptor
              Batch 2: what queued up meanwhile        ->

Batches of one direction are numbered from 1: a duplicate is ignored, a gap ends the stream, so what arrives is a
prefix of what was sent, in order and once. Each ends with its checksum: one that was damaged on its way ends the
stream, and nothing in it is looked at. The opener sends no frame before it has the acceptor's hello: a stream
that is refused has carried nothing. `Heartbeat` says when an otherwise silent side has to speak, `Watch` when a
silent peer is suspect.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass

from google.protobuf.message import DecodeError

from everram.runtime.contracts import link_pb2
from everram.runtime.errors import EverramError, FailedPrecondition, Unavailable

PROTOCOL = 3
"""Version of proto/link.proto that this side speaks."""
LEAVING_SINCE = 2
"""Version from which on a peer answers LEAVING by LEFT."""
CHECKSUM_SINCE = 3
"""Version from which on every batch has a checksum; an older peer passes over it, as over any unknown field."""
OLDEST_PROTOCOL = 1
"""The newer side speaks the older one's version, down to this."""

BATCH_FRAMES = 256
"""Frames in one batch: more gain nothing, and the first waits for the last."""
BATCH_BYTES = 1 << 20
"""Payload after which a batch is closed; a single message may be larger."""
MAX_MESSAGE_BYTES = 16 << 20
"""One message. Bulk bytes belong on the channel, not on the link."""
MAX_BATCH_BYTES = MAX_MESSAGE_BYTES + 2 * BATCH_BYTES
"""What a receiver must be ready to take: a nearly full batch, one more message, and the frames' own fields."""
_CHECKSUM_TAG = bytes([link_pb2.Batch.CHECKSUM_FIELD_NUMBER << 3 | 5])
"""As protobuf writes a field of four bytes, so that a checked batch is a batch."""
_CHECKSUM_BYTES = len(_CHECKSUM_TAG) + 4


@dataclass(frozen=True, slots=True)
class Identity:
    """Who a host is to its peers."""

    cluster_id: str
    host: str
    host_id: str
    incarnation: str
    """New for every start of the host's process."""


class LinkBroken(Unavailable):
    """The peer did not keep to the protocol, or batches are missing: the stream has to end."""


class LinkSession:
    """Both directions of one stream."""

    def __init__(self, me: Identity, session: str, *, replaces: str = "") -> None:
        """`session`: the stream's identity; empty for the acceptor, who takes the opener's."""
        self.me = me
        self.session = session
        self.peer: link_pb2.Hello | None = None  # once its hello has arrived
        self._replaces = replaces
        self._last_sent = 0  # number of the last batch sent
        self._last_received = 0

    def encode(self, batch: link_pb2.Batch) -> bytes:
        """The next batch to send: numbered and checked here, the first one with our hello."""
        self._last_sent += 1
        batch.sequence = self._last_sent
        if self._last_sent == 1:
            batch.hello.MergeFrom(self._hello())
        data = batch.SerializeToString()
        return b"".join((data, _CHECKSUM_TAG, zlib.crc32(data).to_bytes(4, "little")))

    def _hello(self) -> link_pb2.Hello:
        return link_pb2.Hello(
            cluster_id=self.me.cluster_id,
            host=self.me.host,
            host_id=self.me.host_id,
            incarnation=self.me.incarnation,
            protocol=PROTOCOL,
            session=self.session,
            replaces=self._replaces,
        )

    def decode(self, data: bytes) -> link_pb2.Batch | None:
        """The batch, or None for a duplicate. Raises LinkBroken; FailedPrecondition for a peer of another kind."""
        try:
            batch = link_pb2.Batch.FromString(data)
        except DecodeError:
            raise LinkBroken("the peer sent bytes that are not a batch of the link") from None
        self._verify(batch, data)
        if batch.sequence <= self._last_received:
            return None
        if batch.sequence != self._last_received + 1:
            missing = f"batch {self._last_received + 1} is missing (got {batch.sequence})"
            raise LinkBroken(f"the stream has a gap: {missing}")
        self._last_received = batch.sequence
        if batch.sequence == 1:
            self._take_hello(batch)
        return batch

    def _verify(self, batch: link_pb2.Batch, data: bytes) -> None:
        """Only what comes from an older peer may lack its checksum, and the first batch says how old that is."""
        hello = self.peer or batch.hello
        if hello.protocol < CHECKSUM_SINCE and not batch.HasField("checksum"):
            return
        told, end = data[-_CHECKSUM_BYTES:], len(data) - _CHECKSUM_BYTES
        if told != _CHECKSUM_TAG + zlib.crc32(memoryview(data)[: max(0, end)]).to_bytes(4, "little"):
            raise LinkBroken("a batch was damaged on its way")

    def _take_hello(self, batch: link_pb2.Batch) -> None:
        hello = batch.hello
        if not batch.HasField("hello") or not hello.session:
            raise LinkBroken("the peer's first batch has no hello")
        if self.session and hello.session != self.session:
            raise LinkBroken(f"the peer answered for another stream ({hello.session})")
        self.session = hello.session
        if hello.cluster_id != self.me.cluster_id:
            whose = f"host {hello.host} belongs to cluster {hello.cluster_id}, not to {self.me.cluster_id}"
            raise FailedPrecondition(f"{whose}; check the addresses in the directory")
        if hello.protocol < OLDEST_PROTOCOL:
            spoken = f"{OLDEST_PROTOCOL} to {PROTOCOL}"
            raise FailedPrecondition(f"host {hello.host} speaks link protocol {hello.protocol}, this one {spoken}")
        self.peer = hello


@dataclass(slots=True)
class Heartbeat:
    """When this side has to say something because its peer wants to hear it."""

    interval_s: float = 0.0
    """What the peer asked for; 0: nothing."""
    sent_s: float = 0.0

    def sent(self, now_s: float) -> None:
        self.sent_s = now_s

    def due(self, now_s: float) -> bool:
        return self.interval_s > 0 and now_s - self.sent_s >= self.interval_s


class Watch:
    """Whether a peer from which heartbeats are wanted is suspect. Suspicion never revokes anything by itself."""

    __slots__ = ("_deadline_s", "_suspect_after_s", "_ticked_s", "suspect")

    def __init__(self, suspect_after_s: float, now_s: float) -> None:
        self._suspect_after_s = suspect_after_s
        self._deadline_s = now_s + suspect_after_s  # silence until then is fine
        self._ticked_s = now_s
        self.suspect = False

    def heard(self, now_s: float) -> None:
        self._deadline_s = now_s + self._suspect_after_s
        self.suspect = False

    def ended(self) -> None:
        """The stream has ended, or cannot be opened."""
        self.suspect = True

    def tick(self, now_s: float, expected_s: float) -> None:
        """To be called every `expected_s`. If this call is late, so may be the reading of what the peer did send: the
        deadline moves by as much, or a busy watcher would suspect everybody."""
        late_s = now_s - self._ticked_s - expected_s
        self._ticked_s = now_s
        if late_s > 0:
            self._deadline_s += late_s
        if now_s > self._deadline_s:
            self.suspect = True


def as_broken(error: EverramError, host: str, *, unknown: bool) -> Unavailable:
    """The end of a link as the error of one ask that was on its way."""
    if unknown:
        return Unavailable(f"the link to {host} ended before the answer came: {error.message}", unknown=True)
    return Unavailable(f"host {host} cannot be reached: {error.message}")
