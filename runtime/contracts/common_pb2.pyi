from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Fault(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    FAULT_UNSPECIFIED: _ClassVar[Fault]
    FAULT_CALLER: _ClassVar[Fault]
    FAULT_STATE: _ClassVar[Fault]
    FAULT_RESOURCE: _ClassVar[Fault]
    FAULT_INTERNAL: _ClassVar[Fault]

class RegionKind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    REGION_KIND_UNSPECIFIED: _ClassVar[RegionKind]
    LOGGED: _ClassVar[RegionKind]
    MAPPED: _ClassVar[RegionKind]

class GuestState(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    GUEST_STATE_UNSPECIFIED: _ClassVar[GuestState]
    STARTING: _ClassVar[GuestState]
    RUNNING: _ClassVar[GuestState]
    FROZEN: _ClassVar[GuestState]
    STOPPED: _ClassVar[GuestState]
    EXITED: _ClassVar[GuestState]
    RESTARTING: _ClassVar[GuestState]
    FAILED: _ClassVar[GuestState]

class RestartPolicy(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    RESTART_POLICY_UNSPECIFIED: _ClassVar[RestartPolicy]
    ALWAYS: _ClassVar[RestartPolicy]
    ON_FAILURE: _ClassVar[RestartPolicy]
    NO: _ClassVar[RestartPolicy]
FAULT_UNSPECIFIED: Fault
FAULT_CALLER: Fault
FAULT_STATE: Fault
FAULT_RESOURCE: Fault
FAULT_INTERNAL: Fault
REGION_KIND_UNSPECIFIED: RegionKind
LOGGED: RegionKind
MAPPED: RegionKind
GUEST_STATE_UNSPECIFIED: GuestState
STARTING: GuestState
RUNNING: GuestState
FROZEN: GuestState
STOPPED: GuestState
EXITED: GuestState
RESTARTING: GuestState
FAILED: GuestState
RESTART_POLICY_UNSPECIFIED: RestartPolicy
ALWAYS: RestartPolicy
ON_FAILURE: RestartPolicy
NO: RestartPolicy

class Empty(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Error(_message.Message):
    __slots__ = ("code", "fault", "message", "unknown")
    CODE_FIELD_NUMBER: _ClassVar[int]
    FAULT_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    UNKNOWN_FIELD_NUMBER: _ClassVar[int]
    code: int
    fault: Fault
    message: str
    unknown: bool
    def __init__(self, code: _Optional[int] = ..., fault: _Optional[_Union[Fault, str]] = ..., message: _Optional[str] = ..., unknown: _Optional[bool] = ...) -> None: ...

class Region(_message.Message):
    __slots__ = ("name", "guest_id", "kind", "size_bytes", "arena", "tracked", "written_pages", "tracking", "copy_id", "origin", "keeps_old", "reverting")
    NAME_FIELD_NUMBER: _ClassVar[int]
    GUEST_ID_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
    ARENA_FIELD_NUMBER: _ClassVar[int]
    TRACKED_FIELD_NUMBER: _ClassVar[int]
    WRITTEN_PAGES_FIELD_NUMBER: _ClassVar[int]
    TRACKING_FIELD_NUMBER: _ClassVar[int]
    COPY_ID_FIELD_NUMBER: _ClassVar[int]
    ORIGIN_FIELD_NUMBER: _ClassVar[int]
    KEEPS_OLD_FIELD_NUMBER: _ClassVar[int]
    REVERTING_FIELD_NUMBER: _ClassVar[int]
    name: str
    guest_id: str
    kind: RegionKind
    size_bytes: int
    arena: str
    tracked: bool
    written_pages: int
    tracking: bool
    copy_id: str
    origin: str
    keeps_old: bool
    reverting: bool
    def __init__(self, name: _Optional[str] = ..., guest_id: _Optional[str] = ..., kind: _Optional[_Union[RegionKind, str]] = ..., size_bytes: _Optional[int] = ..., arena: _Optional[str] = ..., tracked: _Optional[bool] = ..., written_pages: _Optional[int] = ..., tracking: _Optional[bool] = ..., copy_id: _Optional[str] = ..., origin: _Optional[str] = ..., keeps_old: _Optional[bool] = ..., reverting: _Optional[bool] = ...) -> None: ...

class Guest(_message.Message):
    __slots__ = ("guest_id", "name", "state", "host", "pid", "epoch", "regions", "spec", "exit_status", "restarts", "port", "reason", "freeze_reasons", "log", "previous_epoch", "copies", "degraded", "regions_generation", "damaged", "suspended")
    GUEST_ID_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    HOST_FIELD_NUMBER: _ClassVar[int]
    PID_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    REGIONS_FIELD_NUMBER: _ClassVar[int]
    SPEC_FIELD_NUMBER: _ClassVar[int]
    EXIT_STATUS_FIELD_NUMBER: _ClassVar[int]
    RESTARTS_FIELD_NUMBER: _ClassVar[int]
    PORT_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    FREEZE_REASONS_FIELD_NUMBER: _ClassVar[int]
    LOG_FIELD_NUMBER: _ClassVar[int]
    PREVIOUS_EPOCH_FIELD_NUMBER: _ClassVar[int]
    COPIES_FIELD_NUMBER: _ClassVar[int]
    DEGRADED_FIELD_NUMBER: _ClassVar[int]
    REGIONS_GENERATION_FIELD_NUMBER: _ClassVar[int]
    DAMAGED_FIELD_NUMBER: _ClassVar[int]
    SUSPENDED_FIELD_NUMBER: _ClassVar[int]
    guest_id: str
    name: str
    state: GuestState
    host: str
    pid: int
    epoch: int
    regions: _containers.RepeatedCompositeFieldContainer[Region]
    spec: GuestSpec
    exit_status: int
    restarts: int
    port: int
    reason: str
    freeze_reasons: _containers.RepeatedScalarFieldContainer[str]
    log: LogPositions
    previous_epoch: int
    copies: _containers.RepeatedCompositeFieldContainer[CopyStatus]
    degraded: bool
    regions_generation: int
    damaged: str
    suspended: bool
    def __init__(self, guest_id: _Optional[str] = ..., name: _Optional[str] = ..., state: _Optional[_Union[GuestState, str]] = ..., host: _Optional[str] = ..., pid: _Optional[int] = ..., epoch: _Optional[int] = ..., regions: _Optional[_Iterable[_Union[Region, _Mapping]]] = ..., spec: _Optional[_Union[GuestSpec, _Mapping]] = ..., exit_status: _Optional[int] = ..., restarts: _Optional[int] = ..., port: _Optional[int] = ..., reason: _Optional[str] = ..., freeze_reasons: _Optional[_Iterable[str]] = ..., log: _Optional[_Union[LogPositions, _Mapping]] = ..., previous_epoch: _Optional[int] = ..., copies: _Optional[_Iterable[_Union[CopyStatus, _Mapping]]] = ..., degraded: _Optional[bool] = ..., regions_generation: _Optional[int] = ..., damaged: _Optional[str] = ..., suspended: _Optional[bool] = ...) -> None: ...

class CopyStatus(_message.Message):
    __slots__ = ("host", "memory_id", "state", "required", "durable", "copied_percent")
    HOST_FIELD_NUMBER: _ClassVar[int]
    MEMORY_ID_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    REQUIRED_FIELD_NUMBER: _ClassVar[int]
    DURABLE_FIELD_NUMBER: _ClassVar[int]
    COPIED_PERCENT_FIELD_NUMBER: _ClassVar[int]
    host: str
    memory_id: str
    state: str
    required: bool
    durable: int
    copied_percent: int
    def __init__(self, host: _Optional[str] = ..., memory_id: _Optional[str] = ..., state: _Optional[str] = ..., required: _Optional[bool] = ..., durable: _Optional[int] = ..., copied_percent: _Optional[int] = ...) -> None: ...

class LogPositions(_message.Message):
    __slots__ = ("epoch", "tail", "applied", "freed", "verified", "capacity_bytes", "copies", "degraded")
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    TAIL_FIELD_NUMBER: _ClassVar[int]
    APPLIED_FIELD_NUMBER: _ClassVar[int]
    FREED_FIELD_NUMBER: _ClassVar[int]
    VERIFIED_FIELD_NUMBER: _ClassVar[int]
    CAPACITY_BYTES_FIELD_NUMBER: _ClassVar[int]
    COPIES_FIELD_NUMBER: _ClassVar[int]
    DEGRADED_FIELD_NUMBER: _ClassVar[int]
    epoch: int
    tail: int
    applied: int
    freed: int
    verified: int
    capacity_bytes: int
    copies: _containers.RepeatedCompositeFieldContainer[CopyStatus]
    degraded: bool
    def __init__(self, epoch: _Optional[int] = ..., tail: _Optional[int] = ..., applied: _Optional[int] = ..., freed: _Optional[int] = ..., verified: _Optional[int] = ..., capacity_bytes: _Optional[int] = ..., copies: _Optional[_Iterable[_Union[CopyStatus, _Mapping]]] = ..., degraded: _Optional[bool] = ...) -> None: ...

class RegionSpec(_message.Message):
    __slots__ = ("name", "size_bytes", "kind")
    NAME_FIELD_NUMBER: _ClassVar[int]
    SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    name: str
    size_bytes: int
    kind: RegionKind
    def __init__(self, name: _Optional[str] = ..., size_bytes: _Optional[int] = ..., kind: _Optional[_Union[RegionKind, str]] = ...) -> None: ...

class EnvironmentVariable(_message.Message):
    __slots__ = ("name", "value")
    NAME_FIELD_NUMBER: _ClassVar[int]
    VALUE_FIELD_NUMBER: _ClassVar[int]
    name: str
    value: bytes
    def __init__(self, name: _Optional[str] = ..., value: _Optional[bytes] = ...) -> None: ...

class GuestSpec(_message.Message):
    __slots__ = ("name", "argv", "working_directory", "environment", "regions", "restart", "publish_port", "copies", "log_bytes", "memory_bytes", "memory_min_bytes", "memory_max_bytes")
    NAME_FIELD_NUMBER: _ClassVar[int]
    ARGV_FIELD_NUMBER: _ClassVar[int]
    WORKING_DIRECTORY_FIELD_NUMBER: _ClassVar[int]
    ENVIRONMENT_FIELD_NUMBER: _ClassVar[int]
    REGIONS_FIELD_NUMBER: _ClassVar[int]
    RESTART_FIELD_NUMBER: _ClassVar[int]
    PUBLISH_PORT_FIELD_NUMBER: _ClassVar[int]
    COPIES_FIELD_NUMBER: _ClassVar[int]
    LOG_BYTES_FIELD_NUMBER: _ClassVar[int]
    MEMORY_BYTES_FIELD_NUMBER: _ClassVar[int]
    MEMORY_MIN_BYTES_FIELD_NUMBER: _ClassVar[int]
    MEMORY_MAX_BYTES_FIELD_NUMBER: _ClassVar[int]
    name: str
    argv: _containers.RepeatedScalarFieldContainer[bytes]
    working_directory: bytes
    environment: _containers.RepeatedCompositeFieldContainer[EnvironmentVariable]
    regions: _containers.RepeatedCompositeFieldContainer[RegionSpec]
    restart: RestartPolicy
    publish_port: int
    copies: int
    log_bytes: int
    memory_bytes: int
    memory_min_bytes: int
    memory_max_bytes: int
    def __init__(self, name: _Optional[str] = ..., argv: _Optional[_Iterable[bytes]] = ..., working_directory: _Optional[bytes] = ..., environment: _Optional[_Iterable[_Union[EnvironmentVariable, _Mapping]]] = ..., regions: _Optional[_Iterable[_Union[RegionSpec, _Mapping]]] = ..., restart: _Optional[_Union[RestartPolicy, str]] = ..., publish_port: _Optional[int] = ..., copies: _Optional[int] = ..., log_bytes: _Optional[int] = ..., memory_bytes: _Optional[int] = ..., memory_min_bytes: _Optional[int] = ..., memory_max_bytes: _Optional[int] = ...) -> None: ...
