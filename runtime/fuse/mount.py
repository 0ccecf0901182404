"""Mounting without libfuse: the device, mount(2) and umount2(2), and what this kernel's FUSE can do.

    mounted = mount("/mnt/everram")           # two descriptors; whoever keeps them keeps the mount
    unmount("/mnt/everram")                   # also one whose server is dead

A mount lives while any process holds the device's descriptor. Its server may be killed, and a successor that got both
descriptors of `Mounted` (runtime/fuse/server.py) goes on; meanwhile whoever uses the mount waits. Until it serves, a
successor must not touch the mount itself, not even with a stat: it would wait for its own answer.

Mounting needs CAP_SYS_ADMIN. Part of the production edge: everything here is a system call.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import select
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from everram.runtime.errors import FailedPrecondition, NotFound, PermissionDenied, Unavailable
from everram.runtime.fuse import protocol
from everram.runtime.fuse.book import BOOK_BYTES, Book
from everram.runtime.fuse.protocol import Init
from everram.runtime.memory import memfd
from everram.runtime.memory.mapped import Mapped

DEVICE = "/dev/fuse"
TYPE = "fuse.everram"
"""As in /proc/mounts."""
SOURCE = "everram"

MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOATIME = 1, 2, 4, 1024
MNT_DETACH = 2
UMOUNTS_MAX = 16
"""Mounts on top of each other that are cleared; more is nothing that we have made."""

IOCTL_BACKING_OPEN = 0x4010E501
IOCTL_BACKING_CLOSE = 0x4004E502
_BACKING_MAP = struct.Struct("<iIQ")

_SYS_FSOPEN, _SYS_FSCONFIG = 430, 431
_FSCONFIG_SET_STRING, _FSCONFIG_CMD_CREATE = 1, 6
_FSOPEN_CLOEXEC = 1
_PROBE_TIMEOUT_MS = 1000

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mount.argtypes = (ctypes.c_char_p, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_ulong, ctypes.c_char_p)
_libc.umount2.argtypes = (ctypes.c_char_p, ctypes.c_int)
_libc.syscall.restype = ctypes.c_long


@dataclass(frozen=True, slots=True)
class Mounted:
    """What a successor needs. Keep both descriptors in another process to survive this one."""

    device: int
    book: int

    def close(self) -> None:
        """The last one that closes the device ends the mount: its users get ENOTCONN until it is unmounted."""
        os.close(self.device)
        os.close(self.book)


def mount(folder: str, *, source: str = SOURCE, everyone: bool = False, read_only: bool = False) -> Mounted:
    """Mount on an existing folder; nothing is served yet, but may be awaited already.

    `source`: what /proc/mounts calls it, by which `marked` finds it. `everyone`: other users of this computer may come
    in, as far as the files' mode bits let them. Raises NotFound, PermissionDenied, Unavailable, FailedPrecondition;
    each says what to do.
    """
    flags = MS_NOSUID | MS_NODEV | MS_NOATIME | (MS_RDONLY if read_only else 0)
    with _owned(_open_device()) as device, _owned(memfd.create("fuse-book", BOOK_BYTES)) as book:
        with _mapped_book(book) as mapping:
            Book.format(mapping)
        options = f"fd={device},rootmode=40000,user_id={os.getuid()},group_id={os.getgid()},default_permissions"
        options += ",allow_other" if everyone else ""
        if _libc.mount(os.fsencode(source), os.fsencode(folder), TYPE.encode(), flags, options.encode()):
            raise _mount_error(ctypes.get_errno(), folder)
        return Mounted(os.dup(device), os.dup(book))


@contextlib.contextmanager
def _owned(descriptor: int) -> Iterator[int]:
    try:
        yield descriptor
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _mapped_book(descriptor: int) -> Iterator[Mapped]:
    mapping = Mapped(descriptor, BOOK_BYTES)
    try:
        yield mapping
    finally:
        mapping.close()


def _open_device() -> int:
    try:
        return os.open(DEVICE, os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise Unavailable(
            f"{DEVICE} cannot be opened ({error.strerror}): `modprobe fuse` as root, in a container `--device {DEVICE}`"
        ) from error


def _mount_error(number: int, folder: str) -> Exception:
    reason = os.strerror(number)
    if number in (errno.EPERM, errno.EACCES):
        return PermissionDenied(
            f"{folder} cannot be mounted ({reason}): that needs root (CAP_SYS_ADMIN); "
            "without it, `everram fs exec` redirects a Python program's files"
        )
    if number in (errno.ENOENT, errno.ENOTDIR):
        return NotFound(f"{folder} cannot be mounted on ({reason}): make the folder first")
    if number == errno.ENOTCONN:
        return FailedPrecondition(f"a dead mount lies on {folder}: `everram umount {folder}` first")
    return Unavailable(f"{folder} cannot be mounted: {reason}")


def unmount(folder: str) -> bool:
    """Take everram's mounts off this folder at once, as `umount -l`; programs that use one keep it until they let go.

    True if there was one. Does not ask the server, so it works on a dead mount too. Raises PermissionDenied.
    """
    taken = False
    for _ in range(UMOUNTS_MAX):
        if not is_mounted(folder):
            break
        if _libc.umount2(os.fsencode(folder), MNT_DETACH):
            number = ctypes.get_errno()
            if number == errno.EINVAL:
                break  # somebody else was faster
            raise PermissionDenied(f"{folder} cannot be unmounted ({os.strerror(number)}): that needs root")
        taken = True
    return taken


def is_mounted(folder: str) -> bool:
    """Whether a mount of everram lies on this folder; does not touch it."""
    path = Path(folder).absolute()
    wanted = str(path.parent.resolve() / path.name)  # never a stat of the mount itself
    return any(point == wanted for _, point in _mounts())


def mark_of(machine: str) -> str:
    """What the sources of the mounts of a machine's host begin with; `machine` is CLUSTER_ID/HOST."""
    return f"{SOURCE}:{machine}/"


def marked(prefix: str) -> dict[str, str]:
    """The folders of everram's mounts whose sources begin with `prefix`, by source."""
    return {source: folder for source, folder in _mounts() if source.startswith(prefix)}


def _mounts() -> Iterator[tuple[str, str]]:
    """(source, folder) of each mount of everram."""
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as mounts:
        for line in mounts:
            before, dash, after = line.partition(f" - {TYPE} ")
            if dash:
                yield _unescaped(after.split()[0]), _unescaped(before.split()[4])


def _unescaped(text: str) -> str:
    """Octal escapes stand for spaces, tabs, newlines and backslashes."""
    for escape in ("\\040", "\\011", "\\012", "\\134"):
        text = text.replace(escape, chr(int(escape[1:], 8)))
    return text


def open_book(mounted: Mounted) -> tuple[Book, Mapped]:
    """Raises DataLoss."""
    mapping = Mapped(mounted.book, BOOK_BYTES)
    try:
        return Book.open(mapping), mapping
    except BaseException:
        mapping.close()
        raise


def resend(device: int) -> bool:
    """Have the kernel ask again what a dead server had read and not answered. False if it is too old (before 6.9)."""
    try:
        os.write(device, protocol.pack_resend())
    except OSError as error:
        if error.errno == errno.EINVAL:
            return False
        raise
    return True


def open_backing(device: int, descriptor: int) -> int:
    """Register what the kernel shall read and write in our place; returns its id. Raises OSError."""
    backing: int = fcntl.ioctl(device, IOCTL_BACKING_OPEN, bytearray(_BACKING_MAP.pack(descriptor, 0, 0)))
    return backing


def close_backing(device: int, backing: int) -> None:
    """Open files that use it keep it. Not an error if it is gone."""
    with contextlib.suppress(OSError):
        fcntl.ioctl(device, IOCTL_BACKING_CLOSE, struct.pack("<I", backing))


def kernel_offers() -> Init:
    """What this kernel's FUSE can do, asked on a mount that is attached nowhere and gone at once.

    Raises OSError where that is not permitted.
    """
    with _owned(os.open(DEVICE, os.O_RDWR | os.O_CLOEXEC)) as device, _owned(_fsopen()) as context:
        options = {"fd": device, "rootmode": 40000, "user_id": os.getuid(), "group_id": os.getgid()}
        for name, value in options.items():
            _fsconfig(context, _FSCONFIG_SET_STRING, name.encode(), str(value).encode())
        _fsconfig(context, _FSCONFIG_CMD_CREATE, None, None)
        poll = select.poll()
        poll.register(device, select.POLLIN)
        if not poll.poll(_PROBE_TIMEOUT_MS):
            raise OSError(errno.ETIMEDOUT, "the kernel asks nothing")
        request = protocol.parse(memoryview(os.read(device, 1 << 18)))
        return protocol.init(request.body).flags


def _fsopen() -> int:
    descriptor: int = _libc.syscall(_SYS_FSOPEN, b"fuse", _FSOPEN_CLOEXEC)
    if descriptor < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return descriptor


def _fsconfig(context: int, command: int, name: bytes | None, value: bytes | None) -> None:
    if _libc.syscall(_SYS_FSCONFIG, context, command, name, value, 0):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
