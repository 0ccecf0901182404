from everram.runtime.contracts import common_pb2 as _common_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class ClusterStatus(_message.Message):
    __slots__ = ("cluster", "cluster_id", "pid", "machines", "coordination", "ports")
    CLUSTER_FIELD_NUMBER: _ClassVar[int]
    CLUSTER_ID_FIELD_NUMBER: _ClassVar[int]
    PID_FIELD_NUMBER: _ClassVar[int]
    MACHINES_FIELD_NUMBER: _ClassVar[int]
    COORDINATION_FIELD_NUMBER: _ClassVar[int]
    PORTS_FIELD_NUMBER: _ClassVar[int]
    cluster: str
    cluster_id: str
    pid: int
    machines: _containers.RepeatedCompositeFieldContainer[MachineStatus]
    coordination: CoordinationStatus
    ports: _containers.RepeatedCompositeFieldContainer[PublishedPort]
    def __init__(self, cluster: _Optional[str] = ..., cluster_id: _Optional[str] = ..., pid: _Optional[int] = ..., machines: _Optional[_Iterable[_Union[MachineStatus, _Mapping]]] = ..., coordination: _Optional[_Union[CoordinationStatus, _Mapping]] = ..., ports: _Optional[_Iterable[_Union[PublishedPort, _Mapping]]] = ...) -> None: ...

class MachineStatus(_message.Message):
    __slots__ = ("name", "state", "pid", "host_pid", "host_state", "host_restarts", "host_socket", "reason", "cut", "mains", "battery_s", "faults")
    NAME_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    PID_FIELD_NUMBER: _ClassVar[int]
    HOST_PID_FIELD_NUMBER: _ClassVar[int]
    HOST_STATE_FIELD_NUMBER: _ClassVar[int]
    HOST_RESTARTS_FIELD_NUMBER: _ClassVar[int]
    HOST_SOCKET_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    CUT_FIELD_NUMBER: _ClassVar[int]
    MAINS_FIELD_NUMBER: _ClassVar[int]
    BATTERY_S_FIELD_NUMBER: _ClassVar[int]
    FAULTS_FIELD_NUMBER: _ClassVar[int]
    name: str
    state: str
    pid: int
    host_pid: int
    host_state: str
    host_restarts: int
    host_socket: str
    reason: str
    cut: bool
    mains: bool
    battery_s: float
    faults: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, name: _Optional[str] = ..., state: _Optional[str] = ..., pid: _Optional[int] = ..., host_pid: _Optional[int] = ..., host_state: _Optional[str] = ..., host_restarts: _Optional[int] = ..., host_socket: _Optional[str] = ..., reason: _Optional[str] = ..., cut: _Optional[bool] = ..., mains: _Optional[bool] = ..., battery_s: _Optional[float] = ..., faults: _Optional[_Iterable[str]] = ...) -> None: ...

class CoordinationStatus(_message.Message):
    __slots__ = ("address", "state", "pid", "restarts")
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    PID_FIELD_NUMBER: _ClassVar[int]
    RESTARTS_FIELD_NUMBER: _ClassVar[int]
    address: str
    state: str
    pid: int
    restarts: int
    def __init__(self, address: _Optional[str] = ..., state: _Optional[str] = ..., pid: _Optional[int] = ..., restarts: _Optional[int] = ...) -> None: ...

class PublishedPort(_message.Message):
    __slots__ = ("port", "guest", "epoch", "backend_port", "connections")
    PORT_FIELD_NUMBER: _ClassVar[int]
    GUEST_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    BACKEND_PORT_FIELD_NUMBER: _ClassVar[int]
    CONNECTIONS_FIELD_NUMBER: _ClassVar[int]
    port: int
    guest: str
    epoch: int
    backend_port: int
    connections: int
    def __init__(self, port: _Optional[int] = ..., guest: _Optional[str] = ..., epoch: _Optional[int] = ..., backend_port: _Optional[int] = ..., connections: _Optional[int] = ...) -> None: ...

class DownRequest(_message.Message):
    __slots__ = ("discard",)
    DISCARD_FIELD_NUMBER: _ClassVar[int]
    discard: bool
    def __init__(self, discard: _Optional[bool] = ...) -> None: ...

class Progress(_message.Message):
    __slots__ = ("text", "done", "error")
    TEXT_FIELD_NUMBER: _ClassVar[int]
    DONE_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    text: str
    done: bool
    error: _common_pb2.Error
    def __init__(self, text: _Optional[str] = ..., done: _Optional[bool] = ..., error: _Optional[_Union[_common_pb2.Error, _Mapping]] = ...) -> None: ...

class FaultRequest(_message.Message):
    __slots__ = ("target", "name")
    TARGET_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    target: str
    name: str
    def __init__(self, target: _Optional[str] = ..., name: _Optional[str] = ...) -> None: ...

class PowerRequest(_message.Message):
    __slots__ = ("machines", "on", "open_image")
    MACHINES_FIELD_NUMBER: _ClassVar[int]
    ON_FIELD_NUMBER: _ClassVar[int]
    OPEN_IMAGE_FIELD_NUMBER: _ClassVar[int]
    machines: _containers.RepeatedScalarFieldContainer[str]
    on: bool
    open_image: str
    def __init__(self, machines: _Optional[_Iterable[str]] = ..., on: _Optional[bool] = ..., open_image: _Optional[str] = ...) -> None: ...

class UpgradeRequest(_message.Message):
    __slots__ = ("machine", "python", "preflight", "pause")
    MACHINE_FIELD_NUMBER: _ClassVar[int]
    PYTHON_FIELD_NUMBER: _ClassVar[int]
    PREFLIGHT_FIELD_NUMBER: _ClassVar[int]
    PAUSE_FIELD_NUMBER: _ClassVar[int]
    machine: str
    python: str
    preflight: bool
    pause: bool
    def __init__(self, machine: _Optional[str] = ..., python: _Optional[str] = ..., preflight: _Optional[bool] = ..., pause: _Optional[bool] = ...) -> None: ...

class GiveUpgradeUpRequest(_message.Message):
    __slots__ = ("machine",)
    MACHINE_FIELD_NUMBER: _ClassVar[int]
    machine: str
    def __init__(self, machine: _Optional[str] = ...) -> None: ...

class UpgradeReport(_message.Message):
    __slots__ = ("upgraded", "version", "producer", "format", "reads", "guests", "steps")
    UPGRADED_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    PRODUCER_FIELD_NUMBER: _ClassVar[int]
    FORMAT_FIELD_NUMBER: _ClassVar[int]
    READS_FIELD_NUMBER: _ClassVar[int]
    GUESTS_FIELD_NUMBER: _ClassVar[int]
    STEPS_FIELD_NUMBER: _ClassVar[int]
    upgraded: bool
    version: str
    producer: str
    format: str
    reads: str
    guests: int
    steps: _containers.RepeatedCompositeFieldContainer[StepTime]
    def __init__(self, upgraded: _Optional[bool] = ..., version: _Optional[str] = ..., producer: _Optional[str] = ..., format: _Optional[str] = ..., reads: _Optional[str] = ..., guests: _Optional[int] = ..., steps: _Optional[_Iterable[_Union[StepTime, _Mapping]]] = ...) -> None: ...

class StepTime(_message.Message):
    __slots__ = ("step", "ns")
    STEP_FIELD_NUMBER: _ClassVar[int]
    NS_FIELD_NUMBER: _ClassVar[int]
    step: str
    ns: int
    def __init__(self, step: _Optional[str] = ..., ns: _Optional[int] = ...) -> None: ...

class PortRequest(_message.Message):
    __slots__ = ("port", "guest")
    PORT_FIELD_NUMBER: _ClassVar[int]
    GUEST_FIELD_NUMBER: _ClassVar[int]
    port: int
    guest: str
    def __init__(self, port: _Optional[int] = ..., guest: _Optional[str] = ...) -> None: ...
