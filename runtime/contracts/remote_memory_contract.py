"""Generated from proto/remote_memory.proto by proto/generate.py; do not edit."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Coroutine
from typing import Any

from everram.runtime.actor import Actor
from everram.runtime.contracts import common_pb2, remote_memory_pb2
from everram.runtime.method import DEFAULT_TIMEOUT_S, Contract, Method
from everram.runtime.refs import Ref, Replies


REMOTE_MEMORY_RESOLVE = Method("everram.v1.RemoteMemory", "Resolve", remote_memory_pb2.ResolveRequest, remote_memory_pb2.Node)
REMOTE_MEMORY_STAT = Method("everram.v1.RemoteMemory", "Stat", remote_memory_pb2.NodeKey, remote_memory_pb2.Node)
REMOTE_MEMORY_LIST = Method("everram.v1.RemoteMemory", "List", remote_memory_pb2.NodeKey, remote_memory_pb2.NodeList)
REMOTE_MEMORY_CREATE = Method("everram.v1.RemoteMemory", "Create", remote_memory_pb2.CreateRequest, remote_memory_pb2.Node)
REMOTE_MEMORY_RENAME = Method("everram.v1.RemoteMemory", "Rename", remote_memory_pb2.RenameRequest, remote_memory_pb2.Node)
REMOTE_MEMORY_UNLINK = Method("everram.v1.RemoteMemory", "Unlink", remote_memory_pb2.UnlinkRequest, remote_memory_pb2.Node)
REMOTE_MEMORY_REMOVE_FOLDER = Method("everram.v1.RemoteMemory", "RemoveFolder", remote_memory_pb2.UnlinkRequest, remote_memory_pb2.Node)
REMOTE_MEMORY_RELEASE = Method("everram.v1.RemoteMemory", "Release", remote_memory_pb2.NodeKey, remote_memory_pb2.Node)
REMOTE_MEMORY_CHANGE = Method("everram.v1.RemoteMemory", "Change", remote_memory_pb2.ChangeRequest, remote_memory_pb2.Node)
REMOTE_MEMORY_STATUS = Method("everram.v1.RemoteMemory", "Status", common_pb2.Empty, remote_memory_pb2.ManagerStatus)
REMOTE_MEMORY = Contract("everram.v1.RemoteMemory", (REMOTE_MEMORY_RESOLVE, REMOTE_MEMORY_STAT, REMOTE_MEMORY_LIST, REMOTE_MEMORY_CREATE, REMOTE_MEMORY_RENAME, REMOTE_MEMORY_UNLINK, REMOTE_MEMORY_REMOVE_FOLDER, REMOTE_MEMORY_RELEASE, REMOTE_MEMORY_CHANGE, REMOTE_MEMORY_STATUS,))


class RemoteMemoryRef(Ref):
    """Asks a RemoteMemory actor, wherever it is."""

    contract = REMOTE_MEMORY

    def resolve(
        self, request: remote_memory_pb2.ResolveRequest, *, timeout_s: float = DEFAULT_TIMEOUT_S
    ) -> Coroutine[Any, Any, remote_memory_pb2.Node]:
        return self.ask(REMOTE_MEMORY_RESOLVE, request, timeout_s)

    def stat(
        self, request: remote_memory_pb2.NodeKey, *, timeout_s: float = DEFAULT_TIMEOUT_S
    ) -> Coroutine[Any, Any, remote_memory_pb2.Node]:
        return self.ask(REMOTE_MEMORY_STAT, request, timeout_s)

    def list(
        self, request: remote_memory_pb2.NodeKey, *, timeout_s: float = DEFAULT_TIMEOUT_S
    ) -> Coroutine[Any, Any, remote_memory_pb2.NodeList]:
        return self.ask(REMOTE_MEMORY_LIST, request, timeout_s)

    def create(
        self, request: remote_memory_pb2.CreateRequest, *, timeout_s: float = DEFAULT_TIMEOUT_S
    ) -> Coroutine[Any, Any, remote_memory_pb2.Node]:
        return self.ask(REMOTE_MEMORY_CREATE, request, timeout_s)

    def rename(
        self, request: remote_memory_pb2.RenameRequest, *, timeout_s: float = DEFAULT_TIMEOUT_S
    ) -> Coroutine[Any, Any, remote_memory_pb2.Node]:
        return self.ask(REMOTE_MEMORY_RENAME, request, timeout_s)

    def unlink(
        self, request: remote_memory_pb2.UnlinkRequest, *, timeout_s: float = DEFAULT_TIMEOUT_S
    ) -> Coroutine[Any, Any, remote_memory_pb2.Node]:
        return self.ask(REMOTE_MEMORY_UNLINK, request, timeout_s)

    def remove_folder(
        self, request: remote_memory_pb2.UnlinkRequest, *, timeout_s: float = DEFAULT_TIMEOUT_S
    ) -> Coroutine[Any, Any, remote_memory_pb2.Node]:
        return self.ask(REMOTE_MEMORY_REMOVE_FOLDER, request, timeout_s)

    def release(
        self, request: remote_memory_pb2.NodeKey, *, timeout_s: float = DEFAULT_TIMEOUT_S
    ) -> Coroutine[Any, Any, remote_memory_pb2.Node]:
        return self.ask(REMOTE_MEMORY_RELEASE, request, timeout_s)

    def change(
        self, request: remote_memory_pb2.ChangeRequest, *, timeout_s: float = DEFAULT_TIMEOUT_S
    ) -> Coroutine[Any, Any, remote_memory_pb2.Node]:
        return self.ask(REMOTE_MEMORY_CHANGE, request, timeout_s)

    def status(
        self, request: common_pb2.Empty, *, timeout_s: float = DEFAULT_TIMEOUT_S
    ) -> Coroutine[Any, Any, remote_memory_pb2.ManagerStatus]:
        return self.ask(REMOTE_MEMORY_STATUS, request, timeout_s)


class RemoteMemoryActor(Actor):
    """Answers the RemoteMemory contract: override every method."""

    contract = REMOTE_MEMORY

    def resolve(self, request: remote_memory_pb2.ResolveRequest) -> remote_memory_pb2.Node | Awaitable[remote_memory_pb2.Node]:
        raise NotImplementedError

    def stat(self, request: remote_memory_pb2.NodeKey) -> remote_memory_pb2.Node | Awaitable[remote_memory_pb2.Node]:
        raise NotImplementedError

    def list(self, request: remote_memory_pb2.NodeKey) -> remote_memory_pb2.NodeList | Awaitable[remote_memory_pb2.NodeList]:
        raise NotImplementedError

    def create(self, request: remote_memory_pb2.CreateRequest) -> remote_memory_pb2.Node | Awaitable[remote_memory_pb2.Node]:
        raise NotImplementedError

    def rename(self, request: remote_memory_pb2.RenameRequest) -> remote_memory_pb2.Node | Awaitable[remote_memory_pb2.Node]:
        raise NotImplementedError

    def unlink(self, request: remote_memory_pb2.UnlinkRequest) -> remote_memory_pb2.Node | Awaitable[remote_memory_pb2.Node]:
        raise NotImplementedError

    def remove_folder(self, request: remote_memory_pb2.UnlinkRequest) -> remote_memory_pb2.Node | Awaitable[remote_memory_pb2.Node]:
        raise NotImplementedError

    def release(self, request: remote_memory_pb2.NodeKey) -> remote_memory_pb2.Node | Awaitable[remote_memory_pb2.Node]:
        raise NotImplementedError

    def change(self, request: remote_memory_pb2.ChangeRequest) -> remote_memory_pb2.Node | Awaitable[remote_memory_pb2.Node]:
        raise NotImplementedError

    def status(self, request: common_pb2.Empty) -> remote_memory_pb2.ManagerStatus | Awaitable[remote_memory_pb2.ManagerStatus]:
        raise NotImplementedError


MEMORY_AGENT_MAKE = Method("everram.v1.MemoryAgent", "Make", remote_memory_pb2.FileKey, common_pb2.Empty)
MEMORY_AGENT_ATTACH = Method("everram.v1.MemoryAgent", "Attach", remote_memory_pb2.FileKey, remote_memory_pb2.Attachment)
MEMORY_AGENT_RESIZE = Method("everram.v1.MemoryAgent", "Resize", remote_memory_pb2.ResizeRequest, remote_memory_pb2.Attachment)
MEMORY_AGENT_DROP = Method("everram.v1.MemoryAgent", "Drop", remote_memory_pb2.FileKey, common_pb2.Empty)
MEMORY_AGENT_QUIESCE = Method("everram.v1.MemoryAgent", "Quiesce", remote_memory_pb2.QuiesceFiles, common_pb2.Empty)
MEMORY_AGENT_SESSION = Method("everram.v1.MemoryAgent", "Session", common_pb2.Empty, remote_memory_pb2.SessionKey, streams=True)
MEMORY_AGENT_OPEN = Method("everram.v1.MemoryAgent", "Open", remote_memory_pb2.OpenFileRequest, remote_memory_pb2.OpenFile)
MEMORY_AGENT_READ = Method("everram.v1.MemoryAgent", "Read", remote_memory_pb2.ReadRequest, remote_memory_pb2.Piece, streams=True)
MEMORY_AGENT_WRITE = Method("everram.v1.MemoryAgent", "Write", remote_memory_pb2.WriteRequest, remote_memory_pb2.Written)
MEMORY_AGENT_SIZE = Method("everram.v1.MemoryAgent", "Size", remote_memory_pb2.Handle, remote_memory_pb2.Written)
MEMORY_AGENT_TRUNCATE = Method("everram.v1.MemoryAgent", "Truncate", remote_memory_pb2.TruncateRequest, common_pb2.Empty)
MEMORY_AGENT_FLUSH = Method("everram.v1.MemoryAgent", "Flush", remote_memory_pb2.Handle, common_pb2.Empty)
MEMORY_AGENT_CLOSE = Method("everram.v1.MemoryAgent", "Close", remote_memory_pb2.Handle, common_pb2.Empty)
MEMORY_AGENT_STAT_PATH = Method("everram.v1.MemoryAgent", "StatPath", remote_memory_pb2.PathRequest, remote_memory_pb2.Node)
MEMORY_AGENT_LIST_PATH = Method("everram.v1.MemoryAgent", "ListPath", remote_memory_pb2.PathRequest, remote_memory_pb2.NodeList)
MEMORY_AGENT_MAKE_FOLDER = Method("everram.v1.MemoryAgent", "MakeFolder", remote_memory_pb2.PathRequest, remote_memory_pb2.Node)
MEMORY_AGENT_REMOVE = Method("everram.v1.MemoryAgent", "Remove", remote_memory_pb2.PathRequest, common_pb2.Empty)
MEMORY_AGENT_REMOVE_FOLDER_AT = Method("everram.v1.MemoryAgent", "RemoveFolderAt", remote_memory_pb2.PathRequest, common_pb2.Empty)
MEMORY_AGENT_MOVE = Method("everram.v1.MemoryAgent", "Move", remote_memory_pb2.MovePath, remote_memory_pb2.Node)
MEMORY_AGENT_SET_MODE = Method("everram.v1.MemoryAgent", "SetMode", remote_memory_pb2.PathRequest, remote_memory_pb2.Node)
MEMORY_AGENT_MOUNT = Method("everram.v1.MemoryAgent", "Mount", remote_memory_pb2.MountRequest, common_pb2.Empty)
MEMORY_AGENT_STATUS = Method("everram.v1.MemoryAgent", "Status", common_pb2.Empty, remote_memory_pb2.AgentStatus)
MEMORY_AGENT = Contract("everram.v1.MemoryAgent", (MEMORY_AGENT_MAKE, MEMORY_AGENT_ATTACH, MEMORY_AGENT_RESIZE, MEMORY_AGENT_DROP, MEMORY_AGENT_QUIESCE, MEMORY_AGENT_SESSION, MEMORY_AGENT_OPEN, MEMORY_AGENT_READ, MEMORY_AGENT_WRITE, MEMORY_AGENT_SIZE, MEMORY_AGENT_TRUNCATE, MEMORY_AGENT_FLUSH, MEMORY_AGENT_CLOSE, MEMORY_AGENT_STAT_PATH, MEMORY_AGENT_LIST_PATH, MEMORY_AGENT_MAKE_FOLDER, MEMORY_AGENT_REMOVE, MEMORY_AGENT_REMOVE_FOLDER_AT, MEMORY_AGENT_MOVE, MEMORY_AGENT_SET_MODE, MEMORY_AGENT_MOUNT, MEMORY_AGENT_STATUS,))


class MemoryAgentRef(Ref):
    """Asks a MemoryAgent actor, wherever it is."""

    contract = MEMORY_AGENT

    def make(
        self, request: remote_memory_pb2.FileKey, *, timeout_s: float = DEFAULT_TIMEOUT_S
    ) -> Coroutine[Any, Any, common_pb2.Empty]:
        return self.ask(MEMORY_AGENT_MAKE, request, timeout_s)

    def attach(
        self, request: remote_memory_pb2.FileKey, *, timeout_s: float = DEFAULT_TIMEOUT_S
    ) -> Coroutine[Any, Any, remote_memory_pb2.Attachment]:
        return self.ask(MEMORY_AGENT_ATTACH, request, timeout_s)

    def resize(
        self, request: remote_memory_pb2.ResizeRequest, *, timeout_s: float = DEFAULT_TIMEOUT_S
    ) -> Coroutine[Any, Any, remote_memory_pb2.Attachment]:
        return self.ask(MEMORY_AGENT_RESIZE, request, timeout_s)

    def drop(
        self, request: remote_memory_pb2.FileKey, *, timeout_s: float = DEFAULT_TIMEOUT_S
    ) -> Coroutine[Any, Any, common_pb2.Empty]:
        return self.ask(MEMORY_AGENT_DROP, request, timeout_s)

    def quiesce(
        self, request: remote_memory_pb2.QuiesceFiles, *, timeout_s: float = DEFAULT_TIMEOUT_S
    ) -> Coroutine[Any, Any, common_pb2.Empty]:
        return self.ask(MEMORY_AGENT_QUIESCE, request, timeout_s)

    def session(
        self, request: common_pb2.Empty, *, timeout_s: float | None = None
    ) -> Replies[remote_memory_pb2.SessionKey]:
        return self.stream(MEMORY_AGENT_SESSION, request, timeout_s)

    def open(
        self, request: remote_memory_pb2.OpenFileRequest, *, timeout_s: float = DEFAULT_TIMEOUT_S
    ) -> Coroutine[Any, Any, remote_memory_pb2.OpenFile]:
        return self.ask(MEMORY_AGENT_OPEN, request, timeout_s)

    def read(
        self, request: remote_memory_pb2.ReadRequest, *, timeout_s: float | None = None
    ) -> Replies[remote_memory_pb2.Piece]:
        return self.stream(MEMORY_AGENT_READ, request, timeout_s)

    def write(
        self, request: remote_memory_pb2.WriteRequest, *, timeout_s: float = DEFAULT_TIMEOUT_S
    ) -> Coroutine[Any, Any, remote_memory_pb2.Written]:
        return self.ask(MEMORY_AGENT_WRITE, request, timeout_s)

    def size(
        self, request: remote_memory_pb2.Handle, *, timeout_s: float = DEFAULT_TIMEOUT_S
    ) -> Coroutine[Any, Any, remote_memory_pb2.Written]:
        return self.ask(MEMORY_AGENT_SIZE, request, timeout_s)

    def truncate(
        self, request: remote_memory_pb2.TruncateRequest, *, timeout_s: float = DEFAULT_TIMEOUT_S
    ) -> Coroutine[Any, Any, common_pb2.Empty]:
        return self.ask(MEMORY_AGENT_TRUNCATE, request, timeout_s)

    def flush(
        self, request: remote_memory_pb2.Handle, *, timeout_s: float = DEFAULT_TIMEOUT_S
    ) -> Coroutine[Any, Any, common_pb2.Empty]:
        return self.ask(MEMORY_AGENT_FLUSH, request, timeout_s)

    def close(
        self, request: remote_memory_pb2.Handle, *, timeout_s: float = DEFAULT_TIMEOUT_S
    ) -> Coroutine[Any, Any, common_pb2.Empty]:
        return self.ask(MEMORY_AGENT_CLOSE, request, timeout_s)

    def stat_path(
        self, request: remote_memory_pb2.PathRequest, *, timeout_s: float = DEFAULT_TIMEOUT_S
    ) -> Coroutine[Any, Any, remote_memory_pb2.Node]:
        return self.ask(MEMORY_AGENT_STAT_PATH, request, timeout_s)

    def list_path(
        self, request: remote_memory_pb2.PathRequest, *, timeout_s: float = DEFAULT_TIMEOUT_S
    ) -> Coroutine[Any, Any, remote_memory_pb2.NodeList]:
        return self.ask(MEMORY_AGENT_LIST_PATH, request, timeout_s)

    def make_folder(
        self, request: remote_memory_pb2.PathRequest, *, timeout_s: float = DEFAULT_TIMEOUT_S
    ) -> Coroutine[Any, Any, remote_memory_pb2.Node]:
        return self.ask(MEMORY_AGENT_MAKE_FOLDER, request, timeout_s)

    def remove(
        self, request: remote_memory_pb2.PathRequest, *, timeout_s: float = DEFAULT_TIMEOUT_S
    ) -> Coroutine[Any, Any, common_pb2.Empty]:
        return self.ask(MEMORY_AGENT_REMOVE, request, timeout_s)

    def remove_folder_at(
        self, request: remote_memory_pb2.PathRequest, *, timeout_s: float = DEFAULT_TIMEOUT_S
    ) -> Coroutine[Any, Any, common_pb2.Empty]:
        return self.ask(MEMORY_AGENT_REMOVE_FOLDER_AT, request, timeout_s)

    def move(
        self, request: remote_memory_pb2.MovePath, *, timeout_s: float = DEFAULT_TIMEOUT_S
    ) -> Coroutine[Any, Any, remote_memory_pb2.Node]:
        return self.ask(MEMORY_AGENT_MOVE, request, timeout_s)

    def set_mode(
        self, request: remote_memory_pb2.PathRequest, *, timeout_s: float = DEFAULT_TIMEOUT_S
    ) -> Coroutine[Any, Any, remote_memory_pb2.Node]:
        return self.ask(MEMORY_AGENT_SET_MODE, request, timeout_s)

    def mount(
        self, request: remote_memory_pb2.MountRequest, *, timeout_s: float = DEFAULT_TIMEOUT_S
    ) -> Coroutine[Any, Any, common_pb2.Empty]:
        return self.ask(MEMORY_AGENT_MOUNT, request, timeout_s)

    def status(
        self, request: common_pb2.Empty, *, timeout_s: float = DEFAULT_TIMEOUT_S
    ) -> Coroutine[Any, Any, remote_memory_pb2.AgentStatus]:
        return self.ask(MEMORY_AGENT_STATUS, request, timeout_s)


class MemoryAgentActor(Actor):
    """Answers the MemoryAgent contract: override every method."""

    contract = MEMORY_AGENT

    def make(self, request: remote_memory_pb2.FileKey) -> common_pb2.Empty | Awaitable[common_pb2.Empty]:
        raise NotImplementedError

    def attach(self, request: remote_memory_pb2.FileKey) -> remote_memory_pb2.Attachment | Awaitable[remote_memory_pb2.Attachment]:
        raise NotImplementedError

    def resize(self, request: remote_memory_pb2.ResizeRequest) -> remote_memory_pb2.Attachment | Awaitable[remote_memory_pb2.Attachment]:
        raise NotImplementedError

    def drop(self, request: remote_memory_pb2.FileKey) -> common_pb2.Empty | Awaitable[common_pb2.Empty]:
        raise NotImplementedError

    def quiesce(self, request: remote_memory_pb2.QuiesceFiles) -> common_pb2.Empty | Awaitable[common_pb2.Empty]:
        raise NotImplementedError

    def session(self, request: common_pb2.Empty) -> AsyncIterator[remote_memory_pb2.SessionKey]:
        raise NotImplementedError

    def open(self, request: remote_memory_pb2.OpenFileRequest) -> remote_memory_pb2.OpenFile | Awaitable[remote_memory_pb2.OpenFile]:
        raise NotImplementedError

    def read(self, request: remote_memory_pb2.ReadRequest) -> AsyncIterator[remote_memory_pb2.Piece]:
        raise NotImplementedError

    def write(self, request: remote_memory_pb2.WriteRequest) -> remote_memory_pb2.Written | Awaitable[remote_memory_pb2.Written]:
        raise NotImplementedError

    def size(self, request: remote_memory_pb2.Handle) -> remote_memory_pb2.Written | Awaitable[remote_memory_pb2.Written]:
        raise NotImplementedError

    def truncate(self, request: remote_memory_pb2.TruncateRequest) -> common_pb2.Empty | Awaitable[common_pb2.Empty]:
        raise NotImplementedError

    def flush(self, request: remote_memory_pb2.Handle) -> common_pb2.Empty | Awaitable[common_pb2.Empty]:
        raise NotImplementedError

    def close(self, request: remote_memory_pb2.Handle) -> common_pb2.Empty | Awaitable[common_pb2.Empty]:
        raise NotImplementedError

    def stat_path(self, request: remote_memory_pb2.PathRequest) -> remote_memory_pb2.Node | Awaitable[remote_memory_pb2.Node]:
        raise NotImplementedError

    def list_path(self, request: remote_memory_pb2.PathRequest) -> remote_memory_pb2.NodeList | Awaitable[remote_memory_pb2.NodeList]:
        raise NotImplementedError

    def make_folder(self, request: remote_memory_pb2.PathRequest) -> remote_memory_pb2.Node | Awaitable[remote_memory_pb2.Node]:
        raise NotImplementedError

    def remove(self, request: remote_memory_pb2.PathRequest) -> common_pb2.Empty | Awaitable[common_pb2.Empty]:
        raise NotImplementedError

    def remove_folder_at(self, request: remote_memory_pb2.PathRequest) -> common_pb2.Empty | Awaitable[common_pb2.Empty]:
        raise NotImplementedError

    def move(self, request: remote_memory_pb2.MovePath) -> remote_memory_pb2.Node | Awaitable[remote_memory_pb2.Node]:
        raise NotImplementedError

    def set_mode(self, request: remote_memory_pb2.PathRequest) -> remote_memory_pb2.Node | Awaitable[remote_memory_pb2.Node]:
        raise NotImplementedError

    def mount(self, request: remote_memory_pb2.MountRequest) -> common_pb2.Empty | Awaitable[common_pb2.Empty]:
        raise NotImplementedError

    def status(self, request: common_pb2.Empty) -> remote_memory_pb2.AgentStatus | Awaitable[remote_memory_pb2.AgentStatus]:
        raise NotImplementedError
