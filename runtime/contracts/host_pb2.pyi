from everram.runtime.contracts import common_pb2 as _common_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class EchoMessage(_message.Message):
    __slots__ = ("value", "payload")
    VALUE_FIELD_NUMBER: _ClassVar[int]
    PAYLOAD_FIELD_NUMBER: _ClassVar[int]
    value: int
    payload: bytes
    def __init__(self, value: _Optional[int] = ..., payload: _Optional[bytes] = ...) -> None: ...

class HostStatus(_message.Message):
    __slots__ = ("cluster", "host", "host_id", "memory_id", "version", "pid", "actors", "missing", "memory_capacity_bytes", "memory_allocated_bytes", "uptime_s", "links", "channels", "channel_refused")
    CLUSTER_FIELD_NUMBER: _ClassVar[int]
    HOST_FIELD_NUMBER: _ClassVar[int]
    HOST_ID_FIELD_NUMBER: _ClassVar[int]
    MEMORY_ID_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    PID_FIELD_NUMBER: _ClassVar[int]
    ACTORS_FIELD_NUMBER: _ClassVar[int]
    MISSING_FIELD_NUMBER: _ClassVar[int]
    MEMORY_CAPACITY_BYTES_FIELD_NUMBER: _ClassVar[int]
    MEMORY_ALLOCATED_BYTES_FIELD_NUMBER: _ClassVar[int]
    UPTIME_S_FIELD_NUMBER: _ClassVar[int]
    LINKS_FIELD_NUMBER: _ClassVar[int]
    CHANNELS_FIELD_NUMBER: _ClassVar[int]
    CHANNEL_REFUSED_FIELD_NUMBER: _ClassVar[int]
    cluster: str
    host: str
    host_id: str
    memory_id: str
    version: str
    pid: int
    actors: _containers.RepeatedCompositeFieldContainer[ActorStatus]
    missing: _containers.RepeatedScalarFieldContainer[str]
    memory_capacity_bytes: int
    memory_allocated_bytes: int
    uptime_s: float
    links: _containers.RepeatedCompositeFieldContainer[LinkStatus]
    channels: _containers.RepeatedCompositeFieldContainer[ChannelStatus]
    channel_refused: int
    def __init__(self, cluster: _Optional[str] = ..., host: _Optional[str] = ..., host_id: _Optional[str] = ..., memory_id: _Optional[str] = ..., version: _Optional[str] = ..., pid: _Optional[int] = ..., actors: _Optional[_Iterable[_Union[ActorStatus, _Mapping]]] = ..., missing: _Optional[_Iterable[str]] = ..., memory_capacity_bytes: _Optional[int] = ..., memory_allocated_bytes: _Optional[int] = ..., uptime_s: _Optional[float] = ..., links: _Optional[_Iterable[_Union[LinkStatus, _Mapping]]] = ..., channels: _Optional[_Iterable[_Union[ChannelStatus, _Mapping]]] = ..., channel_refused: _Optional[int] = ...) -> None: ...

class ChannelStatus(_message.Message):
    __slots__ = ("peer", "carrier")
    PEER_FIELD_NUMBER: _ClassVar[int]
    CARRIER_FIELD_NUMBER: _ClassVar[int]
    peer: str
    carrier: str
    def __init__(self, peer: _Optional[str] = ..., carrier: _Optional[str] = ...) -> None: ...

class ActorStatus(_message.Message):
    __slots__ = ("service", "state", "handled", "queued", "restarts")
    SERVICE_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    HANDLED_FIELD_NUMBER: _ClassVar[int]
    QUEUED_FIELD_NUMBER: _ClassVar[int]
    RESTARTS_FIELD_NUMBER: _ClassVar[int]
    service: str
    state: str
    handled: int
    queued: int
    restarts: int
    def __init__(self, service: _Optional[str] = ..., state: _Optional[str] = ..., handled: _Optional[int] = ..., queued: _Optional[int] = ..., restarts: _Optional[int] = ...) -> None: ...

class LinkStatus(_message.Message):
    __slots__ = ("peer", "state", "sent", "received")
    PEER_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    SENT_FIELD_NUMBER: _ClassVar[int]
    RECEIVED_FIELD_NUMBER: _ClassVar[int]
    peer: str
    state: str
    sent: int
    received: int
    def __init__(self, peer: _Optional[str] = ..., state: _Optional[str] = ..., sent: _Optional[int] = ..., received: _Optional[int] = ...) -> None: ...
