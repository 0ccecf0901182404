from everram.runtime.contracts import common_pb2 as _common_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class ResizeKind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    EXACTLY: _ClassVar[ResizeKind]
    AT_LEAST: _ClassVar[ResizeKind]
    BY: _ClassVar[ResizeKind]
EXACTLY: ResizeKind
AT_LEAST: ResizeKind
BY: ResizeKind

class QuiesceFiles(_message.Message):
    __slots__ = ("on",)
    ON_FIELD_NUMBER: _ClassVar[int]
    on: bool
    def __init__(self, on: _Optional[bool] = ...) -> None: ...

class Node(_message.Message):
    __slots__ = ("id", "folder", "mode", "host", "memory_id", "size_bytes", "persistent", "creator", "modified_ns", "parent", "name", "holder", "lost")
    ID_FIELD_NUMBER: _ClassVar[int]
    FOLDER_FIELD_NUMBER: _ClassVar[int]
    MODE_FIELD_NUMBER: _ClassVar[int]
    HOST_FIELD_NUMBER: _ClassVar[int]
    MEMORY_ID_FIELD_NUMBER: _ClassVar[int]
    SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
    PERSISTENT_FIELD_NUMBER: _ClassVar[int]
    CREATOR_FIELD_NUMBER: _ClassVar[int]
    MODIFIED_NS_FIELD_NUMBER: _ClassVar[int]
    PARENT_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    HOLDER_FIELD_NUMBER: _ClassVar[int]
    LOST_FIELD_NUMBER: _ClassVar[int]
    id: str
    folder: bool
    mode: int
    host: str
    memory_id: str
    size_bytes: int
    persistent: bool
    creator: str
    modified_ns: int
    parent: str
    name: str
    holder: str
    lost: str
    def __init__(self, id: _Optional[str] = ..., folder: _Optional[bool] = ..., mode: _Optional[int] = ..., host: _Optional[str] = ..., memory_id: _Optional[str] = ..., size_bytes: _Optional[int] = ..., persistent: _Optional[bool] = ..., creator: _Optional[str] = ..., modified_ns: _Optional[int] = ..., parent: _Optional[str] = ..., name: _Optional[str] = ..., holder: _Optional[str] = ..., lost: _Optional[str] = ...) -> None: ...

class NodeKey(_message.Message):
    __slots__ = ("id",)
    ID_FIELD_NUMBER: _ClassVar[int]
    id: str
    def __init__(self, id: _Optional[str] = ...) -> None: ...

class NodeList(_message.Message):
    __slots__ = ("nodes",)
    NODES_FIELD_NUMBER: _ClassVar[int]
    nodes: _containers.RepeatedCompositeFieldContainer[Node]
    def __init__(self, nodes: _Optional[_Iterable[_Union[Node, _Mapping]]] = ...) -> None: ...

class ResolveRequest(_message.Message):
    __slots__ = ("base", "path", "access")
    BASE_FIELD_NUMBER: _ClassVar[int]
    PATH_FIELD_NUMBER: _ClassVar[int]
    ACCESS_FIELD_NUMBER: _ClassVar[int]
    base: str
    path: str
    access: int
    def __init__(self, base: _Optional[str] = ..., path: _Optional[str] = ..., access: _Optional[int] = ...) -> None: ...

class CreateRequest(_message.Message):
    __slots__ = ("id", "parent", "name", "folder", "mode", "host", "persistent", "creator", "keeper", "modified_ns")
    ID_FIELD_NUMBER: _ClassVar[int]
    PARENT_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    FOLDER_FIELD_NUMBER: _ClassVar[int]
    MODE_FIELD_NUMBER: _ClassVar[int]
    HOST_FIELD_NUMBER: _ClassVar[int]
    PERSISTENT_FIELD_NUMBER: _ClassVar[int]
    CREATOR_FIELD_NUMBER: _ClassVar[int]
    KEEPER_FIELD_NUMBER: _ClassVar[int]
    MODIFIED_NS_FIELD_NUMBER: _ClassVar[int]
    id: str
    parent: str
    name: str
    folder: bool
    mode: int
    host: str
    persistent: bool
    creator: str
    keeper: str
    modified_ns: int
    def __init__(self, id: _Optional[str] = ..., parent: _Optional[str] = ..., name: _Optional[str] = ..., folder: _Optional[bool] = ..., mode: _Optional[int] = ..., host: _Optional[str] = ..., persistent: _Optional[bool] = ..., creator: _Optional[str] = ..., keeper: _Optional[str] = ..., modified_ns: _Optional[int] = ...) -> None: ...

class RenameRequest(_message.Message):
    __slots__ = ("parent", "name", "new_parent", "new_name", "id", "exclusive", "holder")
    PARENT_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    NEW_PARENT_FIELD_NUMBER: _ClassVar[int]
    NEW_NAME_FIELD_NUMBER: _ClassVar[int]
    ID_FIELD_NUMBER: _ClassVar[int]
    EXCLUSIVE_FIELD_NUMBER: _ClassVar[int]
    HOLDER_FIELD_NUMBER: _ClassVar[int]
    parent: str
    name: str
    new_parent: str
    new_name: str
    id: str
    exclusive: bool
    holder: str
    def __init__(self, parent: _Optional[str] = ..., name: _Optional[str] = ..., new_parent: _Optional[str] = ..., new_name: _Optional[str] = ..., id: _Optional[str] = ..., exclusive: _Optional[bool] = ..., holder: _Optional[str] = ...) -> None: ...

class UnlinkRequest(_message.Message):
    __slots__ = ("parent", "name", "id", "holder")
    PARENT_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    ID_FIELD_NUMBER: _ClassVar[int]
    HOLDER_FIELD_NUMBER: _ClassVar[int]
    parent: str
    name: str
    id: str
    holder: str
    def __init__(self, parent: _Optional[str] = ..., name: _Optional[str] = ..., id: _Optional[str] = ..., holder: _Optional[str] = ...) -> None: ...

class ChangeRequest(_message.Message):
    __slots__ = ("id", "mode", "size_bytes", "modified_ns", "resize")
    ID_FIELD_NUMBER: _ClassVar[int]
    MODE_FIELD_NUMBER: _ClassVar[int]
    SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
    MODIFIED_NS_FIELD_NUMBER: _ClassVar[int]
    RESIZE_FIELD_NUMBER: _ClassVar[int]
    id: str
    mode: int
    size_bytes: int
    modified_ns: int
    resize: bool
    def __init__(self, id: _Optional[str] = ..., mode: _Optional[int] = ..., size_bytes: _Optional[int] = ..., modified_ns: _Optional[int] = ..., resize: _Optional[bool] = ...) -> None: ...

class ManagerStatus(_message.Message):
    __slots__ = ("leads", "messages")
    LEADS_FIELD_NUMBER: _ClassVar[int]
    MESSAGES_FIELD_NUMBER: _ClassVar[int]
    leads: bool
    messages: int
    def __init__(self, leads: _Optional[bool] = ..., messages: _Optional[int] = ...) -> None: ...

class FileKey(_message.Message):
    __slots__ = ("id", "memory_id", "persistent", "refused")
    ID_FIELD_NUMBER: _ClassVar[int]
    MEMORY_ID_FIELD_NUMBER: _ClassVar[int]
    PERSISTENT_FIELD_NUMBER: _ClassVar[int]
    REFUSED_FIELD_NUMBER: _ClassVar[int]
    id: str
    memory_id: str
    persistent: bool
    refused: int
    def __init__(self, id: _Optional[str] = ..., memory_id: _Optional[str] = ..., persistent: _Optional[bool] = ..., refused: _Optional[int] = ...) -> None: ...

class Attachment(_message.Message):
    __slots__ = ("rkey", "size_bytes", "before_bytes")
    RKEY_FIELD_NUMBER: _ClassVar[int]
    SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
    BEFORE_BYTES_FIELD_NUMBER: _ClassVar[int]
    rkey: int
    size_bytes: int
    before_bytes: int
    def __init__(self, rkey: _Optional[int] = ..., size_bytes: _Optional[int] = ..., before_bytes: _Optional[int] = ...) -> None: ...

class ResizeRequest(_message.Message):
    __slots__ = ("file", "size_bytes", "kind")
    FILE_FIELD_NUMBER: _ClassVar[int]
    SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    file: FileKey
    size_bytes: int
    kind: ResizeKind
    def __init__(self, file: _Optional[_Union[FileKey, _Mapping]] = ..., size_bytes: _Optional[int] = ..., kind: _Optional[_Union[ResizeKind, str]] = ...) -> None: ...

class SessionKey(_message.Message):
    __slots__ = ("session",)
    SESSION_FIELD_NUMBER: _ClassVar[int]
    session: str
    def __init__(self, session: _Optional[str] = ...) -> None: ...

class OpenFileRequest(_message.Message):
    __slots__ = ("session", "path", "read", "write", "create", "exclusive", "truncate", "append", "mode", "host", "persistent", "creator")
    SESSION_FIELD_NUMBER: _ClassVar[int]
    PATH_FIELD_NUMBER: _ClassVar[int]
    READ_FIELD_NUMBER: _ClassVar[int]
    WRITE_FIELD_NUMBER: _ClassVar[int]
    CREATE_FIELD_NUMBER: _ClassVar[int]
    EXCLUSIVE_FIELD_NUMBER: _ClassVar[int]
    TRUNCATE_FIELD_NUMBER: _ClassVar[int]
    APPEND_FIELD_NUMBER: _ClassVar[int]
    MODE_FIELD_NUMBER: _ClassVar[int]
    HOST_FIELD_NUMBER: _ClassVar[int]
    PERSISTENT_FIELD_NUMBER: _ClassVar[int]
    CREATOR_FIELD_NUMBER: _ClassVar[int]
    session: str
    path: str
    read: bool
    write: bool
    create: bool
    exclusive: bool
    truncate: bool
    append: bool
    mode: int
    host: str
    persistent: bool
    creator: str
    def __init__(self, session: _Optional[str] = ..., path: _Optional[str] = ..., read: _Optional[bool] = ..., write: _Optional[bool] = ..., create: _Optional[bool] = ..., exclusive: _Optional[bool] = ..., truncate: _Optional[bool] = ..., append: _Optional[bool] = ..., mode: _Optional[int] = ..., host: _Optional[str] = ..., persistent: _Optional[bool] = ..., creator: _Optional[str] = ...) -> None: ...

class OpenFile(_message.Message):
    __slots__ = ("file", "node")
    FILE_FIELD_NUMBER: _ClassVar[int]
    NODE_FIELD_NUMBER: _ClassVar[int]
    file: Handle
    node: Node
    def __init__(self, file: _Optional[_Union[Handle, _Mapping]] = ..., node: _Optional[_Union[Node, _Mapping]] = ...) -> None: ...

class Handle(_message.Message):
    __slots__ = ("session", "handle")
    SESSION_FIELD_NUMBER: _ClassVar[int]
    HANDLE_FIELD_NUMBER: _ClassVar[int]
    session: str
    handle: int
    def __init__(self, session: _Optional[str] = ..., handle: _Optional[int] = ...) -> None: ...

class ReadRequest(_message.Message):
    __slots__ = ("file", "offset", "length")
    FILE_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    LENGTH_FIELD_NUMBER: _ClassVar[int]
    file: Handle
    offset: int
    length: int
    def __init__(self, file: _Optional[_Union[Handle, _Mapping]] = ..., offset: _Optional[int] = ..., length: _Optional[int] = ...) -> None: ...

class Piece(_message.Message):
    __slots__ = ("data",)
    DATA_FIELD_NUMBER: _ClassVar[int]
    data: bytes
    def __init__(self, data: _Optional[bytes] = ...) -> None: ...

class WriteRequest(_message.Message):
    __slots__ = ("file", "offset", "data")
    FILE_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    file: Handle
    offset: int
    data: bytes
    def __init__(self, file: _Optional[_Union[Handle, _Mapping]] = ..., offset: _Optional[int] = ..., data: _Optional[bytes] = ...) -> None: ...

class Written(_message.Message):
    __slots__ = ("offset", "size_bytes")
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
    offset: int
    size_bytes: int
    def __init__(self, offset: _Optional[int] = ..., size_bytes: _Optional[int] = ...) -> None: ...

class TruncateRequest(_message.Message):
    __slots__ = ("file", "size_bytes")
    FILE_FIELD_NUMBER: _ClassVar[int]
    SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
    file: Handle
    size_bytes: int
    def __init__(self, file: _Optional[_Union[Handle, _Mapping]] = ..., size_bytes: _Optional[int] = ...) -> None: ...

class PathRequest(_message.Message):
    __slots__ = ("path", "mode")
    PATH_FIELD_NUMBER: _ClassVar[int]
    MODE_FIELD_NUMBER: _ClassVar[int]
    path: str
    mode: int
    def __init__(self, path: _Optional[str] = ..., mode: _Optional[int] = ...) -> None: ...

class MovePath(_message.Message):
    __slots__ = ("path", "new_path", "exclusive")
    PATH_FIELD_NUMBER: _ClassVar[int]
    NEW_PATH_FIELD_NUMBER: _ClassVar[int]
    EXCLUSIVE_FIELD_NUMBER: _ClassVar[int]
    path: str
    new_path: str
    exclusive: bool
    def __init__(self, path: _Optional[str] = ..., new_path: _Optional[str] = ..., exclusive: _Optional[bool] = ...) -> None: ...

class MountRequest(_message.Message):
    __slots__ = ("folder", "passthrough")
    FOLDER_FIELD_NUMBER: _ClassVar[int]
    PASSTHROUGH_FIELD_NUMBER: _ClassVar[int]
    folder: str
    passthrough: bool
    def __init__(self, folder: _Optional[str] = ..., passthrough: _Optional[bool] = ...) -> None: ...

class AgentStatus(_message.Message):
    __slots__ = ("files", "files_bytes", "limit_bytes", "owner_messages", "manager_messages", "owner_asks", "one_sided_reads", "one_sided_writes", "local_reads", "local_writes", "open_files", "sessions", "mounts")
    FILES_FIELD_NUMBER: _ClassVar[int]
    FILES_BYTES_FIELD_NUMBER: _ClassVar[int]
    LIMIT_BYTES_FIELD_NUMBER: _ClassVar[int]
    OWNER_MESSAGES_FIELD_NUMBER: _ClassVar[int]
    MANAGER_MESSAGES_FIELD_NUMBER: _ClassVar[int]
    OWNER_ASKS_FIELD_NUMBER: _ClassVar[int]
    ONE_SIDED_READS_FIELD_NUMBER: _ClassVar[int]
    ONE_SIDED_WRITES_FIELD_NUMBER: _ClassVar[int]
    LOCAL_READS_FIELD_NUMBER: _ClassVar[int]
    LOCAL_WRITES_FIELD_NUMBER: _ClassVar[int]
    OPEN_FILES_FIELD_NUMBER: _ClassVar[int]
    SESSIONS_FIELD_NUMBER: _ClassVar[int]
    MOUNTS_FIELD_NUMBER: _ClassVar[int]
    files: int
    files_bytes: int
    limit_bytes: int
    owner_messages: int
    manager_messages: int
    owner_asks: int
    one_sided_reads: int
    one_sided_writes: int
    local_reads: int
    local_writes: int
    open_files: int
    sessions: int
    mounts: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, files: _Optional[int] = ..., files_bytes: _Optional[int] = ..., limit_bytes: _Optional[int] = ..., owner_messages: _Optional[int] = ..., manager_messages: _Optional[int] = ..., owner_asks: _Optional[int] = ..., one_sided_reads: _Optional[int] = ..., one_sided_writes: _Optional[int] = ..., local_reads: _Optional[int] = ..., local_writes: _Optional[int] = ..., open_files: _Optional[int] = ..., sessions: _Optional[int] = ..., mounts: _Optional[_Iterable[str]] = ...) -> None: ...
