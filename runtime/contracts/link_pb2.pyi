from everram.runtime.contracts import common_pb2 as _common_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Batch(_message.Message):
    __slots__ = ("sequence", "hello", "frames", "heartbeat_ms", "checksum")
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    HELLO_FIELD_NUMBER: _ClassVar[int]
    FRAMES_FIELD_NUMBER: _ClassVar[int]
    HEARTBEAT_MS_FIELD_NUMBER: _ClassVar[int]
    CHECKSUM_FIELD_NUMBER: _ClassVar[int]
    sequence: int
    hello: Hello
    frames: _containers.RepeatedCompositeFieldContainer[Frame]
    heartbeat_ms: int
    checksum: int
    def __init__(self, sequence: _Optional[int] = ..., hello: _Optional[_Union[Hello, _Mapping]] = ..., frames: _Optional[_Iterable[_Union[Frame, _Mapping]]] = ..., heartbeat_ms: _Optional[int] = ..., checksum: _Optional[int] = ...) -> None: ...

class Hello(_message.Message):
    __slots__ = ("cluster_id", "host_id", "host", "protocol", "session", "incarnation", "replaces")
    CLUSTER_ID_FIELD_NUMBER: _ClassVar[int]
    HOST_ID_FIELD_NUMBER: _ClassVar[int]
    HOST_FIELD_NUMBER: _ClassVar[int]
    PROTOCOL_FIELD_NUMBER: _ClassVar[int]
    SESSION_FIELD_NUMBER: _ClassVar[int]
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    REPLACES_FIELD_NUMBER: _ClassVar[int]
    cluster_id: str
    host_id: str
    host: str
    protocol: int
    session: str
    incarnation: str
    replaces: str
    def __init__(self, cluster_id: _Optional[str] = ..., host_id: _Optional[str] = ..., host: _Optional[str] = ..., protocol: _Optional[int] = ..., session: _Optional[str] = ..., incarnation: _Optional[str] = ..., replaces: _Optional[str] = ...) -> None: ...

class Frame(_message.Message):
    __slots__ = ("kind", "id", "method", "payload", "timeout_ms", "error", "room")
    class Kind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        KIND_UNSPECIFIED: _ClassVar[Frame.Kind]
        TELL: _ClassVar[Frame.Kind]
        ASK: _ClassVar[Frame.Kind]
        STREAM: _ClassVar[Frame.Kind]
        REPLY: _ClassVar[Frame.Kind]
        ITEM: _ClassVar[Frame.Kind]
        END: _ClassVar[Frame.Kind]
        ERROR: _ClassVar[Frame.Kind]
        CANCEL: _ClassVar[Frame.Kind]
        MORE: _ClassVar[Frame.Kind]
        LEAVING: _ClassVar[Frame.Kind]
        LEFT: _ClassVar[Frame.Kind]
    KIND_UNSPECIFIED: Frame.Kind
    TELL: Frame.Kind
    ASK: Frame.Kind
    STREAM: Frame.Kind
    REPLY: Frame.Kind
    ITEM: Frame.Kind
    END: Frame.Kind
    ERROR: Frame.Kind
    CANCEL: Frame.Kind
    MORE: Frame.Kind
    LEAVING: Frame.Kind
    LEFT: Frame.Kind
    KIND_FIELD_NUMBER: _ClassVar[int]
    ID_FIELD_NUMBER: _ClassVar[int]
    METHOD_FIELD_NUMBER: _ClassVar[int]
    PAYLOAD_FIELD_NUMBER: _ClassVar[int]
    TIMEOUT_MS_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    ROOM_FIELD_NUMBER: _ClassVar[int]
    kind: Frame.Kind
    id: int
    method: str
    payload: bytes
    timeout_ms: int
    error: _common_pb2.Error
    room: int
    def __init__(self, kind: _Optional[_Union[Frame.Kind, str]] = ..., id: _Optional[int] = ..., method: _Optional[str] = ..., payload: _Optional[bytes] = ..., timeout_ms: _Optional[int] = ..., error: _Optional[_Union[_common_pb2.Error, _Mapping]] = ..., room: _Optional[int] = ...) -> None: ...
