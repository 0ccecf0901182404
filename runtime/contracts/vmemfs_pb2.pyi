from everram.runtime.contracts import common_pb2 as _common_pb2
from everram.runtime.contracts import replicator_pb2 as _replicator_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class GuestId(_message.Message):
    __slots__ = ("guest_id",)
    GUEST_ID_FIELD_NUMBER: _ClassVar[int]
    guest_id: str
    def __init__(self, guest_id: _Optional[str] = ...) -> None: ...

class Generation(_message.Message):
    __slots__ = ("generation",)
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    generation: int
    def __init__(self, generation: _Optional[int] = ...) -> None: ...

class StoredGuests(_message.Message):
    __slots__ = ("guests", "damaged")
    GUESTS_FIELD_NUMBER: _ClassVar[int]
    DAMAGED_FIELD_NUMBER: _ClassVar[int]
    guests: _containers.RepeatedCompositeFieldContainer[_common_pb2.Guest]
    damaged: _containers.RepeatedCompositeFieldContainer[DamagedGuest]
    def __init__(self, guests: _Optional[_Iterable[_Union[_common_pb2.Guest, _Mapping]]] = ..., damaged: _Optional[_Iterable[_Union[DamagedGuest, _Mapping]]] = ...) -> None: ...

class DamagedGuest(_message.Message):
    __slots__ = ("guest", "reason")
    GUEST_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    guest: _common_pb2.Guest
    reason: str
    def __init__(self, guest: _Optional[_Union[_common_pb2.Guest, _Mapping]] = ..., reason: _Optional[str] = ...) -> None: ...

class HostRecord(_message.Message):
    __slots__ = ("memory_id", "lease_id", "image", "hosts")
    MEMORY_ID_FIELD_NUMBER: _ClassVar[int]
    LEASE_ID_FIELD_NUMBER: _ClassVar[int]
    IMAGE_FIELD_NUMBER: _ClassVar[int]
    HOSTS_FIELD_NUMBER: _ClassVar[int]
    memory_id: str
    lease_id: int
    image: str
    hosts: int
    def __init__(self, memory_id: _Optional[str] = ..., lease_id: _Optional[int] = ..., image: _Optional[str] = ..., hosts: _Optional[int] = ...) -> None: ...

class Hop(_message.Message):
    __slots__ = ("number", "software", "found", "producer", "clean")
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    SOFTWARE_FIELD_NUMBER: _ClassVar[int]
    FOUND_FIELD_NUMBER: _ClassVar[int]
    PRODUCER_FIELD_NUMBER: _ClassVar[int]
    CLEAN_FIELD_NUMBER: _ClassVar[int]
    number: int
    software: str
    found: str
    producer: str
    clean: bool
    def __init__(self, number: _Optional[int] = ..., software: _Optional[str] = ..., found: _Optional[str] = ..., producer: _Optional[str] = ..., clean: _Optional[bool] = ...) -> None: ...

class History(_message.Message):
    __slots__ = ("hops",)
    HOPS_FIELD_NUMBER: _ClassVar[int]
    hops: _containers.RepeatedCompositeFieldContainer[Hop]
    def __init__(self, hops: _Optional[_Iterable[_Union[Hop, _Mapping]]] = ...) -> None: ...

class FileRecord(_message.Message):
    __slots__ = ("name", "guest_id", "size_bytes", "extents")
    NAME_FIELD_NUMBER: _ClassVar[int]
    GUEST_ID_FIELD_NUMBER: _ClassVar[int]
    SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
    EXTENTS_FIELD_NUMBER: _ClassVar[int]
    name: str
    guest_id: str
    size_bytes: int
    extents: _containers.RepeatedCompositeFieldContainer[FileExtent]
    def __init__(self, name: _Optional[str] = ..., guest_id: _Optional[str] = ..., size_bytes: _Optional[int] = ..., extents: _Optional[_Iterable[_Union[FileExtent, _Mapping]]] = ...) -> None: ...

class FileExtent(_message.Message):
    __slots__ = ("page", "object", "object_page", "pages")
    PAGE_FIELD_NUMBER: _ClassVar[int]
    OBJECT_FIELD_NUMBER: _ClassVar[int]
    OBJECT_PAGE_FIELD_NUMBER: _ClassVar[int]
    PAGES_FIELD_NUMBER: _ClassVar[int]
    page: int
    object: str
    object_page: int
    pages: int
    def __init__(self, page: _Optional[int] = ..., object: _Optional[str] = ..., object_page: _Optional[int] = ..., pages: _Optional[int] = ...) -> None: ...

class RollbackRequest(_message.Message):
    __slots__ = ("only_ask",)
    ONLY_ASK_FIELD_NUMBER: _ClassVar[int]
    only_ask: bool
    def __init__(self, only_ask: _Optional[bool] = ...) -> None: ...

class RollbackReport(_message.Message):
    __slots__ = ("format", "lost")
    FORMAT_FIELD_NUMBER: _ClassVar[int]
    LOST_FIELD_NUMBER: _ClassVar[int]
    format: str
    lost: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, format: _Optional[str] = ..., lost: _Optional[_Iterable[str]] = ...) -> None: ...

class VMemFSStatus(_message.Message):
    __slots__ = ("version", "generation", "hosts", "files", "memory_id", "producer", "history", "records")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    HOSTS_FIELD_NUMBER: _ClassVar[int]
    FILES_FIELD_NUMBER: _ClassVar[int]
    MEMORY_ID_FIELD_NUMBER: _ClassVar[int]
    PRODUCER_FIELD_NUMBER: _ClassVar[int]
    HISTORY_FIELD_NUMBER: _ClassVar[int]
    RECORDS_FIELD_NUMBER: _ClassVar[int]
    version: str
    generation: int
    hosts: int
    files: _containers.RepeatedCompositeFieldContainer[StoredFile]
    memory_id: str
    producer: str
    history: History
    records: _containers.RepeatedCompositeFieldContainer[FileRecord]
    def __init__(self, version: _Optional[str] = ..., generation: _Optional[int] = ..., hosts: _Optional[int] = ..., files: _Optional[_Iterable[_Union[StoredFile, _Mapping]]] = ..., memory_id: _Optional[str] = ..., producer: _Optional[str] = ..., history: _Optional[_Union[History, _Mapping]] = ..., records: _Optional[_Iterable[_Union[FileRecord, _Mapping]]] = ...) -> None: ...

class StoredFile(_message.Message):
    __slots__ = ("name", "size_bytes", "present_bytes")
    NAME_FIELD_NUMBER: _ClassVar[int]
    SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
    PRESENT_BYTES_FIELD_NUMBER: _ClassVar[int]
    name: str
    size_bytes: int
    present_bytes: int
    def __init__(self, name: _Optional[str] = ..., size_bytes: _Optional[int] = ..., present_bytes: _Optional[int] = ...) -> None: ...
