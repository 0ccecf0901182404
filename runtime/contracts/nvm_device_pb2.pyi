from everram.runtime.contracts import common_pb2 as _common_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class CreateRegionsRequest(_message.Message):
    __slots__ = ("guest_id", "regions", "log_bytes", "copy_id", "log_start", "log_epoch", "log_id")
    GUEST_ID_FIELD_NUMBER: _ClassVar[int]
    REGIONS_FIELD_NUMBER: _ClassVar[int]
    LOG_BYTES_FIELD_NUMBER: _ClassVar[int]
    COPY_ID_FIELD_NUMBER: _ClassVar[int]
    LOG_START_FIELD_NUMBER: _ClassVar[int]
    LOG_EPOCH_FIELD_NUMBER: _ClassVar[int]
    LOG_ID_FIELD_NUMBER: _ClassVar[int]
    guest_id: str
    regions: _containers.RepeatedCompositeFieldContainer[_common_pb2.RegionSpec]
    log_bytes: int
    copy_id: str
    log_start: int
    log_epoch: int
    log_id: str
    def __init__(self, guest_id: _Optional[str] = ..., regions: _Optional[_Iterable[_Union[_common_pb2.RegionSpec, _Mapping]]] = ..., log_bytes: _Optional[int] = ..., copy_id: _Optional[str] = ..., log_start: _Optional[int] = ..., log_epoch: _Optional[int] = ..., log_id: _Optional[str] = ...) -> None: ...

class AdoptRequest(_message.Message):
    __slots__ = ("guest_id", "copy_id", "log_bytes", "log_start", "log_epoch")
    GUEST_ID_FIELD_NUMBER: _ClassVar[int]
    COPY_ID_FIELD_NUMBER: _ClassVar[int]
    LOG_BYTES_FIELD_NUMBER: _ClassVar[int]
    LOG_START_FIELD_NUMBER: _ClassVar[int]
    LOG_EPOCH_FIELD_NUMBER: _ClassVar[int]
    guest_id: str
    copy_id: str
    log_bytes: int
    log_start: int
    log_epoch: int
    def __init__(self, guest_id: _Optional[str] = ..., copy_id: _Optional[str] = ..., log_bytes: _Optional[int] = ..., log_start: _Optional[int] = ..., log_epoch: _Optional[int] = ...) -> None: ...

class RegionFilter(_message.Message):
    __slots__ = ("guest_id", "copy_id", "log_id")
    GUEST_ID_FIELD_NUMBER: _ClassVar[int]
    COPY_ID_FIELD_NUMBER: _ClassVar[int]
    LOG_ID_FIELD_NUMBER: _ClassVar[int]
    guest_id: str
    copy_id: str
    log_id: str
    def __init__(self, guest_id: _Optional[str] = ..., copy_id: _Optional[str] = ..., log_id: _Optional[str] = ...) -> None: ...

class RegionSet(_message.Message):
    __slots__ = ("regions", "log", "guest_ids", "logs")
    REGIONS_FIELD_NUMBER: _ClassVar[int]
    LOG_FIELD_NUMBER: _ClassVar[int]
    GUEST_IDS_FIELD_NUMBER: _ClassVar[int]
    LOGS_FIELD_NUMBER: _ClassVar[int]
    regions: _containers.RepeatedCompositeFieldContainer[_common_pb2.Region]
    log: str
    guest_ids: _containers.RepeatedScalarFieldContainer[str]
    logs: _containers.RepeatedCompositeFieldContainer[LogArea]
    def __init__(self, regions: _Optional[_Iterable[_Union[_common_pb2.Region, _Mapping]]] = ..., log: _Optional[str] = ..., guest_ids: _Optional[_Iterable[str]] = ..., logs: _Optional[_Iterable[_Union[LogArea, _Mapping]]] = ...) -> None: ...

class NvmStatus(_message.Message):
    __slots__ = ("capacity_bytes", "allocated_bytes", "regions")
    CAPACITY_BYTES_FIELD_NUMBER: _ClassVar[int]
    ALLOCATED_BYTES_FIELD_NUMBER: _ClassVar[int]
    REGIONS_FIELD_NUMBER: _ClassVar[int]
    capacity_bytes: int
    allocated_bytes: int
    regions: int
    def __init__(self, capacity_bytes: _Optional[int] = ..., allocated_bytes: _Optional[int] = ..., regions: _Optional[int] = ...) -> None: ...

class LogArea(_message.Message):
    __slots__ = ("guest_id", "memory", "capacity_bytes", "copy_id", "log_id")
    GUEST_ID_FIELD_NUMBER: _ClassVar[int]
    MEMORY_FIELD_NUMBER: _ClassVar[int]
    CAPACITY_BYTES_FIELD_NUMBER: _ClassVar[int]
    COPY_ID_FIELD_NUMBER: _ClassVar[int]
    LOG_ID_FIELD_NUMBER: _ClassVar[int]
    guest_id: str
    memory: str
    capacity_bytes: int
    copy_id: str
    log_id: str
    def __init__(self, guest_id: _Optional[str] = ..., memory: _Optional[str] = ..., capacity_bytes: _Optional[int] = ..., copy_id: _Optional[str] = ..., log_id: _Optional[str] = ...) -> None: ...
