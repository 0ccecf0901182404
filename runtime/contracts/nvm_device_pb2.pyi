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
    __slots__ = ("capacity_bytes", "allocated_bytes", "regions", "snapshots", "store_bytes", "metadata_bytes", "storage_bytes", "storage_capacity_bytes", "waiting_writers", "untracked_guests", "warning")
    CAPACITY_BYTES_FIELD_NUMBER: _ClassVar[int]
    ALLOCATED_BYTES_FIELD_NUMBER: _ClassVar[int]
    REGIONS_FIELD_NUMBER: _ClassVar[int]
    SNAPSHOTS_FIELD_NUMBER: _ClassVar[int]
    STORE_BYTES_FIELD_NUMBER: _ClassVar[int]
    METADATA_BYTES_FIELD_NUMBER: _ClassVar[int]
    STORAGE_BYTES_FIELD_NUMBER: _ClassVar[int]
    STORAGE_CAPACITY_BYTES_FIELD_NUMBER: _ClassVar[int]
    WAITING_WRITERS_FIELD_NUMBER: _ClassVar[int]
    UNTRACKED_GUESTS_FIELD_NUMBER: _ClassVar[int]
    WARNING_FIELD_NUMBER: _ClassVar[int]
    capacity_bytes: int
    allocated_bytes: int
    regions: int
    snapshots: int
    store_bytes: int
    metadata_bytes: int
    storage_bytes: int
    storage_capacity_bytes: int
    waiting_writers: int
    untracked_guests: int
    warning: str
    def __init__(self, capacity_bytes: _Optional[int] = ..., allocated_bytes: _Optional[int] = ..., regions: _Optional[int] = ..., snapshots: _Optional[int] = ..., store_bytes: _Optional[int] = ..., metadata_bytes: _Optional[int] = ..., storage_bytes: _Optional[int] = ..., storage_capacity_bytes: _Optional[int] = ..., waiting_writers: _Optional[int] = ..., untracked_guests: _Optional[int] = ..., warning: _Optional[str] = ...) -> None: ...

class RegionName(_message.Message):
    __slots__ = ("guest_id", "region")
    GUEST_ID_FIELD_NUMBER: _ClassVar[int]
    REGION_FIELD_NUMBER: _ClassVar[int]
    guest_id: str
    region: str
    def __init__(self, guest_id: _Optional[str] = ..., region: _Optional[str] = ...) -> None: ...

class SnapshotRequest(_message.Message):
    __slots__ = ("regions", "name")
    REGIONS_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    regions: _containers.RepeatedCompositeFieldContainer[RegionName]
    name: str
    def __init__(self, regions: _Optional[_Iterable[_Union[RegionName, _Mapping]]] = ..., name: _Optional[str] = ...) -> None: ...

class SnapshotFilter(_message.Message):
    __slots__ = ("guest_id", "region", "usage")
    GUEST_ID_FIELD_NUMBER: _ClassVar[int]
    REGION_FIELD_NUMBER: _ClassVar[int]
    USAGE_FIELD_NUMBER: _ClassVar[int]
    guest_id: str
    region: str
    usage: bool
    def __init__(self, guest_id: _Optional[str] = ..., region: _Optional[str] = ..., usage: _Optional[bool] = ...) -> None: ...

class SnapshotName(_message.Message):
    __slots__ = ("guest_id", "region", "name", "sequence")
    GUEST_ID_FIELD_NUMBER: _ClassVar[int]
    REGION_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    guest_id: str
    region: str
    name: str
    sequence: int
    def __init__(self, guest_id: _Optional[str] = ..., region: _Optional[str] = ..., name: _Optional[str] = ..., sequence: _Optional[int] = ...) -> None: ...

class SnapshotNames(_message.Message):
    __slots__ = ("snapshots",)
    SNAPSHOTS_FIELD_NUMBER: _ClassVar[int]
    snapshots: _containers.RepeatedCompositeFieldContainer[SnapshotName]
    def __init__(self, snapshots: _Optional[_Iterable[_Union[SnapshotName, _Mapping]]] = ...) -> None: ...

class SnapshotList(_message.Message):
    __slots__ = ("snapshots",)
    SNAPSHOTS_FIELD_NUMBER: _ClassVar[int]
    snapshots: _containers.RepeatedCompositeFieldContainer[SnapshotRecord]
    def __init__(self, snapshots: _Optional[_Iterable[_Union[SnapshotRecord, _Mapping]]] = ...) -> None: ...

class SnapshotRecord(_message.Message):
    __slots__ = ("guest_id", "region", "name", "sequence", "parent", "size_bytes", "created_ns", "epoch", "lsn", "named_bytes", "owned_bytes", "shared_bytes", "purged_bytes")
    GUEST_ID_FIELD_NUMBER: _ClassVar[int]
    REGION_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    PARENT_FIELD_NUMBER: _ClassVar[int]
    SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
    CREATED_NS_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    LSN_FIELD_NUMBER: _ClassVar[int]
    NAMED_BYTES_FIELD_NUMBER: _ClassVar[int]
    OWNED_BYTES_FIELD_NUMBER: _ClassVar[int]
    SHARED_BYTES_FIELD_NUMBER: _ClassVar[int]
    PURGED_BYTES_FIELD_NUMBER: _ClassVar[int]
    guest_id: str
    region: str
    name: str
    sequence: int
    parent: int
    size_bytes: int
    created_ns: int
    epoch: int
    lsn: int
    named_bytes: int
    owned_bytes: int
    shared_bytes: int
    purged_bytes: int
    def __init__(self, guest_id: _Optional[str] = ..., region: _Optional[str] = ..., name: _Optional[str] = ..., sequence: _Optional[int] = ..., parent: _Optional[int] = ..., size_bytes: _Optional[int] = ..., created_ns: _Optional[int] = ..., epoch: _Optional[int] = ..., lsn: _Optional[int] = ..., named_bytes: _Optional[int] = ..., owned_bytes: _Optional[int] = ..., shared_bytes: _Optional[int] = ..., purged_bytes: _Optional[int] = ...) -> None: ...

class Freed(_message.Message):
    __slots__ = ("memory_bytes", "storage_bytes")
    MEMORY_BYTES_FIELD_NUMBER: _ClassVar[int]
    STORAGE_BYTES_FIELD_NUMBER: _ClassVar[int]
    memory_bytes: int
    storage_bytes: int
    def __init__(self, memory_bytes: _Optional[int] = ..., storage_bytes: _Optional[int] = ...) -> None: ...

class ReadSnapshotRequest(_message.Message):
    __slots__ = ("snapshot", "offset", "length")
    SNAPSHOT_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    LENGTH_FIELD_NUMBER: _ClassVar[int]
    snapshot: SnapshotName
    offset: int
    length: int
    def __init__(self, snapshot: _Optional[_Union[SnapshotName, _Mapping]] = ..., offset: _Optional[int] = ..., length: _Optional[int] = ...) -> None: ...

class SnapshotData(_message.Message):
    __slots__ = ("data",)
    DATA_FIELD_NUMBER: _ClassVar[int]
    data: bytes
    def __init__(self, data: _Optional[bytes] = ...) -> None: ...

class CloneRequest(_message.Message):
    __slots__ = ("snapshot", "name")
    SNAPSHOT_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    snapshot: SnapshotName
    name: str
    def __init__(self, snapshot: _Optional[_Union[SnapshotName, _Mapping]] = ..., name: _Optional[str] = ...) -> None: ...

class GrowRequest(_message.Message):
    __slots__ = ("region", "size_bytes")
    REGION_FIELD_NUMBER: _ClassVar[int]
    SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
    region: RegionName
    size_bytes: int
    def __init__(self, region: _Optional[_Union[RegionName, _Mapping]] = ..., size_bytes: _Optional[int] = ...) -> None: ...

class PurgeRequest(_message.Message):
    __slots__ = ("guest_id", "region", "older_than_s")
    GUEST_ID_FIELD_NUMBER: _ClassVar[int]
    REGION_FIELD_NUMBER: _ClassVar[int]
    OLDER_THAN_S_FIELD_NUMBER: _ClassVar[int]
    guest_id: str
    region: str
    older_than_s: float
    def __init__(self, guest_id: _Optional[str] = ..., region: _Optional[str] = ..., older_than_s: _Optional[float] = ...) -> None: ...

class PurgeControl(_message.Message):
    __slots__ = ("paused", "rate_bytes_per_s", "low_mark", "high_mark", "age_s")
    PAUSED_FIELD_NUMBER: _ClassVar[int]
    RATE_BYTES_PER_S_FIELD_NUMBER: _ClassVar[int]
    LOW_MARK_FIELD_NUMBER: _ClassVar[int]
    HIGH_MARK_FIELD_NUMBER: _ClassVar[int]
    AGE_S_FIELD_NUMBER: _ClassVar[int]
    paused: bool
    rate_bytes_per_s: int
    low_mark: float
    high_mark: float
    age_s: float
    def __init__(self, paused: _Optional[bool] = ..., rate_bytes_per_s: _Optional[int] = ..., low_mark: _Optional[float] = ..., high_mark: _Optional[float] = ..., age_s: _Optional[float] = ...) -> None: ...

class PurgeStatus(_message.Message):
    __slots__ = ("paused", "rate_bytes_per_s", "low_mark", "high_mark", "age_s", "purged_bytes", "purgeable_bytes", "running", "trouble", "entry_updates")
    PAUSED_FIELD_NUMBER: _ClassVar[int]
    RATE_BYTES_PER_S_FIELD_NUMBER: _ClassVar[int]
    LOW_MARK_FIELD_NUMBER: _ClassVar[int]
    HIGH_MARK_FIELD_NUMBER: _ClassVar[int]
    AGE_S_FIELD_NUMBER: _ClassVar[int]
    PURGED_BYTES_FIELD_NUMBER: _ClassVar[int]
    PURGEABLE_BYTES_FIELD_NUMBER: _ClassVar[int]
    RUNNING_FIELD_NUMBER: _ClassVar[int]
    TROUBLE_FIELD_NUMBER: _ClassVar[int]
    ENTRY_UPDATES_FIELD_NUMBER: _ClassVar[int]
    paused: bool
    rate_bytes_per_s: int
    low_mark: float
    high_mark: float
    age_s: float
    purged_bytes: int
    purgeable_bytes: int
    running: bool
    trouble: str
    entry_updates: int
    def __init__(self, paused: _Optional[bool] = ..., rate_bytes_per_s: _Optional[int] = ..., low_mark: _Optional[float] = ..., high_mark: _Optional[float] = ..., age_s: _Optional[float] = ..., purged_bytes: _Optional[int] = ..., purgeable_bytes: _Optional[int] = ..., running: _Optional[bool] = ..., trouble: _Optional[str] = ..., entry_updates: _Optional[int] = ...) -> None: ...

class QuiesceMoves(_message.Message):
    __slots__ = ("on",)
    ON_FIELD_NUMBER: _ClassVar[int]
    on: bool
    def __init__(self, on: _Optional[bool] = ...) -> None: ...

class Findings(_message.Message):
    __slots__ = ("findings", "blocks")
    FINDINGS_FIELD_NUMBER: _ClassVar[int]
    BLOCKS_FIELD_NUMBER: _ClassVar[int]
    findings: _containers.RepeatedScalarFieldContainer[str]
    blocks: int
    def __init__(self, findings: _Optional[_Iterable[str]] = ..., blocks: _Optional[int] = ...) -> None: ...

class CopyOperation(_message.Message):
    __slots__ = ("guest_id", "copy_id", "type", "what", "epoch", "lsn")
    GUEST_ID_FIELD_NUMBER: _ClassVar[int]
    COPY_ID_FIELD_NUMBER: _ClassVar[int]
    TYPE_FIELD_NUMBER: _ClassVar[int]
    WHAT_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    LSN_FIELD_NUMBER: _ClassVar[int]
    guest_id: str
    copy_id: str
    type: int
    what: LogOperation
    epoch: int
    lsn: int
    def __init__(self, guest_id: _Optional[str] = ..., copy_id: _Optional[str] = ..., type: _Optional[int] = ..., what: _Optional[_Union[LogOperation, _Mapping]] = ..., epoch: _Optional[int] = ..., lsn: _Optional[int] = ...) -> None: ...

class LogOperation(_message.Message):
    __slots__ = ("name", "regions", "created_ns")
    NAME_FIELD_NUMBER: _ClassVar[int]
    REGIONS_FIELD_NUMBER: _ClassVar[int]
    CREATED_NS_FIELD_NUMBER: _ClassVar[int]
    name: str
    regions: _containers.RepeatedScalarFieldContainer[str]
    created_ns: int
    def __init__(self, name: _Optional[str] = ..., regions: _Optional[_Iterable[str]] = ..., created_ns: _Optional[int] = ...) -> None: ...

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
