"""userfaultfd(2): page faults of one process served by another, by system call and ioctl.

The guest calls `make` and hands the descriptor to its host; the host calls `handshake`, `register` and `protect`, and
then reads faults with `read_faults` and resolves them. A descriptor belongs to the address space of its maker for
good: every address here is one of the guest's, whoever calls. Standard library only: guests import this module.

Two traps that shape everything built on it: when the last descriptor closes, blocked guests go on as if nothing had
been asked (with zeros for missing pages), so a second one is kept outside the host; and a fault that was read but not
resolved is never told again, so whoever takes over a descriptor must `wake` its ranges once.
"""

from __future__ import annotations

import contextlib
import ctypes
import enum
import errno
import fcntl
import os
import struct
from dataclasses import dataclass

SYS_USERFAULTFD = 323
"""On x86-64."""
DEVICE = "/dev/userfaultfd"
WITHOUT = "EVERRAM_WITHOUT"
"""Of the environment: "userfaultfd" there keeps a process from using it, as where it is not permitted."""
API_VERSION = 0xAA

IOCTL_NEW = 0xAA00
IOCTL_API = 0xC018AA3F
IOCTL_REGISTER = 0xC020AA00
IOCTL_UNREGISTER = 0x8010AA01
IOCTL_WAKE = 0x8010AA02
IOCTL_COPY = 0xC028AA03
IOCTL_ZEROPAGE = 0xC020AA04
IOCTL_WRITEPROTECT = 0xC018AA06
IOCTL_CONTINUE = 0xC020AA07
IOCTL_POISON = 0xC020AA08

MESSAGE = struct.Struct("<BBHIQQQ")
"""event, reserved, reserved, reserved, flags, address, thread."""
EVENT_PAGEFAULT = 0x12
USER_MODE_ONLY = 1

_RANGE = struct.Struct("QQ")
_API = struct.Struct("QQQ")
_REGISTER = struct.Struct("QQQQ")
_PROTECT = struct.Struct("QQQ")
_COPY = struct.Struct("QQQQq")
_FILL = struct.Struct("QQQq")
_PAGE_BYTES = 4096
_MODE_DONT_WAKE = 1
_COPY_PROTECTED = 2
_WP_ON = 1
_WP_DONT_WAKE = 2


class Feature(enum.IntFlag):
    """What a kernel's userfaultfd can do; asked for at the handshake."""

    PAGEFAULT_FLAG_WP = 1 << 0
    MISSING_SHMEM = 1 << 5
    MINOR_SHMEM = 1 << 10
    WP_SHMEM = 1 << 12
    WP_UNPOPULATED = 1 << 13
    POISON = 1 << 14
    WP_ASYNC = 1 << 15


class Mode(enum.IntFlag):
    """Which faults of a range are told."""

    MISSING = 1
    WRITE_PROTECT = 2
    MINOR = 4


class FaultFlag(enum.IntFlag):
    """Why a thread is blocked."""

    WRITE = 1
    PROTECTED = 2
    MINOR = 4


@dataclass(frozen=True, slots=True)
class PageFault:
    """One blocked thread: the address it touched, rounded down to its page."""

    address: int
    flags: FaultFlag


def make(*, user_mode_only: bool = False) -> int:
    """A new userfaultfd of this process, close-on-exec and non-blocking.

    Tries /dev/userfaultfd first (permission by file mode), then the system call (permission by sysctl or capability).
    Raises OSError; with `user_mode_only` almost everybody may, but system calls on protected pages then fail.
    """
    if "userfaultfd" in os.environ.get(WITHOUT, "").split(","):
        raise OSError(errno.EPERM, f"{WITHOUT} says to do without")
    flags = os.O_CLOEXEC | os.O_NONBLOCK | (USER_MODE_ONLY if user_mode_only else 0)
    if not user_mode_only:
        with contextlib.suppress(OSError):
            return make_from_device(flags)
    libc = ctypes.CDLL(None, use_errno=True)
    descriptor: int = libc.syscall(SYS_USERFAULTFD, flags)
    if descriptor < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return descriptor


def make_from_device(flags: int) -> int:
    device = os.open(DEVICE, os.O_RDWR | os.O_CLOEXEC)
    try:
        return fcntl.ioctl(device, IOCTL_NEW, flags)
    finally:
        os.close(device)


def handshake(descriptor: int, wanted: Feature) -> Feature | None:
    """Agree on features, once in a descriptor's life; None if somebody did so before.

    The kernel answers EINVAL both then and for a feature it lacks; the `register` that follows tells the two apart,
    because it is refused without the features its mode needs.
    """
    argument = bytearray(_API.pack(API_VERSION, wanted, 0))
    try:
        fcntl.ioctl(descriptor, IOCTL_API, argument)
    except OSError as error:
        if error.errno == errno.EINVAL:
            return None
        raise
    return Feature(_API.unpack(argument)[1])


def register(descriptor: int, address: int, length: int, mode: Mode) -> None:
    """Serve the faults of a range from now on; again for the same range and mode changes nothing.

    Raises OSError: EBUSY if another userfaultfd has the range, EINVAL without the features, ESRCH after the guest's
    end.
    """
    fcntl.ioctl(descriptor, IOCTL_REGISTER, bytearray(_REGISTER.pack(address, length, mode, 0)))


def unregister(descriptor: int, address: int, length: int) -> None:
    fcntl.ioctl(descriptor, IOCTL_UNREGISTER, _RANGE.pack(address, length))


def protect(descriptor: int, address: int, length: int) -> None:
    """From the return of this call on, a store to the range blocks until `unprotect`; pages not there yet included."""
    fcntl.ioctl(descriptor, IOCTL_WRITEPROTECT, _PROTECT.pack(address, length, _WP_ON))


def unprotect(descriptor: int, address: int, length: int, *, wake: bool = True) -> None:
    """Let stores through, and let those blocked on the range try again."""
    fcntl.ioctl(descriptor, IOCTL_WRITEPROTECT, _PROTECT.pack(address, length, 0 if wake else _WP_DONT_WAKE))


def wake(descriptor: int, address: int, length: int) -> None:
    """Have every thread blocked on the range try again; those that still may not go on are told anew."""
    fcntl.ioctl(descriptor, IOCTL_WAKE, _RANGE.pack(address, length))


def copy(
    descriptor: int, destination: int, source: int, length: int, *, protected: bool = False, wake: bool = True
) -> None:
    """Fill missing pages from `source`, an address of the caller's own."""
    mode = (0 if wake else _MODE_DONT_WAKE) | (_COPY_PROTECTED if protected else 0)
    fcntl.ioctl(descriptor, IOCTL_COPY, bytearray(_COPY.pack(destination, source, length, mode, 0)))


def fill(descriptor: int, address: int, data: bytes, *, protected: bool) -> None:
    """Put whole pages where they are missing, and have who waits for them try again; others stay as they are."""
    source = ctypes.cast(ctypes.c_char_p(data), ctypes.c_void_p).value or 0
    mode, at = _MODE_DONT_WAKE | (_COPY_PROTECTED if protected else 0), 0
    while at < len(data):
        argument = bytearray(_COPY.pack(address + at, source + at, len(data) - at, mode, 0))
        try:
            fcntl.ioctl(descriptor, IOCTL_COPY, argument)
            break
        except OSError as error:
            copied = _COPY.unpack(argument)[4]
            if error.errno == errno.EEXIST:
                at += _PAGE_BYTES
            elif error.errno == errno.EAGAIN:
                at += max(0, copied)
            else:
                raise
    wake(descriptor, address, len(data))


def poison(descriptor: int, address: int, length: int) -> None:
    """Who touches these missing pages gets SIGBUS. Raises OSError: EINVAL on kernels without it."""
    fcntl.ioctl(descriptor, IOCTL_POISON, bytearray(_FILL.pack(address, length, 0, 0)))


def zero(descriptor: int, address: int, length: int, *, wake: bool = True) -> None:
    """Fill missing pages with zeros."""
    mode = 0 if wake else _MODE_DONT_WAKE
    fcntl.ioctl(descriptor, IOCTL_ZEROPAGE, bytearray(_FILL.pack(address, length, mode, 0)))


def resume_minor(descriptor: int, address: int, length: int, *, wake: bool = True) -> None:
    """Map what the page cache already holds (UFFDIO_CONTINUE)."""
    mode = 0 if wake else _MODE_DONT_WAKE
    fcntl.ioctl(descriptor, IOCTL_CONTINUE, bytearray(_FILL.pack(address, length, mode, 0)))


def read_faults(descriptor: int, limit: int) -> list[PageFault]:
    """At most `limit` faults that nobody has read yet; empty if there is none now. Raises OSError."""
    try:
        messages = os.read(descriptor, MESSAGE.size * limit)
    except BlockingIOError:
        return []
    faults = []
    for event, _, _, _, flags, address, _ in MESSAGE.iter_unpack(messages):
        if event == EVENT_PAGEFAULT:  # no other event is asked for at the handshake
            faults.append(PageFault(address, FaultFlag(flags)))
    return faults
