from everram.runtime.contracts import common_pb2 as _common_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class GuestMemoryKey(_message.Message):
    __slots__ = ("guest",)
    GUEST_FIELD_NUMBER: _ClassVar[int]
    guest: str
    def __init__(self, guest: _Optional[str] = ...) -> None: ...

class GuestMemoryKeys(_message.Message):
    __slots__ = ("guest_ids",)
    GUEST_IDS_FIELD_NUMBER: _ClassVar[int]
    guest_ids: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, guest_ids: _Optional[_Iterable[str]] = ...) -> None: ...

class GuestMemory(_message.Message):
    __slots__ = ("guest_id", "name", "memory_bytes", "min_bytes", "max_bytes", "again", "limits_set")
    GUEST_ID_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    MEMORY_BYTES_FIELD_NUMBER: _ClassVar[int]
    MIN_BYTES_FIELD_NUMBER: _ClassVar[int]
    MAX_BYTES_FIELD_NUMBER: _ClassVar[int]
    AGAIN_FIELD_NUMBER: _ClassVar[int]
    LIMITS_SET_FIELD_NUMBER: _ClassVar[int]
    guest_id: str
    name: str
    memory_bytes: int
    min_bytes: int
    max_bytes: int
    again: bool
    limits_set: bool
    def __init__(self, guest_id: _Optional[str] = ..., name: _Optional[str] = ..., memory_bytes: _Optional[int] = ..., min_bytes: _Optional[int] = ..., max_bytes: _Optional[int] = ..., again: _Optional[bool] = ..., limits_set: _Optional[bool] = ...) -> None: ...

class MemoryGrant(_message.Message):
    __slots__ = ("memory", "memory_bytes", "classes", "classes_bytes")
    MEMORY_FIELD_NUMBER: _ClassVar[int]
    MEMORY_BYTES_FIELD_NUMBER: _ClassVar[int]
    CLASSES_FIELD_NUMBER: _ClassVar[int]
    CLASSES_BYTES_FIELD_NUMBER: _ClassVar[int]
    memory: str
    memory_bytes: int
    classes: str
    classes_bytes: int
    def __init__(self, memory: _Optional[str] = ..., memory_bytes: _Optional[int] = ..., classes: _Optional[str] = ..., classes_bytes: _Optional[int] = ...) -> None: ...

class MemoryLimits(_message.Message):
    __slots__ = ("guest", "min_bytes", "max_bytes")
    GUEST_FIELD_NUMBER: _ClassVar[int]
    MIN_BYTES_FIELD_NUMBER: _ClassVar[int]
    MAX_BYTES_FIELD_NUMBER: _ClassVar[int]
    guest: str
    min_bytes: int
    max_bytes: int
    def __init__(self, guest: _Optional[str] = ..., min_bytes: _Optional[int] = ..., max_bytes: _Optional[int] = ...) -> None: ...

class ClassEstimate(_message.Message):
    __slots__ = ("name", "pages", "low", "high")
    NAME_FIELD_NUMBER: _ClassVar[int]
    PAGES_FIELD_NUMBER: _ClassVar[int]
    LOW_FIELD_NUMBER: _ClassVar[int]
    HIGH_FIELD_NUMBER: _ClassVar[int]
    name: str
    pages: float
    low: float
    high: float
    def __init__(self, name: _Optional[str] = ..., pages: _Optional[float] = ..., low: _Optional[float] = ..., high: _Optional[float] = ...) -> None: ...

class GuestMemoryStatus(_message.Message):
    __slots__ = ("guest_id", "name", "memory_bytes", "min_bytes", "max_bytes", "resident_bytes", "working_set_bytes", "ballooned_bytes", "swapped_bytes", "answers", "paused", "technique", "reason", "swapped_in_pages", "swapped_out_pages", "ballooned_pages", "discarded_pages", "refaults", "misplaced_pages", "waiting_pages", "waiting")
    GUEST_ID_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    MEMORY_BYTES_FIELD_NUMBER: _ClassVar[int]
    MIN_BYTES_FIELD_NUMBER: _ClassVar[int]
    MAX_BYTES_FIELD_NUMBER: _ClassVar[int]
    RESIDENT_BYTES_FIELD_NUMBER: _ClassVar[int]
    WORKING_SET_BYTES_FIELD_NUMBER: _ClassVar[int]
    BALLOONED_BYTES_FIELD_NUMBER: _ClassVar[int]
    SWAPPED_BYTES_FIELD_NUMBER: _ClassVar[int]
    ANSWERS_FIELD_NUMBER: _ClassVar[int]
    PAUSED_FIELD_NUMBER: _ClassVar[int]
    TECHNIQUE_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    SWAPPED_IN_PAGES_FIELD_NUMBER: _ClassVar[int]
    SWAPPED_OUT_PAGES_FIELD_NUMBER: _ClassVar[int]
    BALLOONED_PAGES_FIELD_NUMBER: _ClassVar[int]
    DISCARDED_PAGES_FIELD_NUMBER: _ClassVar[int]
    REFAULTS_FIELD_NUMBER: _ClassVar[int]
    MISPLACED_PAGES_FIELD_NUMBER: _ClassVar[int]
    WAITING_PAGES_FIELD_NUMBER: _ClassVar[int]
    WAITING_FIELD_NUMBER: _ClassVar[int]
    guest_id: str
    name: str
    memory_bytes: int
    min_bytes: int
    max_bytes: int
    resident_bytes: int
    working_set_bytes: int
    ballooned_bytes: int
    swapped_bytes: int
    answers: bool
    paused: str
    technique: str
    reason: str
    swapped_in_pages: int
    swapped_out_pages: int
    ballooned_pages: int
    discarded_pages: int
    refaults: int
    misplaced_pages: int
    waiting_pages: int
    waiting: str
    def __init__(self, guest_id: _Optional[str] = ..., name: _Optional[str] = ..., memory_bytes: _Optional[int] = ..., min_bytes: _Optional[int] = ..., max_bytes: _Optional[int] = ..., resident_bytes: _Optional[int] = ..., working_set_bytes: _Optional[int] = ..., ballooned_bytes: _Optional[int] = ..., swapped_bytes: _Optional[int] = ..., answers: _Optional[bool] = ..., paused: _Optional[str] = ..., technique: _Optional[str] = ..., reason: _Optional[str] = ..., swapped_in_pages: _Optional[int] = ..., swapped_out_pages: _Optional[int] = ..., ballooned_pages: _Optional[int] = ..., discarded_pages: _Optional[int] = ..., refaults: _Optional[int] = ..., misplaced_pages: _Optional[int] = ..., waiting_pages: _Optional[int] = ..., waiting: _Optional[str] = ...) -> None: ...

class MemoryStatus(_message.Message):
    __slots__ = ("host", "limit_bytes", "resident_bytes", "min_free_bytes", "pressure", "swapping", "swap_bytes", "swap_used_bytes", "guests", "swap_in_p50_s", "swap_in_p99_s", "promised_bytes")
    HOST_FIELD_NUMBER: _ClassVar[int]
    LIMIT_BYTES_FIELD_NUMBER: _ClassVar[int]
    RESIDENT_BYTES_FIELD_NUMBER: _ClassVar[int]
    MIN_FREE_BYTES_FIELD_NUMBER: _ClassVar[int]
    PRESSURE_FIELD_NUMBER: _ClassVar[int]
    SWAPPING_FIELD_NUMBER: _ClassVar[int]
    SWAP_BYTES_FIELD_NUMBER: _ClassVar[int]
    SWAP_USED_BYTES_FIELD_NUMBER: _ClassVar[int]
    GUESTS_FIELD_NUMBER: _ClassVar[int]
    SWAP_IN_P50_S_FIELD_NUMBER: _ClassVar[int]
    SWAP_IN_P99_S_FIELD_NUMBER: _ClassVar[int]
    PROMISED_BYTES_FIELD_NUMBER: _ClassVar[int]
    host: str
    limit_bytes: int
    resident_bytes: int
    min_free_bytes: int
    pressure: str
    swapping: str
    swap_bytes: int
    swap_used_bytes: int
    guests: _containers.RepeatedCompositeFieldContainer[GuestMemoryStatus]
    swap_in_p50_s: float
    swap_in_p99_s: float
    promised_bytes: int
    def __init__(self, host: _Optional[str] = ..., limit_bytes: _Optional[int] = ..., resident_bytes: _Optional[int] = ..., min_free_bytes: _Optional[int] = ..., pressure: _Optional[str] = ..., swapping: _Optional[str] = ..., swap_bytes: _Optional[int] = ..., swap_used_bytes: _Optional[int] = ..., guests: _Optional[_Iterable[_Union[GuestMemoryStatus, _Mapping]]] = ..., swap_in_p50_s: _Optional[float] = ..., swap_in_p99_s: _Optional[float] = ..., promised_bytes: _Optional[int] = ...) -> None: ...

class MemoryDecision(_message.Message):
    __slots__ = ("ago_s", "since_s", "times", "pressure", "technique", "target_bytes", "reclaimed_bytes", "reason", "available_bytes")
    AGO_S_FIELD_NUMBER: _ClassVar[int]
    SINCE_S_FIELD_NUMBER: _ClassVar[int]
    TIMES_FIELD_NUMBER: _ClassVar[int]
    PRESSURE_FIELD_NUMBER: _ClassVar[int]
    TECHNIQUE_FIELD_NUMBER: _ClassVar[int]
    TARGET_BYTES_FIELD_NUMBER: _ClassVar[int]
    RECLAIMED_BYTES_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    AVAILABLE_BYTES_FIELD_NUMBER: _ClassVar[int]
    ago_s: float
    since_s: float
    times: int
    pressure: str
    technique: str
    target_bytes: int
    reclaimed_bytes: int
    reason: str
    available_bytes: int
    def __init__(self, ago_s: _Optional[float] = ..., since_s: _Optional[float] = ..., times: _Optional[int] = ..., pressure: _Optional[str] = ..., technique: _Optional[str] = ..., target_bytes: _Optional[int] = ..., reclaimed_bytes: _Optional[int] = ..., reason: _Optional[str] = ..., available_bytes: _Optional[int] = ...) -> None: ...

class MemoryExplanation(_message.Message):
    __slots__ = ("guest", "classes", "sampled_pages", "samples", "decisions", "pressure")
    GUEST_FIELD_NUMBER: _ClassVar[int]
    CLASSES_FIELD_NUMBER: _ClassVar[int]
    SAMPLED_PAGES_FIELD_NUMBER: _ClassVar[int]
    SAMPLES_FIELD_NUMBER: _ClassVar[int]
    DECISIONS_FIELD_NUMBER: _ClassVar[int]
    PRESSURE_FIELD_NUMBER: _ClassVar[int]
    guest: GuestMemoryStatus
    classes: _containers.RepeatedCompositeFieldContainer[ClassEstimate]
    sampled_pages: int
    samples: int
    decisions: _containers.RepeatedCompositeFieldContainer[MemoryDecision]
    pressure: str
    def __init__(self, guest: _Optional[_Union[GuestMemoryStatus, _Mapping]] = ..., classes: _Optional[_Iterable[_Union[ClassEstimate, _Mapping]]] = ..., sampled_pages: _Optional[int] = ..., samples: _Optional[int] = ..., decisions: _Optional[_Iterable[_Union[MemoryDecision, _Mapping]]] = ..., pressure: _Optional[str] = ...) -> None: ...
