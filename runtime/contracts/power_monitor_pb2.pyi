from everram.runtime.contracts import common_pb2 as _common_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class SaveRequest(_message.Message):
    __slots__ = ("cause",)
    CAUSE_FIELD_NUMBER: _ClassVar[int]
    cause: str
    def __init__(self, cause: _Optional[str] = ...) -> None: ...

class SaveReport(_message.Message):
    __slots__ = ("generation", "saved_bytes", "objects", "seconds")
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    SAVED_BYTES_FIELD_NUMBER: _ClassVar[int]
    OBJECTS_FIELD_NUMBER: _ClassVar[int]
    SECONDS_FIELD_NUMBER: _ClassVar[int]
    generation: int
    saved_bytes: int
    objects: int
    seconds: float
    def __init__(self, generation: _Optional[int] = ..., saved_bytes: _Optional[int] = ..., objects: _Optional[int] = ..., seconds: _Optional[float] = ...) -> None: ...

class PowerStatus(_message.Message):
    __slots__ = ("image", "image_generation", "restored_from", "mains", "battery_s", "state", "last", "ups", "warning", "restoring_bytes", "budget", "clean", "power_saved", "power_incomplete", "crashes", "last_end", "restore_s", "restore_all_s")
    IMAGE_FIELD_NUMBER: _ClassVar[int]
    IMAGE_GENERATION_FIELD_NUMBER: _ClassVar[int]
    RESTORED_FROM_FIELD_NUMBER: _ClassVar[int]
    MAINS_FIELD_NUMBER: _ClassVar[int]
    BATTERY_S_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    LAST_FIELD_NUMBER: _ClassVar[int]
    UPS_FIELD_NUMBER: _ClassVar[int]
    WARNING_FIELD_NUMBER: _ClassVar[int]
    RESTORING_BYTES_FIELD_NUMBER: _ClassVar[int]
    BUDGET_FIELD_NUMBER: _ClassVar[int]
    CLEAN_FIELD_NUMBER: _ClassVar[int]
    POWER_SAVED_FIELD_NUMBER: _ClassVar[int]
    POWER_INCOMPLETE_FIELD_NUMBER: _ClassVar[int]
    CRASHES_FIELD_NUMBER: _ClassVar[int]
    LAST_END_FIELD_NUMBER: _ClassVar[int]
    RESTORE_S_FIELD_NUMBER: _ClassVar[int]
    RESTORE_ALL_S_FIELD_NUMBER: _ClassVar[int]
    image: str
    image_generation: int
    restored_from: str
    mains: bool
    battery_s: float
    state: str
    last: PowerReport
    ups: str
    warning: str
    restoring_bytes: int
    budget: BudgetStatus
    clean: int
    power_saved: int
    power_incomplete: int
    crashes: int
    last_end: str
    restore_s: float
    restore_all_s: float
    def __init__(self, image: _Optional[str] = ..., image_generation: _Optional[int] = ..., restored_from: _Optional[str] = ..., mains: _Optional[bool] = ..., battery_s: _Optional[float] = ..., state: _Optional[str] = ..., last: _Optional[_Union[PowerReport, _Mapping]] = ..., ups: _Optional[str] = ..., warning: _Optional[str] = ..., restoring_bytes: _Optional[int] = ..., budget: _Optional[_Union[BudgetStatus, _Mapping]] = ..., clean: _Optional[int] = ..., power_saved: _Optional[int] = ..., power_incomplete: _Optional[int] = ..., crashes: _Optional[int] = ..., last_end: _Optional[str] = ..., restore_s: _Optional[float] = ..., restore_all_s: _Optional[float] = ...) -> None: ...

class BudgetStatus(_message.Message):
    __slots__ = ("battery_s", "save_bytes_per_s", "measured", "save_bytes", "full_bytes", "tracked_bytes", "covered", "tracking", "cap_bytes", "dirty_bytes", "most_dirty_bytes", "flushed_bytes", "delayed_pages", "waited_pages", "log_bytes", "outstanding_log_bytes")
    BATTERY_S_FIELD_NUMBER: _ClassVar[int]
    SAVE_BYTES_PER_S_FIELD_NUMBER: _ClassVar[int]
    MEASURED_FIELD_NUMBER: _ClassVar[int]
    SAVE_BYTES_FIELD_NUMBER: _ClassVar[int]
    FULL_BYTES_FIELD_NUMBER: _ClassVar[int]
    TRACKED_BYTES_FIELD_NUMBER: _ClassVar[int]
    COVERED_FIELD_NUMBER: _ClassVar[int]
    TRACKING_FIELD_NUMBER: _ClassVar[int]
    CAP_BYTES_FIELD_NUMBER: _ClassVar[int]
    DIRTY_BYTES_FIELD_NUMBER: _ClassVar[int]
    MOST_DIRTY_BYTES_FIELD_NUMBER: _ClassVar[int]
    FLUSHED_BYTES_FIELD_NUMBER: _ClassVar[int]
    DELAYED_PAGES_FIELD_NUMBER: _ClassVar[int]
    WAITED_PAGES_FIELD_NUMBER: _ClassVar[int]
    LOG_BYTES_FIELD_NUMBER: _ClassVar[int]
    OUTSTANDING_LOG_BYTES_FIELD_NUMBER: _ClassVar[int]
    battery_s: float
    save_bytes_per_s: float
    measured: bool
    save_bytes: int
    full_bytes: int
    tracked_bytes: int
    covered: bool
    tracking: bool
    cap_bytes: int
    dirty_bytes: int
    most_dirty_bytes: int
    flushed_bytes: int
    delayed_pages: int
    waited_pages: int
    log_bytes: int
    outstanding_log_bytes: int
    def __init__(self, battery_s: _Optional[float] = ..., save_bytes_per_s: _Optional[float] = ..., measured: _Optional[bool] = ..., save_bytes: _Optional[int] = ..., full_bytes: _Optional[int] = ..., tracked_bytes: _Optional[int] = ..., covered: _Optional[bool] = ..., tracking: _Optional[bool] = ..., cap_bytes: _Optional[int] = ..., dirty_bytes: _Optional[int] = ..., most_dirty_bytes: _Optional[int] = ..., flushed_bytes: _Optional[int] = ..., delayed_pages: _Optional[int] = ..., waited_pages: _Optional[int] = ..., log_bytes: _Optional[int] = ..., outstanding_log_bytes: _Optional[int] = ...) -> None: ...

class PowerReport(_message.Message):
    __slots__ = ("host", "began_ns", "outcome", "battery_s", "freeze_s", "drain_s", "save_s", "left_s", "guests", "saved", "not_held")
    HOST_FIELD_NUMBER: _ClassVar[int]
    BEGAN_NS_FIELD_NUMBER: _ClassVar[int]
    OUTCOME_FIELD_NUMBER: _ClassVar[int]
    BATTERY_S_FIELD_NUMBER: _ClassVar[int]
    FREEZE_S_FIELD_NUMBER: _ClassVar[int]
    DRAIN_S_FIELD_NUMBER: _ClassVar[int]
    SAVE_S_FIELD_NUMBER: _ClassVar[int]
    LEFT_S_FIELD_NUMBER: _ClassVar[int]
    GUESTS_FIELD_NUMBER: _ClassVar[int]
    SAVED_FIELD_NUMBER: _ClassVar[int]
    NOT_HELD_FIELD_NUMBER: _ClassVar[int]
    host: str
    began_ns: int
    outcome: str
    battery_s: float
    freeze_s: float
    drain_s: float
    save_s: float
    left_s: float
    guests: _containers.RepeatedCompositeFieldContainer[DrainedGuest]
    saved: SaveReport
    not_held: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, host: _Optional[str] = ..., began_ns: _Optional[int] = ..., outcome: _Optional[str] = ..., battery_s: _Optional[float] = ..., freeze_s: _Optional[float] = ..., drain_s: _Optional[float] = ..., save_s: _Optional[float] = ..., left_s: _Optional[float] = ..., guests: _Optional[_Iterable[_Union[DrainedGuest, _Mapping]]] = ..., saved: _Optional[_Union[SaveReport, _Mapping]] = ..., not_held: _Optional[_Iterable[str]] = ...) -> None: ...

class DrainedGuest(_message.Message):
    __slots__ = ("guest_id", "name", "epoch", "tail", "copies")
    GUEST_ID_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    TAIL_FIELD_NUMBER: _ClassVar[int]
    COPIES_FIELD_NUMBER: _ClassVar[int]
    guest_id: str
    name: str
    epoch: int
    tail: int
    copies: _containers.RepeatedCompositeFieldContainer[DrainedTo]
    def __init__(self, guest_id: _Optional[str] = ..., name: _Optional[str] = ..., epoch: _Optional[int] = ..., tail: _Optional[int] = ..., copies: _Optional[_Iterable[_Union[DrainedTo, _Mapping]]] = ...) -> None: ...

class DrainedTo(_message.Message):
    __slots__ = ("host", "memory_id", "durable", "drained")
    HOST_FIELD_NUMBER: _ClassVar[int]
    MEMORY_ID_FIELD_NUMBER: _ClassVar[int]
    DURABLE_FIELD_NUMBER: _ClassVar[int]
    DRAINED_FIELD_NUMBER: _ClassVar[int]
    host: str
    memory_id: str
    durable: int
    drained: bool
    def __init__(self, host: _Optional[str] = ..., memory_id: _Optional[str] = ..., durable: _Optional[int] = ..., drained: _Optional[bool] = ...) -> None: ...

class Rehearsal(_message.Message):
    __slots__ = ("battery_s", "freeze_s", "drain_s", "memory_bytes", "bytes_per_s", "save_s", "margin_s")
    BATTERY_S_FIELD_NUMBER: _ClassVar[int]
    FREEZE_S_FIELD_NUMBER: _ClassVar[int]
    DRAIN_S_FIELD_NUMBER: _ClassVar[int]
    MEMORY_BYTES_FIELD_NUMBER: _ClassVar[int]
    BYTES_PER_S_FIELD_NUMBER: _ClassVar[int]
    SAVE_S_FIELD_NUMBER: _ClassVar[int]
    MARGIN_S_FIELD_NUMBER: _ClassVar[int]
    battery_s: float
    freeze_s: float
    drain_s: float
    memory_bytes: int
    bytes_per_s: float
    save_s: float
    margin_s: float
    def __init__(self, battery_s: _Optional[float] = ..., freeze_s: _Optional[float] = ..., drain_s: _Optional[float] = ..., memory_bytes: _Optional[int] = ..., bytes_per_s: _Optional[float] = ..., save_s: _Optional[float] = ..., margin_s: _Optional[float] = ...) -> None: ...
