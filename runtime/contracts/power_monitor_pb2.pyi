from everram.runtime.contracts import common_pb2 as _common_pb2
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Optional as _Optional

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
    __slots__ = ("image", "image_generation", "restored_from")
    IMAGE_FIELD_NUMBER: _ClassVar[int]
    IMAGE_GENERATION_FIELD_NUMBER: _ClassVar[int]
    RESTORED_FROM_FIELD_NUMBER: _ClassVar[int]
    image: str
    image_generation: int
    restored_from: str
    def __init__(self, image: _Optional[str] = ..., image_generation: _Optional[int] = ..., restored_from: _Optional[str] = ...) -> None: ...
