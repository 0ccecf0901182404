"""Where a local cluster keeps things: its state folder, its run folder, and the lock of the supervisor that owns it.

The state folder (`$XDG_STATE_HOME/everram/NAME`, or `--dir`) may lie as deep as the user likes. Sockets lie elsewhere,
in a short private run folder, because the kernel takes at most 107 bytes for a Unix socket's path.

    STATE/cluster.json          what the cluster is made of
    STATE/supervisor.lock       locked while a supervisor owns the cluster
    STATE/supervisor.json       who that is, where its sockets are; an orderly end removes it, a left one tells a crash
    STATE/supervisor.log
    STATE/coordination/         the embedded server's data
    STATE/machines/h1/          machine.json, host.json, logs, image/, guests/; image.lost-1/: what was saved of a
                                machine that died and was started again empty
    RUN/supervisor.sock, RUN/coordination.sock, RUN/h1.sock, RUN/h1.machine.sock
"""

from __future__ import annotations

import enum
import errno
import fcntl
import hashlib
import json
import os
import re
import shutil
import stat
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from everram.runtime.cluster.config import ClusterConfig
from everram.runtime.errors import (
    AlreadyExists,
    DataLoss,
    EverramError,
    InvalidArgument,
    PermissionDenied,
    ResourceExhausted,
)

DEFAULT_CLUSTER = "default"
SOCKET_PATH_MAX_BYTES = 107
"""sun_path has 108 bytes, the last one a zero."""
LONGEST_SOCKET_NAME = "coordination.sock.400000"
"""A socket is bound under its name and its process's number (hexadecimal, at most 2**22), and renamed."""
HASH_DIGITS = 12
"""48 bits: two clusters of one user meet by accident once in millions of years."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
# struct flock of x86-64 and every other 64-bit Linux: type, whence, start, length, pid.
_FLOCK = "hhqqi4x"


def check_name(name: str, what: str = "cluster") -> str:
    """`name`, if it can be one. Raises InvalidArgument."""
    if not _NAME.fullmatch(name):
        raise InvalidArgument(
            f'"{name}" cannot be the name of a {what}: use letters, digits, ".", "_" and "-" (at most 63)'
        )
    return name


def state_folder(cluster: str | None, folder: str | None, environ: Mapping[str, str]) -> Path:
    """The state folder that `--cluster`, `--dir` and the environment name. A flag beats EVERRAM_DIR."""
    if folder is None and cluster is None:
        folder = environ.get("EVERRAM_DIR") or None
    if folder is not None:
        return Path(folder).expanduser().absolute()
    base = environ.get("XDG_STATE_HOME", "")
    home = Path(base) if base.startswith("/") else Path.home() / ".local" / "state"
    return home / "everram" / check_name(cluster or DEFAULT_CLUSTER)


def run_folder(state: Path, environ: Mapping[str, str]) -> Path:
    """The run folder of a state folder: the same for every spelling of its path. Makes nothing."""
    digest = hashlib.sha256(os.fsencode(state.resolve())).hexdigest()[:HASH_DIGITS]
    runtime = environ.get("XDG_RUNTIME_DIR", "")
    bases = [Path(runtime) / "everram"] if runtime.startswith("/") and _is_private(Path(runtime)) else []
    bases.append(Path("/tmp") / f"everram-{os.geteuid()}")
    fitting = [b for b in bases if len(os.fsencode(b / digest / LONGEST_SOCKET_NAME)) <= SOCKET_PATH_MAX_BYTES]
    return fitting[0] / digest


def _is_private(path: Path) -> bool:
    try:
        found = path.lstat()
    except OSError:
        return False
    return stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid() and not stat.S_IMODE(found.st_mode) & 0o077


def make_private(folder: Path) -> None:
    """Make `folder` (its parent must exist) with mode 0700, or check that an existing one is ours alone.

    Raises PermissionDenied if somebody else made it: whoever owns the folder could replace our sockets.
    """
    try:
        folder.mkdir(mode=0o700)
    except FileExistsError:
        pass
    except OSError as error:
        raise of_os_error(error, f"make the folder {folder}") from error
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid():
        raise PermissionDenied(
            f"{folder} is not a folder of yours, so its sockets could not be trusted: remove it, or set XDG_RUNTIME_DIR"
        )
    if stat.S_IMODE(found.st_mode) & 0o077:
        folder.chmod(0o700)


def of_os_error(error: OSError, doing: str) -> EverramError:
    """The plain error of a failed system call; `doing` completes "cannot ..."."""
    text = f"cannot {doing}: {error.strerror or error}"
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return PermissionDenied(text)
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EMFILE, errno.ENFILE, errno.ENOMEM):
        return ResourceExhausted(f"{text}; free some and try again")
    if error.errno in (errno.ENAMETOOLONG, errno.ENOTDIR, errno.ENOENT, errno.ELOOP):
        return InvalidArgument(text)
    return DataLoss(text)


def sync_folder(folder: Path) -> None:
    """Make what was renamed in it durable. Raises OSError."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_durably(path: Path, text: str) -> None:
    """Atomically: a reader sees the old text or the new one, also after a power cut. Raises an EverramError."""
    aside = path.with_name(path.name + ".new")
    try:
        with aside.open("w", encoding="utf-8") as file:
            os.fchmod(file.fileno(), 0o600)  # there may be the cluster's token in it
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
        sync_folder(path.parent)
    except OSError as error:
        raise of_os_error(error, f"write {path}") from error


def set_image_aside(machine: Path) -> str:
    """Durably rename the `image` in a machine's folder, so that its next start finds none; the new name, empty if there
    was none. Nor shall it find the report of a loss of the mains that this memory did not outlive. Raises an
    EverramError."""
    (machine / "power" / "report.json").unlink(missing_ok=True)
    number = 1
    while (aside := machine / f"image.lost-{number}").exists():
        number += 1
    try:
        (machine / "image").rename(aside)
        sync_folder(machine)
    except FileNotFoundError:
        return ""
    except OSError as error:
        raise of_os_error(error, f"set {machine / 'image'} aside") from error
    return aside.name


class Phase(enum.Enum):
    """What a state folder says about its cluster."""

    NEW = "new"
    """Nothing was ever started here."""
    STOPPED = "stopped"
    """Stopped in order; `up` restores it."""
    CRASHED = "crashed"
    """Its supervisor ended without an orderly stop; what was only in memory is gone."""
    RUNNING = "running"


@dataclass(frozen=True, slots=True)
class SupervisorRecord:
    """What `supervisor.json` says."""

    pid: int
    run: str

    def to_json(self) -> str:
        return json.dumps({"pid": self.pid, "run": self.run}) + "\n"


@dataclass(frozen=True, slots=True)
class Folders:
    """The paths of one cluster. Making one touches nothing."""

    state: Path
    run: Path

    @staticmethod
    def of(cluster: str | None, folder: str | None, environ: Mapping[str, str]) -> Folders:
        """Of the cluster that the flags and the environment name; a running one's run folder is the one it really uses.

        Raises InvalidArgument for an impossible name, DataLoss for a damaged record.
        """
        state = state_folder(cluster, folder, environ)
        found = Folders(state, run_folder(state, environ))
        record = found.supervisor_record()
        return found if record is None else Folders(state, Path(record.run))

    @property
    def config(self) -> Path:
        return self.state / "cluster.json"

    @property
    def lock(self) -> Path:
        return self.state / "supervisor.lock"

    @property
    def record(self) -> Path:
        return self.state / "supervisor.json"

    @property
    def log(self) -> Path:
        return self.state / "supervisor.log"

    @property
    def coordination(self) -> Path:
        return self.state / "coordination"

    @property
    def machines(self) -> Path:
        return self.state / "machines"

    def machine(self, host: str) -> Path:
        return self.machines / host

    @property
    def supervisor_socket(self) -> Path:
        return self.run / "supervisor.sock"

    @property
    def coordination_socket(self) -> Path:
        return self.run / "coordination.sock"

    def host_socket(self, host: str) -> Path:
        return self.run / f"{host}.sock"

    def machine_socket(self, host: str) -> Path:
        return self.run / f"{host}.machine.sock"

    def supervisor_record(self) -> SupervisorRecord | None:
        """None if there is none. Raises DataLoss if it is there and unreadable."""
        try:
            members = json.loads(self.record.read_text(encoding="utf-8"))
            return SupervisorRecord(int(members["pid"]), str(members["run"]))
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise of_os_error(error, f"read {self.record}") from error
        except (ValueError, KeyError, TypeError) as error:
            raise DataLoss(
                f"{self.record} is damaged ({error}): if no cluster is running there, remove that file and try again"
            ) from error

    def phase(self) -> Phase:
        """Raises an EverramError if the folder cannot be read."""
        return Phase.RUNNING if is_locked(self.lock) else self.phase_unlocked()

    def phase_unlocked(self) -> Phase:
        """The same for whoever holds the lock."""
        if self.record.exists():
            return Phase.CRASHED
        return Phase.STOPPED if self.config.exists() else Phase.NEW

    def make(self) -> None:
        """The state and run folders, private to this user. Raises an EverramError."""
        try:
            self.state.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError as error:
            raise of_os_error(error, f"make the folder {self.state}") from error
        make_private(self.run.parent)
        make_private(self.run)

    def remove_run(self) -> None:
        """The sockets and their folder. The parent, which other clusters of this user share, stays."""
        shutil.rmtree(self.run, ignore_errors=True)

    def discard(self) -> None:
        """Erase the cluster's state: what everram made in the folder, and the folder itself if nothing else is in it.

        The configuration goes first and the lock last: a discard that is interrupted leaves no half of a cluster that
        could be started.
        """
        self._discard_nvm_files()
        for path in (self.config, self.machines, self.coordination, self.record, self.log, self.lock):
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
        try:
            self.state.rmdir()
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.ENOENT):
                raise

    def _discard_nvm_files(self) -> None:
        from everram.runtime.production import nvm_files  # only here: most commands have no use for it

        try:
            config = ClusterConfig.read(self.config)
        except DataLoss:
            return  # nobody knows any more where they are
        for host in config.hosts if config.nvm_files else ():
            nvm_files.discard(Path(config.nvm_files) / host, f"{config.cluster_id}/{host}")


class ClusterLock:
    """Held by the supervisor for as long as it lives; the kernel lets go of it at the latest when it ends."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    @staticmethod
    def take(path: Path) -> ClusterLock:
        """Raises AlreadyExists if another process holds it."""
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise of_os_error(error, f"open {path}") from error
        try:
            fcntl.fcntl(descriptor, fcntl.F_OFD_SETLK, struct.pack(_FLOCK, fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0))
        except OSError as error:
            os.close(descriptor)
            if error.errno in (errno.EAGAIN, errno.EACCES):
                raise AlreadyExists(f"the cluster in {path.parent} is already running: see `everram status`") from error
            raise of_os_error(error, f"lock {path}") from error
        return ClusterLock(descriptor)

    def release(self) -> None:
        os.close(self._descriptor)


def is_locked(path: Path) -> bool:
    """Whether a supervisor holds the lock. Asks without taking it, so it never disturbs one that is starting."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        raise of_os_error(error, f"read {path}") from error
    try:
        asked = struct.pack(_FLOCK, fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
        answer = fcntl.fcntl(descriptor, fcntl.F_OFD_GETLK, asked)
        return int(struct.unpack(_FLOCK, answer)[0]) != fcntl.F_UNLCK
    finally:
        os.close(descriptor)
