from everram.runtime.contracts import common_pb2 as _common_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class FollowRequest(_message.Message):
    __slots__ = ("guest_id", "log")
    GUEST_ID_FIELD_NUMBER: _ClassVar[int]
    LOG_FIELD_NUMBER: _ClassVar[int]
    guest_id: str
    log: str
    def __init__(self, guest_id: _Optional[str] = ..., log: _Optional[str] = ...) -> None: ...

class Destination(_message.Message):
    __slots__ = ("host", "memory_id", "required")
    HOST_FIELD_NUMBER: _ClassVar[int]
    MEMORY_ID_FIELD_NUMBER: _ClassVar[int]
    REQUIRED_FIELD_NUMBER: _ClassVar[int]
    host: str
    memory_id: str
    required: bool
    def __init__(self, host: _Optional[str] = ..., memory_id: _Optional[str] = ..., required: _Optional[bool] = ...) -> None: ...

class ShipRequest(_message.Message):
    __slots__ = ("guest", "destinations", "required")
    GUEST_FIELD_NUMBER: _ClassVar[int]
    DESTINATIONS_FIELD_NUMBER: _ClassVar[int]
    REQUIRED_FIELD_NUMBER: _ClassVar[int]
    guest: _common_pb2.Guest
    destinations: _containers.RepeatedCompositeFieldContainer[Destination]
    required: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, guest: _Optional[_Union[_common_pb2.Guest, _Mapping]] = ..., destinations: _Optional[_Iterable[_Union[Destination, _Mapping]]] = ..., required: _Optional[_Iterable[str]] = ...) -> None: ...

class DrainRequest(_message.Message):
    __slots__ = ("guest_id", "memory_id")
    GUEST_ID_FIELD_NUMBER: _ClassVar[int]
    MEMORY_ID_FIELD_NUMBER: _ClassVar[int]
    guest_id: str
    memory_id: str
    def __init__(self, guest_id: _Optional[str] = ..., memory_id: _Optional[str] = ...) -> None: ...

class OpenRequest(_message.Message):
    __slots__ = ("guest", "cluster_id", "source_host", "source_memory_id", "memory_id", "capacity_bytes", "epoch_start", "freed", "tail", "applied", "ack_rkey")
    GUEST_FIELD_NUMBER: _ClassVar[int]
    CLUSTER_ID_FIELD_NUMBER: _ClassVar[int]
    SOURCE_HOST_FIELD_NUMBER: _ClassVar[int]
    SOURCE_MEMORY_ID_FIELD_NUMBER: _ClassVar[int]
    MEMORY_ID_FIELD_NUMBER: _ClassVar[int]
    CAPACITY_BYTES_FIELD_NUMBER: _ClassVar[int]
    EPOCH_START_FIELD_NUMBER: _ClassVar[int]
    FREED_FIELD_NUMBER: _ClassVar[int]
    TAIL_FIELD_NUMBER: _ClassVar[int]
    APPLIED_FIELD_NUMBER: _ClassVar[int]
    ACK_RKEY_FIELD_NUMBER: _ClassVar[int]
    guest: _common_pb2.Guest
    cluster_id: str
    source_host: str
    source_memory_id: str
    memory_id: str
    capacity_bytes: int
    epoch_start: int
    freed: int
    tail: int
    applied: int
    ack_rkey: int
    def __init__(self, guest: _Optional[_Union[_common_pb2.Guest, _Mapping]] = ..., cluster_id: _Optional[str] = ..., source_host: _Optional[str] = ..., source_memory_id: _Optional[str] = ..., memory_id: _Optional[str] = ..., capacity_bytes: _Optional[int] = ..., epoch_start: _Optional[int] = ..., freed: _Optional[int] = ..., tail: _Optional[int] = ..., applied: _Optional[int] = ..., ack_rkey: _Optional[int] = ...) -> None: ...

class OpenReply(_message.Message):
    __slots__ = ("copy_id", "rebuild", "lsn", "log_rkey", "region_rkeys", "immediate")
    COPY_ID_FIELD_NUMBER: _ClassVar[int]
    REBUILD_FIELD_NUMBER: _ClassVar[int]
    LSN_FIELD_NUMBER: _ClassVar[int]
    LOG_RKEY_FIELD_NUMBER: _ClassVar[int]
    REGION_RKEYS_FIELD_NUMBER: _ClassVar[int]
    IMMEDIATE_FIELD_NUMBER: _ClassVar[int]
    copy_id: str
    rebuild: bool
    lsn: int
    log_rkey: int
    region_rkeys: _containers.RepeatedScalarFieldContainer[int]
    immediate: int
    def __init__(self, copy_id: _Optional[str] = ..., rebuild: _Optional[bool] = ..., lsn: _Optional[int] = ..., log_rkey: _Optional[int] = ..., region_rkeys: _Optional[_Iterable[int]] = ..., immediate: _Optional[int] = ...) -> None: ...

class CompleteRequest(_message.Message):
    __slots__ = ("guest_id", "copy_id", "epoch", "lsn")
    GUEST_ID_FIELD_NUMBER: _ClassVar[int]
    COPY_ID_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    LSN_FIELD_NUMBER: _ClassVar[int]
    guest_id: str
    copy_id: str
    epoch: int
    lsn: int
    def __init__(self, guest_id: _Optional[str] = ..., copy_id: _Optional[str] = ..., epoch: _Optional[int] = ..., lsn: _Optional[int] = ...) -> None: ...

class PromiseRequest(_message.Message):
    __slots__ = ("guest_id", "epoch")
    GUEST_ID_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    guest_id: str
    epoch: int
    def __init__(self, guest_id: _Optional[str] = ..., epoch: _Optional[int] = ...) -> None: ...

class PromiseReply(_message.Message):
    __slots__ = ("memory_id", "complete", "epoch", "lsn")
    MEMORY_ID_FIELD_NUMBER: _ClassVar[int]
    COMPLETE_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    LSN_FIELD_NUMBER: _ClassVar[int]
    memory_id: str
    complete: bool
    epoch: int
    lsn: int
    def __init__(self, memory_id: _Optional[str] = ..., complete: _Optional[bool] = ..., epoch: _Optional[int] = ..., lsn: _Optional[int] = ...) -> None: ...

class QuiesceRequest(_message.Message):
    __slots__ = ("on",)
    ON_FIELD_NUMBER: _ClassVar[int]
    on: bool
    def __init__(self, on: _Optional[bool] = ...) -> None: ...

class GuestCopy(_message.Message):
    __slots__ = ("guest_id", "copy_id")
    GUEST_ID_FIELD_NUMBER: _ClassVar[int]
    COPY_ID_FIELD_NUMBER: _ClassVar[int]
    guest_id: str
    copy_id: str
    def __init__(self, guest_id: _Optional[str] = ..., copy_id: _Optional[str] = ...) -> None: ...

class HandedOver(_message.Message):
    __slots__ = ("guest", "epoch", "lsn", "copy_id")
    GUEST_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    LSN_FIELD_NUMBER: _ClassVar[int]
    COPY_ID_FIELD_NUMBER: _ClassVar[int]
    guest: _common_pb2.Guest
    epoch: int
    lsn: int
    copy_id: str
    def __init__(self, guest: _Optional[_Union[_common_pb2.Guest, _Mapping]] = ..., epoch: _Optional[int] = ..., lsn: _Optional[int] = ..., copy_id: _Optional[str] = ...) -> None: ...

class CopyList(_message.Message):
    __slots__ = ("copies",)
    COPIES_FIELD_NUMBER: _ClassVar[int]
    copies: _containers.RepeatedCompositeFieldContainer[Copy]
    def __init__(self, copies: _Optional[_Iterable[_Union[Copy, _Mapping]]] = ...) -> None: ...

class Copy(_message.Message):
    __slots__ = ("guest", "copy_id", "promised_epoch", "complete", "epoch", "lsn", "log", "log_epoch", "source_host", "held", "damaged")
    GUEST_FIELD_NUMBER: _ClassVar[int]
    COPY_ID_FIELD_NUMBER: _ClassVar[int]
    PROMISED_EPOCH_FIELD_NUMBER: _ClassVar[int]
    COMPLETE_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    LSN_FIELD_NUMBER: _ClassVar[int]
    LOG_FIELD_NUMBER: _ClassVar[int]
    LOG_EPOCH_FIELD_NUMBER: _ClassVar[int]
    SOURCE_HOST_FIELD_NUMBER: _ClassVar[int]
    HELD_FIELD_NUMBER: _ClassVar[int]
    DAMAGED_FIELD_NUMBER: _ClassVar[int]
    guest: _common_pb2.Guest
    copy_id: str
    promised_epoch: int
    complete: bool
    epoch: int
    lsn: int
    log: str
    log_epoch: int
    source_host: str
    held: int
    damaged: str
    def __init__(self, guest: _Optional[_Union[_common_pb2.Guest, _Mapping]] = ..., copy_id: _Optional[str] = ..., promised_epoch: _Optional[int] = ..., complete: _Optional[bool] = ..., epoch: _Optional[int] = ..., lsn: _Optional[int] = ..., log: _Optional[str] = ..., log_epoch: _Optional[int] = ..., source_host: _Optional[str] = ..., held: _Optional[int] = ..., damaged: _Optional[str] = ...) -> None: ...
