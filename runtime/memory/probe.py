"""What this computer can do: plain facts, found out by trying.

    for fact in probe():
        print(fact.name, fact.available, fact.found)
    environment.missing = missing_sentences(probe())

Part of the production edge: it opens devices and reads /proc, and is asked once at the start of a process. Each fact
says what it is for, what is used instead where it is missing, and how to enable it.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import mmap
import os
import platform
import resource
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from everram.runtime.fuse import mount
from everram.runtime.fuse.errors import FuseError
from everram.runtime.fuse.protocol import Init
from everram.runtime.memory import userfaultfd as uffd
from everram.runtime.memory.contract import PAGE_BYTES
from everram.runtime.sizes import size_text

OLDEST_KERNEL = (5, 19)
"""The first with write protection of shared memory by userfaultfd."""
PASSTHROUGH_KERNEL = (6, 9)
RESEND_KERNEL = (6, 9)
FEW_DESCRIPTORS = 1024
"""A guest takes one for each region and log, up to twice; below this a machine has room for few guests."""
SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL


@dataclass(frozen=True, slots=True)
class Fact:
    """One thing that everram uses where it is there. Texts are for people."""

    name: str
    purpose: str
    available: bool
    found: str
    """What was seen: a version, an amount, an error."""
    instead: str = ""
    """What is used, or what does not work, where it is missing."""
    enable: str = ""
    """What to do to get it."""
    in_status: bool = False
    """Whether a host has to say so all the time: what it promises differs."""


def probe(nvm_files: str = "") -> list[Fact]:
    """Every fact, the essential ones first. Takes a few milliseconds; leaves nothing behind. `nvm_files`: the folder in
    which regions lie, if they lie in files."""
    return [
        processor(),
        kernel(),
        memory_sealing(),
        userfaultfd(nvm_files),
        freezer(),
        descriptors(),
        mappings(),
        memory(),
        mounting(),
        passthrough(),
        mount_takeover(),
        kvm(),
    ]


def missing_sentences(facts: Iterable[Fact]) -> list[str]:
    """For `Environment.missing` and `status`: what differs from the promise on this computer, and what to do."""
    return [
        f"{fact.name}: {fact.found}; {fact.instead} (to change it: {fact.enable})"
        for fact in facts
        if fact.in_status and not fact.available
    ]


def processor() -> Fact:
    machine = platform.machine()
    fits = machine == "x86_64" and sys.byteorder == "little"
    return Fact(
        "processor",
        "publishing a word of shared memory with one plain 8-byte store",
        fits,
        machine,
        "everram does not run here",
        "use a computer with x86-64",
        in_status=True,
    )


def kernel() -> Fact:
    release = platform.release()
    return Fact(
        "kernel",
        "everything below",
        kernel_version() >= OLDEST_KERNEL,
        f"Linux {release}",
        "some of what follows is missing",
        "use Linux {}.{} or later".format(*OLDEST_KERNEL),
    )


def kernel_version() -> tuple[int, int]:
    """Major and minor; (0, 0) if the kernel does not say it in that form."""
    parts = platform.release().split(".")
    try:
        return int(parts[0]), int(parts[1])
    except (IndexError, ValueError):
        return 0, 0


def memory_sealing() -> Fact:
    try:
        descriptor = os.memfd_create("everram-probe", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.ftruncate(descriptor, PAGE_BYTES)
            fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, SEALS)
        finally:
            os.close(descriptor)
        found, available = "memfd with seals", True
    except OSError as error:
        found, available = f"memfd_create: {error.strerror}", False
    return Fact(
        "sealed memory",
        "memory that several processes share and none can take away from the others",
        available,
        found,
        "everram does not run here",
        "allow memfd_create in the container's seccomp profile",
        in_status=True,
    )


def userfaultfd(folder: str = "") -> Fact:
    """Of memory, or of files in a folder: only those of a tmpfs are memory for it."""
    found = _try_userfaultfd()
    if folder and not found:
        found = _try_userfaultfd(folder)
        found = f"not for files in {folder}, which is no tmpfs: {found}" if found else ""
    return Fact(
        "userfaultfd",
        "tracking which pages of mapped regions were written; snapshots without a copy; swapping guests' memory",
        not found,
        found or "full, with write protection of shared memory",
        "stores to mapped regions are not tracked, and a snapshot copies one whole while its guest is stopped; "
        "of logged regions guests save what snapshots need themselves, in each transaction; "
        "guests' volatile memory is not swapped, only ballooned",
        "as root: `sysctl vm.unprivileged_userfaultfd=1`, or let your user open /dev/userfaultfd; "
        "in a container also allow the system call in its seccomp profile",
        in_status=True,
    )


def _try_userfaultfd(folder: str = "") -> str:
    """Protect a page of shared memory, or of a file; empty if that works, else what did not."""
    try:
        descriptor = uffd.make()
    except OSError as error:
        return f"{_user_mode_only()} ({error.strerror})"
    try:
        features = uffd.handshake(descriptor, uffd.Feature.PAGEFAULT_FLAG_WP | uffd.Feature.WP_SHMEM)
        if features is None:
            return "no write protection of shared memory"
        _protect_one_page(descriptor, folder)
    except OSError as error:
        return f"no write protection of shared memory ({error.strerror})"
    finally:
        os.close(descriptor)
    return ""


def _user_mode_only() -> str:
    try:
        os.close(uffd.make(user_mode_only=True))
    except OSError as error:
        return "not in this kernel" if error.errno == errno.ENOSYS else "not permitted"
    return "only for faults in user mode, where system calls on protected pages fail"


def _protect_one_page(descriptor: int, folder: str) -> None:
    if folder:
        memfd = os.open(folder, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
    else:
        memfd = os.memfd_create("everram-probe", os.MFD_CLOEXEC)
    try:
        os.ftruncate(memfd, PAGE_BYTES)
        with mmap.mmap(memfd, PAGE_BYTES) as mapping:
            anchor = ctypes.c_char.from_buffer(mapping)
            address = ctypes.addressof(anchor)
            del anchor  # it holds the mapping open
            uffd.register(descriptor, address, PAGE_BYTES, uffd.Mode.WRITE_PROTECT)
            uffd.protect(descriptor, address, PAGE_BYTES)
            uffd.unregister(descriptor, address, PAGE_BYTES)
    finally:
        os.close(memfd)


def freezer() -> Fact:
    folder = _own_cgroup()
    available = folder is not None and (folder / "cgroup.freeze").exists() and os.access(folder, os.W_OK)
    return Fact(
        "cgroup freezer",
        "freezing and ending all processes of a guest at once",
        available,
        f"{folder} is writable" if available else (f"{folder} is not writable" if folder else "no cgroup v2"),
        "each process is found by its parents and its mark, and stopped by signal",
        "start everram with `systemd-run --user --scope -p Delegate=yes`",
    )


def _own_cgroup() -> Path | None:
    """This process's folder in the cgroup v2 tree."""
    try:
        mounts = Path("/proc/self/mountinfo").read_text().splitlines()
        groups = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return None
    own = next((line.removeprefix("0::") for line in groups if line.startswith("0::")), None)
    roots = [line.split()[4] for line in mounts if " - cgroup2 " in line]
    return Path(roots[0]) / own.lstrip("/") if own is not None and roots else None


def descriptors() -> Fact:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    return Fact(
        "open files",
        "a descriptor for each log and region of each guest",
        soft > FEW_DESCRIPTORS,
        f"{soft} a process, at most {hard if hard >= 0 else 'any number'}",
        "few guests fit into one machine",
        "`ulimit -n 65536` before `everram up`",
    )


def mappings() -> Fact:
    found = _read_number("/proc/sys/vm/max_map_count")
    return Fact(
        "mappings",
        "a mapping for each region of each guest",
        found >= 4096,
        f"{found} a process",
        "few regions fit into one process",
        "as root: `sysctl vm.max_map_count=65530`",
    )


def memory() -> Fact:
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    available = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return Fact(
        "memory",
        "the machines' memory, all of it kept in DRAM",
        total >= 1 << 30,
        f"{size_text(total)}, {size_text(available)} free now",
        "only small regions fit",
        "use a computer with at least 1 GiB",
    )


def mounting() -> Fact:
    offers, found = _fuse_offers()
    return Fact(
        "FUSE",
        "remote memory as files of any program (`everram mount`)",
        offers is not None,
        found or "can be mounted",
        "`everram fs exec` redirects a Python program's files",
        "run as root (CAP_SYS_ADMIN), with `modprobe fuse` done; "
        "in a container: `--device /dev/fuse --cap-add SYS_ADMIN`",
    )


def passthrough() -> Fact:
    offers, found = _fuse_offers()
    available = offers is not None and bool(offers & Init.PASSTHROUGH)
    return Fact(
        "FUSE passthrough",
        "reading, writing and mapping local memory files at memory speed",
        available,
        found or ("possible" if available else "not in this kernel"),
        "such reads and writes go through the memory agent",
        "run as root on Linux {}.{} or later, built with CONFIG_FUSE_PASSTHROUGH".format(*PASSTHROUGH_KERNEL),
    )


def mount_takeover() -> Fact:
    offers, found = _fuse_offers()
    available = offers is not None and bool(offers & Init.HAS_RESEND)
    return Fact(
        "FUSE resend",
        "mounts whose users do not notice that the host software was killed",
        available,
        found or ("possible" if available else "not in this kernel"),
        "whoever waits for a mount's answer when its host is killed hangs until it is unmounted",
        "use Linux {}.{} or later".format(*RESEND_KERNEL),
    )


def _fuse_offers() -> tuple[Init | None, str]:
    """What the kernel can do for whoever mounts; otherwise why this process cannot."""
    available, found = _can_open(mount.DEVICE)
    if not available:
        return None, f"{mount.DEVICE}: {found}"
    try:
        return mount.kernel_offers(), ""
    except OSError as error:
        return None, f"mounting is not possible: {error.strerror or error}"
    except FuseError as error:
        return None, f"the kernel speaks another FUSE: {error}"


def kvm() -> Fact:
    available, found = _can_open("/dev/kvm")
    return Fact(
        "/dev/kvm",
        "virtual machines as guests (not built yet)",
        available,
        found,
        "virtual machines are emulated, slowly",
        "enable virtualisation in the firmware, and add your user to group kvm",
    )


def _can_open(path: str) -> tuple[bool, str]:
    try:
        os.close(os.open(path, os.O_RDWR | os.O_CLOEXEC))
    except OSError as error:
        return False, error.strerror or str(error)
    return True, "can be opened"


def _read_number(path: str) -> int:
    try:
        return int(Path(path).read_text())
    except (OSError, ValueError):
        return 0
