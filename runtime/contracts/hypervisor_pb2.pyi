from everram.runtime.contracts import common_pb2 as _common_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class RegionAct(_message.Message):
    __slots__ = ("guest", "region", "snapshot", "name", "size_bytes", "kind")
    GUEST_FIELD_NUMBER: _ClassVar[int]
    REGION_FIELD_NUMBER: _ClassVar[int]
    SNAPSHOT_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    guest: str
    region: str
    snapshot: str
    name: str
    size_bytes: int
    kind: _common_pb2.RegionKind
    def __init__(self, guest: _Optional[str] = ..., region: _Optional[str] = ..., snapshot: _Optional[str] = ..., name: _Optional[str] = ..., size_bytes: _Optional[int] = ..., kind: _Optional[_Union[_common_pb2.RegionKind, str]] = ...) -> None: ...

class TakeOverRequest(_message.Message):
    __slots__ = ("guest_id", "epoch")
    GUEST_ID_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    guest_id: str
    epoch: int
    def __init__(self, guest_id: _Optional[str] = ..., epoch: _Optional[int] = ...) -> None: ...

class DemoteRequest(_message.Message):
    __slots__ = ("guest_id", "epoch", "start", "host")
    GUEST_ID_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    START_FIELD_NUMBER: _ClassVar[int]
    HOST_FIELD_NUMBER: _ClassVar[int]
    guest_id: str
    epoch: int
    start: int
    host: str
    def __init__(self, guest_id: _Optional[str] = ..., epoch: _Optional[int] = ..., start: _Optional[int] = ..., host: _Optional[str] = ...) -> None: ...

class MoveRequest(_message.Message):
    __slots__ = ("guest", "host")
    GUEST_FIELD_NUMBER: _ClassVar[int]
    HOST_FIELD_NUMBER: _ClassVar[int]
    guest: str
    host: str
    def __init__(self, guest: _Optional[str] = ..., host: _Optional[str] = ...) -> None: ...

class GuestName(_message.Message):
    __slots__ = ("guest",)
    GUEST_FIELD_NUMBER: _ClassVar[int]
    guest: str
    def __init__(self, guest: _Optional[str] = ...) -> None: ...

class GuestList(_message.Message):
    __slots__ = ("guests",)
    GUESTS_FIELD_NUMBER: _ClassVar[int]
    guests: _containers.RepeatedCompositeFieldContainer[_common_pb2.Guest]
    def __init__(self, guests: _Optional[_Iterable[_Union[_common_pb2.Guest, _Mapping]]] = ...) -> None: ...

class RegionList(_message.Message):
    __slots__ = ("regions",)
    REGIONS_FIELD_NUMBER: _ClassVar[int]
    regions: _containers.RepeatedCompositeFieldContainer[_common_pb2.Region]
    def __init__(self, regions: _Optional[_Iterable[_Union[_common_pb2.Region, _Mapping]]] = ...) -> None: ...

class StopRequest(_message.Message):
    __slots__ = ("guest", "grace_s")
    GUEST_FIELD_NUMBER: _ClassVar[int]
    GRACE_S_FIELD_NUMBER: _ClassVar[int]
    guest: str
    grace_s: float
    def __init__(self, guest: _Optional[str] = ..., grace_s: _Optional[float] = ...) -> None: ...

class FailRequest(_message.Message):
    __slots__ = ("guest", "reason")
    GUEST_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    guest: str
    reason: str
    def __init__(self, guest: _Optional[str] = ..., reason: _Optional[str] = ...) -> None: ...

class RemoveRequest(_message.Message):
    __slots__ = ("guest", "regions", "force")
    GUEST_FIELD_NUMBER: _ClassVar[int]
    REGIONS_FIELD_NUMBER: _ClassVar[int]
    FORCE_FIELD_NUMBER: _ClassVar[int]
    guest: str
    regions: bool
    force: bool
    def __init__(self, guest: _Optional[str] = ..., regions: _Optional[bool] = ..., force: _Optional[bool] = ...) -> None: ...

class LogsRequest(_message.Message):
    __slots__ = ("guest", "follow", "tail_lines", "offset")
    GUEST_FIELD_NUMBER: _ClassVar[int]
    FOLLOW_FIELD_NUMBER: _ClassVar[int]
    TAIL_LINES_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    guest: str
    follow: bool
    tail_lines: int
    offset: int
    def __init__(self, guest: _Optional[str] = ..., follow: _Optional[bool] = ..., tail_lines: _Optional[int] = ..., offset: _Optional[int] = ...) -> None: ...

class LogChunk(_message.Message):
    __slots__ = ("data", "offset")
    DATA_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    data: bytes
    offset: int
    def __init__(self, data: _Optional[bytes] = ..., offset: _Optional[int] = ...) -> None: ...
