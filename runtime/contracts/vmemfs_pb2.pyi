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
    __slots__ = ("guests",)
    GUESTS_FIELD_NUMBER: _ClassVar[int]
    guests: _containers.RepeatedCompositeFieldContainer[_common_pb2.Guest]
    def __init__(self, guests: _Optional[_Iterable[_Union[_common_pb2.Guest, _Mapping]]] = ...) -> None: ...

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

class VMemFSStatus(_message.Message):
    __slots__ = ("version", "generation", "hosts", "files", "memory_id")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    HOSTS_FIELD_NUMBER: _ClassVar[int]
    FILES_FIELD_NUMBER: _ClassVar[int]
    MEMORY_ID_FIELD_NUMBER: _ClassVar[int]
    version: str
    generation: int
    hosts: int
    files: _containers.RepeatedCompositeFieldContainer[StoredFile]
    memory_id: str
    def __init__(self, version: _Optional[str] = ..., generation: _Optional[int] = ..., hosts: _Optional[int] = ..., files: _Optional[_Iterable[_Union[StoredFile, _Mapping]]] = ..., memory_id: _Optional[str] = ...) -> None: ...

class StoredFile(_message.Message):
    __slots__ = ("name", "size_bytes", "present_bytes")
    NAME_FIELD_NUMBER: _ClassVar[int]
    SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
    PRESENT_BYTES_FIELD_NUMBER: _ClassVar[int]
    name: str
    size_bytes: int
    present_bytes: int
    def __init__(self, name: _Optional[str] = ..., size_bytes: _Optional[int] = ..., present_bytes: _Optional[int] = ...) -> None: ...
