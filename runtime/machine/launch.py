"""Fork and exec, as a machine needs it: the child dies with the machine, and `start` raises what exec refused.

The machine has one thread, so everything may be done in the child between fork and exec.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NoReturn

from everram.runtime.errors import EverramError, FailedPrecondition, InvalidArgument, NotFound, PermissionDenied

FIRST_LISTEN_FD = 3
"""systemd's SD_LISTEN_FDS_START."""
BACKGROUND_NICE = 10
PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36

_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, slots=True)
class Program:
    """What to start. Its descriptors 3, 4, ... are `listen_fds`, as systemd passes them."""

    argv: Sequence[bytes]
    working_directory: bytes
    environment: Mapping[bytes, bytes]
    output_path: str
    """stdout and stderr are appended to this file."""
    cgroup: str = ""
    """A cgroup to enter, if that is allowed; empty: none."""
    listen_fds: Sequence[tuple[str, int]] = ()
    background: bool = False
    """Whether it shall leave the processor to whoever else wants it; it may change that itself."""


@dataclass(frozen=True, slots=True)
class Started:
    pid: int
    in_cgroup: bool


def become_subreaper() -> None:
    """Orphans below this process become its children, not init's."""
    if _libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_CHILD_SUBREAPER)")


def start(program: Program) -> Started:
    """Raises NotFound, PermissionDenied, InvalidArgument or FailedPrecondition with what could not be executed."""
    parent = os.getpid()
    reports, report = os.pipe()
    try:
        pid = os.fork()
    except OSError as error:
        os.close(reports)
        os.close(report)
        raise FailedPrecondition(f"no process can be started: {error.strerror}") from error
    if pid == 0:
        _be_child(program, parent, report)
    os.close(report)
    text = _read_to_end(reports)
    in_cgroup = bool(program.cgroup) and not text.startswith("cgroup\n")
    failure = text.removeprefix("cgroup\n")
    if failure:
        os.waitpid(pid, 0)
        raise _error(program, failure)
    return Started(pid, in_cgroup)


def _read_to_end(fd: int) -> str:
    pieces = []
    try:
        while piece := os.read(fd, 4096):
            pieces.append(piece)
    finally:
        os.close(fd)
    return b"".join(pieces).decode(errors="replace")


def _be_child(program: Program, parent: int, report: int) -> NoReturn:
    """In the child, up to exec. The report pipe closes by exec: nothing in it means that all went well."""
    stage = "start"
    try:
        report = fcntl.fcntl(report, fcntl.F_DUPFD_CLOEXEC, FIRST_LISTEN_FD + len(program.listen_fds))
        os.setpgid(0, 0)
        _reset_signals()
        _die_with(parent)
        if program.cgroup:
            _enter_cgroup(program.cgroup, report)
        stage = "output"
        _redirect(program.output_path)
        environment = dict(program.environment)
        if program.background:
            os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
            if os.geteuid() == 0:  # others could not take it back
                os.nice(BACKGROUND_NICE)
        if program.listen_fds:
            _pass_descriptors(program.listen_fds, environment)
        stage = "folder"
        os.chdir(program.working_directory)
        stage = "program"
        os.execvpe(program.argv[0], list(program.argv), environment)
    except OSError as error:
        os.write(report, f"{stage} {error.errno}".encode())
    except BaseException as error:
        os.write(report, f"{stage} {error!r}".encode())
    finally:
        os._exit(127)


def _reset_signals() -> None:
    signal.set_wakeup_fd(-1)
    for number in (
        signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGPIPE, signal.SIGXFSZ, signal.SIGPWR
    ):  # fmt: skip
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


def _die_with(parent: int) -> None:
    if _libc.prctl(PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")
    if os.getppid() != parent:
        # The parent died before the line above: its death will not be signalled any more.
        os._exit(127)


def _enter_cgroup(cgroup: str, report: int) -> None:
    try:
        with open(f"{cgroup}/cgroup.procs", "w") as file:
            file.write("0")
    except OSError:
        os.write(report, b"cgroup\n")


def _redirect(output_path: str) -> None:
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.makedirs(os.path.dirname(output_path) or ".", mode=0o700, exist_ok=True)  # noqa: PTH103, PTH120 (pathlib is slow to import)
    output = os.open(output_path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    os.dup2(output, 1)
    os.dup2(output, 2)


def _pass_descriptors(listen_fds: Sequence[tuple[str, int]], environment: dict[bytes, bytes]) -> None:
    """Move them to 3, 4, ...; first out of the way, because their numbers may overlap those."""
    beyond = FIRST_LISTEN_FD + len(listen_fds)
    moved = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, beyond) for _, fd in listen_fds]
    for number, fd in enumerate(moved, FIRST_LISTEN_FD):
        os.dup2(fd, number, inheritable=True)
    environment[b"LISTEN_PID"] = str(os.getpid()).encode()
    environment[b"LISTEN_FDS"] = str(len(moved)).encode()
    environment[b"LISTEN_FDNAMES"] = ":".join(name for name, _ in listen_fds).encode()


def _error(program: Program, failure: str) -> EverramError:
    stage, _, what = failure.partition(" ")
    name = os.fsdecode(program.argv[0])
    subject = {
        "program": f"the program {name}",
        "folder": f"the working folder {os.fsdecode(program.working_directory)}",
        "output": f"the output file {program.output_path}",
    }.get(stage, f"a process for {name}")
    if not what.isdecimal():
        return InvalidArgument(f"{subject} cannot be started: {what}")
    number = int(what)
    reason = os.strerror(number)
    if number in (errno.ENOENT, errno.ENOTDIR):
        return NotFound(f"{subject} does not exist ({reason}, or the interpreter it names does not)")
    if number in (errno.EACCES, errno.EPERM):
        return PermissionDenied(f"{subject} may not be used: {reason}")
    if number == errno.ENOEXEC:
        return InvalidArgument(f"{subject} is not an executable: {reason}; a script needs a #! line")
    return FailedPrecondition(f"{subject} cannot be used: {reason}")
