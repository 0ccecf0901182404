from everram.runtime.contracts import common_pb2 as _common_pb2
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Optional as _Optional

DESCRIPTOR: _descriptor.FileDescriptor

class FollowRequest(_message.Message):
    __slots__ = ("guest_id", "log")
    GUEST_ID_FIELD_NUMBER: _ClassVar[int]
    LOG_FIELD_NUMBER: _ClassVar[int]
    guest_id: str
    log: str
    def __init__(self, guest_id: _Optional[str] = ..., log: _Optional[str] = ...) -> None: ...
