"""The wire format of /dev/fuse: requests as the kernel writes them, and the answers it reads.

`parse` takes one read of the device apart; the functions named after a request unpack its body; `pack_...` make the
bodies of answers. Whatever does not have the form that is expected raises `Malformed`, which is answered with EINVAL:
only the kernel speaks here, but nothing it could say may end a server that others' files depend on.

Numbers and layouts are those of linux/fuse.h, version 7.31 and later; native byte order, which is little-endian here.
"""

from __future__ import annotations

import enum
import errno
import os
import struct
from collections.abc import Iterable
from typing import NamedTuple

from everram.runtime.fuse.errors import FuseError

MAJOR, MINOR = 7, 45
"""The latest that this module knows; the lower minor of both sides counts."""
MINOR_OLDEST = 31
"""Linux 5.4. Before it bodies had other lengths."""
NAME_BYTES_MAX = 255
ROOT_NODE = 1
POSITION_MAX = (1 << 63) - 1
FALLOCATE_MODE_MAX = (1 << 31) - 1
DATA_BYTES_MAX = 1 << 20
"""Of one read or write: the kernel's default limit (fs.fuse.max_pages_limit)."""
RESENT = 1 << 63
"""In a request's `unique`: asked of a predecessor before, who may have done it and did not answer."""


class Opcode(enum.IntEnum):
    """The requests that are served, and those that are refused by name."""

    LOOKUP = 1
    FORGET = 2
    GETATTR = 3
    SETATTR = 4
    READLINK = 5
    SYMLINK = 6
    MKNOD = 8
    MKDIR = 9
    UNLINK = 10
    RMDIR = 11
    RENAME = 12
    LINK = 13
    OPEN = 14
    READ = 15
    WRITE = 16
    STATFS = 17
    RELEASE = 18
    FSYNC = 20
    FLUSH = 25
    INIT = 26
    OPENDIR = 27
    READDIR = 28
    RELEASEDIR = 29
    FSYNCDIR = 30
    CREATE = 35
    INTERRUPT = 36
    DESTROY = 38
    BATCH_FORGET = 42
    FALLOCATE = 43
    RENAME2 = 45
    LSEEK = 46


class Init(enum.IntFlag):
    """What both sides can do; the upper half travels as flags2."""

    ASYNC_READ = 1 << 0
    BIG_WRITES = 1 << 5
    ASYNC_DIO = 1 << 15
    PARALLEL_DIROPS = 1 << 18
    MAX_PAGES = 1 << 22
    EXT = 1 << 30
    DIRECT_IO_ALLOW_MMAP = 1 << 36
    PASSTHROUGH = 1 << 37
    HAS_RESEND = 1 << 39


class OpenReply(enum.IntFlag):
    DIRECT_IO = 1 << 0
    PARALLEL_DIRECT_WRITES = 1 << 6
    PASSTHROUGH = 1 << 7


class Set(enum.IntFlag):
    """Which fields of a SETATTR count."""

    MODE = 1 << 0
    UID = 1 << 1
    GID = 1 << 2
    SIZE = 1 << 3
    ATIME = 1 << 4
    MTIME = 1 << 5
    HANDLE = 1 << 6


GETATTR_HANDLE = 1
FSYNC_DATA_ONLY = 1
RENAME_NOREPLACE = 1

NOTIFY_RESEND = 7

IN_HEADER = struct.Struct("<IIQQIIIHH")
"""length, opcode, unique, node, uid, gid, pid, length of extensions, padding."""
OUT_HEADER = struct.Struct("<IiQ")
"""length, error (negative) or notification, unique."""

_INIT_IN = struct.Struct("<IIII")
_INIT_OUT = struct.Struct("<IIIIHHIIHHIIHH20x")
_ATTR = struct.Struct("<QQQQQQIIIIIIIIII")
_ENTRY = struct.Struct("<QQQQII")
_ATTR_OUT = struct.Struct("<QII")
_OPEN_OUT = struct.Struct("<QIi")
_STATFS_OUT = struct.Struct("<QQQQQIIII24x")
_DIRENT = struct.Struct("<QQII")
_GETATTR_IN = struct.Struct("<IIQ")
_SETATTR_IN = struct.Struct("<IIQQQQQQIIIIIIII")
_MKDIR_IN = struct.Struct("<II")
_RENAME_IN = struct.Struct("<Q")
_RENAME2_IN = struct.Struct("<QII")
_OPEN_IN = struct.Struct("<II")
_CREATE_IN = struct.Struct("<IIII")
_READ_IN = struct.Struct("<QQIIQII")
_WRITE_IN = _READ_IN
_HANDLE_IN = struct.Struct("<Q")
_FSYNC_IN = struct.Struct("<QII")
_FORGET_ONE = struct.Struct("<QQ")
_BATCH_FORGET_IN = struct.Struct("<II")
_LSEEK_IN = struct.Struct("<QQII")
_FALLOCATE_IN = struct.Struct("<QQQII")
_U64 = struct.Struct("<Q")
_WRITE_OUT = struct.Struct("<II")

NS_PER_S = 1_000_000_000
SECTOR_BYTES = 512
"""Of st_blocks, whatever the block size."""
FRAGMENT_BYTES = 4096

Buffer = bytes | bytearray | memoryview


class Malformed(FuseError):
    """A request that does not have its form."""

    def __init__(self, message: str) -> None:
        super().__init__(errno.EINVAL, message)


class Request(NamedTuple):
    opcode: int
    unique: int
    node: int
    uid: int
    gid: int
    pid: int
    body: memoryview
    """Valid until the request is answered."""

    @property
    def resent(self) -> bool:
        return bool(self.unique & RESENT)


def parse(data: memoryview) -> Request:
    """One read of the device. Raises Malformed if even the header is none; then there is nobody to answer."""
    if len(data) < IN_HEADER.size:
        raise Malformed(f"a request of {len(data)} bytes has no header")
    length, opcode, unique, node, uid, gid, pid, _, _ = IN_HEADER.unpack_from(data)
    if length != len(data):
        raise Malformed(f"a request says it has {length} bytes and has {len(data)}")
    return Request(opcode, unique, node, uid, gid, pid, data[IN_HEADER.size :])


def _unpack(form: struct.Struct, body: memoryview) -> tuple[int, ...]:
    if len(body) < form.size:
        raise Malformed(f"a body of {len(body)} bytes, where {form.size} are needed")
    return form.unpack_from(body)


def _position(value: int) -> int:
    """An offset or a length: off_t, and never negative."""
    if value > POSITION_MAX:
        raise Malformed(f"{value} is no place in a file")
    return value


def _names(body: memoryview, count: int) -> list[str]:
    parts = bytes(body).split(b"\0")
    if len(parts) != count + 1 or parts[-1]:
        raise Malformed(f"expected {count} names that end with a zero")
    for name in parts[:-1]:
        if not name or b"/" in name:
            raise Malformed("a name that is empty or has a slash")
        if len(name) > NAME_BYTES_MAX:
            raise FuseError(errno.ENAMETOOLONG)
    return [os.fsdecode(name) for name in parts[:-1]]


def name(body: memoryview) -> str:
    """LOOKUP, UNLINK, RMDIR."""
    return _names(body, 1)[0]


class InitIn(NamedTuple):
    major: int
    minor: int
    readahead_bytes_max: int
    flags: Init


def init(body: memoryview) -> InitIn:
    major, minor, readahead, flags = _unpack(_INIT_IN, body)
    if flags & Init.EXT:
        flags |= _unpack(struct.Struct("<I"), body[_INIT_IN.size :])[0] << 32
    return InitIn(major, minor, readahead, Init(flags))


def getattr_(body: memoryview) -> int | None:
    """The handle that the caller has, if it said so."""
    flags, _, handle = _unpack(_GETATTR_IN, body)
    return handle if flags & GETATTR_HANDLE else None


class SetattrIn(NamedTuple):
    handle: int | None
    size_bytes: int | None
    mode: int | None
    uid: int | None
    gid: int | None
    accessed_ns: int | None
    modified_ns: int | None


def setattr_(body: memoryview) -> SetattrIn:
    fields = _unpack(_SETATTR_IN, body)
    valid, _, handle, size, _, atime, mtime, _, atime_ns, mtime_ns, _, mode, _, uid, gid, _ = fields
    return SetattrIn(
        handle if valid & Set.HANDLE else None,
        _position(size) if valid & Set.SIZE else None,
        mode & 0o7777 if valid & Set.MODE else None,
        uid if valid & Set.UID else None,
        gid if valid & Set.GID else None,
        atime * NS_PER_S + atime_ns if valid & Set.ATIME else None,
        mtime * NS_PER_S + mtime_ns if valid & Set.MTIME else None,
    )


def mkdir(body: memoryview) -> tuple[str, int]:
    """Name, mode."""
    mode, _ = _unpack(_MKDIR_IN, body)
    return name(body[_MKDIR_IN.size :]), mode & 0o7777


def rename(body: memoryview) -> tuple[int, str, str, int]:
    """New parent, name, new name, flags."""
    (parent,) = _unpack(_RENAME_IN, body)
    old, new = _names(body[_RENAME_IN.size :], 2)
    return parent, old, new, 0


def rename2(body: memoryview) -> tuple[int, str, str, int]:
    parent, flags, _ = _unpack(_RENAME2_IN, body)
    old, new = _names(body[_RENAME2_IN.size :], 2)
    return parent, old, new, flags


def open_(body: memoryview) -> int:
    """Flags of open(2)."""
    return _unpack(_OPEN_IN, body)[0]


def create(body: memoryview) -> tuple[str, int, int]:
    """Name, mode, flags of open(2)."""
    flags, mode, _, _ = _unpack(_CREATE_IN, body)
    return name(body[_CREATE_IN.size :]), mode & 0o7777, flags


def read(body: memoryview) -> tuple[int, int, int]:
    """Handle, offset, size; also of READDIR."""
    handle, offset, size, _, _, _, _ = _unpack(_READ_IN, body)
    return handle, _position(offset), min(size, DATA_BYTES_MAX)


def write(body: memoryview) -> tuple[int, int, memoryview]:
    """Handle, offset, data."""
    handle, offset, size, _, _, _, _ = _unpack(_WRITE_IN, body)
    data = body[_WRITE_IN.size :]
    if len(data) != size:
        raise Malformed(f"a write says it has {size} bytes and has {len(data)}")
    return handle, _position(offset), data


def handle(body: memoryview) -> int:
    """RELEASE, RELEASEDIR, FLUSH."""
    return _unpack(_HANDLE_IN, body)[0]


def fsync(body: memoryview) -> tuple[int, bool]:
    """Handle, whether the data alone is meant."""
    number, flags, _ = _unpack(_FSYNC_IN, body)
    return number, bool(flags & FSYNC_DATA_ONLY)


def forget(node: int, body: memoryview) -> list[tuple[int, int]]:
    """(node, how many of its look-ups)."""
    return [(node, _unpack(_U64, body)[0])]


def batch_forget(body: memoryview) -> list[tuple[int, int]]:
    count, _ = _unpack(_BATCH_FORGET_IN, body)
    rest = body[_BATCH_FORGET_IN.size :]
    if count * _FORGET_ONE.size > len(rest):
        raise Malformed(f"{count} nodes to forget do not fit into {len(rest)} bytes")
    return list(_FORGET_ONE.iter_unpack(rest[: count * _FORGET_ONE.size]))


def interrupt(body: memoryview) -> int:
    """The request that its caller no longer waits for."""
    return _unpack(_U64, body)[0]


def lseek(body: memoryview) -> tuple[int, int, int]:
    """Handle, offset, whence: the kernel asks for data and holes alone, and knows the rest by itself."""
    number, offset, whence, _ = _unpack(_LSEEK_IN, body)
    if whence not in (os.SEEK_DATA, os.SEEK_HOLE):
        raise Malformed(f"{whence} is neither SEEK_DATA nor SEEK_HOLE")
    return number, _position(offset), whence


def fallocate(body: memoryview) -> tuple[int, int, int, int]:
    """Handle, offset, length, mode."""
    number, offset, length, mode, _ = _unpack(_FALLOCATE_IN, body)
    if mode > FALLOCATE_MODE_MAX:
        raise Malformed(f"{mode:#x} is no mode of fallocate")
    return number, _position(offset), _position(length), mode


def pack_header(length: int, error: int, unique: int) -> bytes:
    """`length` of the body; `error` as errno, 0 for none."""
    return OUT_HEADER.pack(OUT_HEADER.size + length, -error, unique)


def pack_resend() -> bytes:
    return OUT_HEADER.pack(OUT_HEADER.size, NOTIFY_RESEND, 0)


def pack_init(minor: int, readahead_bytes_max: int, flags: Init, write_bytes_max: int, background_max: int) -> bytes:
    stack_depth_max = 1 if flags & Init.PASSTHROUGH else 0
    return _INIT_OUT.pack(
        MAJOR, minor, readahead_bytes_max, flags & 0xFFFFFFFF,
        background_max, background_max * 3 // 4, write_bytes_max, 1,
        write_bytes_max // 4096, 0, flags >> 32, stack_depth_max, 0, 0,
    )  # fmt: skip


class Stat(NamedTuple):
    """What stat(2) shows."""

    inode: int
    size_bytes: int
    allocated_bytes: int
    accessed_ns: int
    modified_ns: int
    changed_ns: int
    mode: int
    links: int
    uid: int
    gid: int
    block_bytes: int


def _pack_stat(stat: Stat) -> bytes:
    accessed, accessed_ns = divmod(stat.accessed_ns, NS_PER_S)
    modified, modified_ns = divmod(stat.modified_ns, NS_PER_S)
    changed, changed_ns = divmod(stat.changed_ns, NS_PER_S)
    return _ATTR.pack(
        stat.inode, stat.size_bytes, -(-stat.allocated_bytes // SECTOR_BYTES),
        accessed, modified, changed, accessed_ns, modified_ns, changed_ns,
        stat.mode, stat.links, stat.uid, stat.gid, 0, stat.block_bytes, 0,
    )  # fmt: skip


def pack_attributes(stat: Stat, valid_ns: int) -> bytes:
    return _ATTR_OUT.pack(valid_ns // NS_PER_S, valid_ns % NS_PER_S, 0) + _pack_stat(stat)


def pack_entry(node: int, stat: Stat, name_valid_ns: int, valid_ns: int) -> bytes:
    name_s, name_ns = divmod(name_valid_ns, NS_PER_S)
    seconds, rest = divmod(valid_ns, NS_PER_S)
    return _ENTRY.pack(node, 0, name_s, seconds, name_ns, rest) + _pack_stat(stat)


def pack_open(handle: int, flags: OpenReply, backing: int) -> bytes:
    return _OPEN_OUT.pack(handle, flags, backing)


def pack_written(size: int) -> bytes:
    return _WRITE_OUT.pack(size, 0)


def pack_offset(offset: int) -> bytes:
    return _U64.pack(offset)


def pack_statfs(capacity_bytes: int, free_bytes: int, files: int, files_free: int) -> bytes:
    free = free_bytes // FRAGMENT_BYTES
    blocks = capacity_bytes // FRAGMENT_BYTES
    return _STATFS_OUT.pack(blocks, free, free, files, files_free, FRAGMENT_BYTES, NAME_BYTES_MAX, FRAGMENT_BYTES, 0)


def pack_dirents(entries: Iterable[tuple[int, int, str]], first: int, size_bytes: int) -> bytes:
    """(inode, type, name) as many as fit; `first` is the position of the first of them."""
    packed = bytearray()
    for position, (inode, kind, text) in enumerate(entries, first + 1):
        encoded = os.fsencode(text)
        length = _DIRENT.size + len(encoded)
        padded = -(-length // 8) * 8
        if len(packed) + padded > size_bytes:
            break
        packed += _DIRENT.pack(inode, position, len(encoded), kind) + encoded + bytes(padded - length)
    return bytes(packed)
