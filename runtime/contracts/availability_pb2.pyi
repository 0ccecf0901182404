from everram.runtime.contracts import common_pb2 as _common_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Members(_message.Message):
    __slots__ = ("guest_id", "epoch", "required")
    GUEST_ID_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    REQUIRED_FIELD_NUMBER: _ClassVar[int]
    guest_id: str
    epoch: int
    required: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, guest_id: _Optional[str] = ..., epoch: _Optional[int] = ..., required: _Optional[_Iterable[str]] = ...) -> None: ...

class AimRequest(_message.Message):
    __slots__ = ("guest_id", "host")
    GUEST_ID_FIELD_NUMBER: _ClassVar[int]
    HOST_FIELD_NUMBER: _ClassVar[int]
    guest_id: str
    host: str
    def __init__(self, guest_id: _Optional[str] = ..., host: _Optional[str] = ...) -> None: ...

class HandToRequest(_message.Message):
    __slots__ = ("guest_id", "epoch", "host")
    GUEST_ID_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    HOST_FIELD_NUMBER: _ClassVar[int]
    guest_id: str
    epoch: int
    host: str
    def __init__(self, guest_id: _Optional[str] = ..., epoch: _Optional[int] = ..., host: _Optional[str] = ...) -> None: ...

class Registration(_message.Message):
    __slots__ = ("guest",)
    GUEST_FIELD_NUMBER: _ClassVar[int]
    guest: _common_pb2.Guest
    def __init__(self, guest: _Optional[_Union[_common_pb2.Guest, _Mapping]] = ...) -> None: ...

class GuestKey(_message.Message):
    __slots__ = ("guest_id", "epoch", "again")
    GUEST_ID_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    AGAIN_FIELD_NUMBER: _ClassVar[int]
    guest_id: str
    epoch: int
    again: bool
    def __init__(self, guest_id: _Optional[str] = ..., epoch: _Optional[int] = ..., again: _Optional[bool] = ...) -> None: ...

class ReachedGuest(_message.Message):
    __slots__ = ("guest_id", "epoch", "limits")
    GUEST_ID_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    LIMITS_FIELD_NUMBER: _ClassVar[int]
    guest_id: str
    epoch: int
    limits: GuestLimits
    def __init__(self, guest_id: _Optional[str] = ..., epoch: _Optional[int] = ..., limits: _Optional[_Union[GuestLimits, _Mapping]] = ...) -> None: ...

class GuestLimits(_message.Message):
    __slots__ = ("guest_id", "min_bytes", "max_bytes")
    GUEST_ID_FIELD_NUMBER: _ClassVar[int]
    MIN_BYTES_FIELD_NUMBER: _ClassVar[int]
    MAX_BYTES_FIELD_NUMBER: _ClassVar[int]
    guest_id: str
    min_bytes: int
    max_bytes: int
    def __init__(self, guest_id: _Optional[str] = ..., min_bytes: _Optional[int] = ..., max_bytes: _Optional[int] = ...) -> None: ...

class MemoryFigures(_message.Message):
    __slots__ = ("available_bytes", "guests", "unpromised_bytes")
    AVAILABLE_BYTES_FIELD_NUMBER: _ClassVar[int]
    GUESTS_FIELD_NUMBER: _ClassVar[int]
    UNPROMISED_BYTES_FIELD_NUMBER: _ClassVar[int]
    available_bytes: int
    guests: _containers.RepeatedCompositeFieldContainer[GuestWorkingSet]
    unpromised_bytes: int
    def __init__(self, available_bytes: _Optional[int] = ..., guests: _Optional[_Iterable[_Union[GuestWorkingSet, _Mapping]]] = ..., unpromised_bytes: _Optional[int] = ...) -> None: ...

class GuestWorkingSet(_message.Message):
    __slots__ = ("guest_id", "working_set_bytes", "memory_bytes")
    GUEST_ID_FIELD_NUMBER: _ClassVar[int]
    WORKING_SET_BYTES_FIELD_NUMBER: _ClassVar[int]
    MEMORY_BYTES_FIELD_NUMBER: _ClassVar[int]
    guest_id: str
    working_set_bytes: int
    memory_bytes: int
    def __init__(self, guest_id: _Optional[str] = ..., working_set_bytes: _Optional[int] = ..., memory_bytes: _Optional[int] = ...) -> None: ...

class HoldRequest(_message.Message):
    __slots__ = ("guest_id", "drained")
    GUEST_ID_FIELD_NUMBER: _ClassVar[int]
    DRAINED_FIELD_NUMBER: _ClassVar[int]
    guest_id: str
    drained: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, guest_id: _Optional[str] = ..., drained: _Optional[_Iterable[str]] = ...) -> None: ...

class WaitingGuest(_message.Message):
    __slots__ = ("guest_id", "name", "host")
    GUEST_ID_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    HOST_FIELD_NUMBER: _ClassVar[int]
    guest_id: str
    name: str
    host: str
    def __init__(self, guest_id: _Optional[str] = ..., name: _Optional[str] = ..., host: _Optional[str] = ...) -> None: ...

class LeaseStatus(_message.Message):
    __slots__ = ("lease_id", "ttl_s", "remaining_s", "renewals", "failures", "held", "leader", "waiting")
    LEASE_ID_FIELD_NUMBER: _ClassVar[int]
    TTL_S_FIELD_NUMBER: _ClassVar[int]
    REMAINING_S_FIELD_NUMBER: _ClassVar[int]
    RENEWALS_FIELD_NUMBER: _ClassVar[int]
    FAILURES_FIELD_NUMBER: _ClassVar[int]
    HELD_FIELD_NUMBER: _ClassVar[int]
    LEADER_FIELD_NUMBER: _ClassVar[int]
    WAITING_FIELD_NUMBER: _ClassVar[int]
    lease_id: int
    ttl_s: float
    remaining_s: float
    renewals: int
    failures: int
    held: bool
    leader: str
    waiting: _containers.RepeatedCompositeFieldContainer[WaitingGuest]
    def __init__(self, lease_id: _Optional[int] = ..., ttl_s: _Optional[float] = ..., remaining_s: _Optional[float] = ..., renewals: _Optional[int] = ..., failures: _Optional[int] = ..., held: _Optional[bool] = ..., leader: _Optional[str] = ..., waiting: _Optional[_Iterable[_Union[WaitingGuest, _Mapping]]] = ...) -> None: ...
