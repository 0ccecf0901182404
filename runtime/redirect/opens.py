"""Python's own open family, redirected for paths under a prefix: `install("/everram/files")`.

Redirected are `open` and `io.open` (so `pathlib`, `shutil`, `json.load(open(...))`, ...), and of `os`: open with read,
write, pread, pwrite, lseek, fstat, ftruncate, fsync and close of what it returned; stat, lstat, access, listdir,
scandir, mkdir, rmdir, unlink, remove, rename, replace, chmod and truncate. Everything else, and every other path, is
Python's own. Not redirected: what C code opens by itself (sqlite3, mmap, subprocesses that are not Python).
"""

from __future__ import annotations

import atexit
import builtins
import contextlib
import errno
import io
import os
import stat
import weakref
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from everram.runtime.contracts.remote_memory_pb2 import Node
    from everram.runtime.redirect.agent import Blocking
    from everram.runtime.redirect.raw import RemoteRaw

_MODE_BYTES = frozenset("rwaxbt+")


class _Redirection:
    """What the redirected functions share."""

    def __init__(self, prefix: str) -> None:
        self.prefix = os.path.abspath(prefix)  # noqa: PTH100 - of a path that need not be
        self.opened: dict[int, RemoteRaw] = {}
        """By descriptor: of /dev/null, so that its number is nobody else's."""
        self.handed_out: weakref.WeakSet[Any] = weakref.WeakSet()
        """What `open` returned: Python closes it after all else, when there is no connection any more."""
        self._files: Blocking | None = None

    def end(self) -> None:
        """The program ends."""
        for file in [*self.handed_out, *self.opened.values()]:
            with contextlib.suppress(OSError, ValueError):
                file.close()
        if self._files is not None:
            self._files.end()

    @property
    def files(self) -> Blocking:
        if self._files is None:
            from everram.runtime.redirect.agent import Blocking

            self._files = Blocking(self.prefix)
        return self._files

    def remote(self, path: Any) -> str | None:
        """The cluster's path, if it is one."""
        try:
            local = os.fsdecode(os.fspath(path))
        except TypeError:
            return None
        local = os.path.abspath(local) if local else local  # noqa: PTH100 - without looking at anything
        if local == self.prefix:
            return ""
        return local[len(self.prefix) + 1 :] if local.startswith(self.prefix + "/") else None

    def node(self, path: str) -> Node:
        return self.files.call(lambda files: files.stat(path), path)


class _Entry:
    """As os.DirEntry."""

    def __init__(self, folder: str, node: Node) -> None:
        self.name = node.name
        self.path = os.path.join(folder, node.name)  # noqa: PTH118 - as os.scandir does
        self._node = node

    def is_dir(self, *, follow_symlinks: bool = True) -> bool:
        return self._node.folder

    def is_file(self, *, follow_symlinks: bool = True) -> bool:
        return not self._node.folder

    def is_symlink(self) -> bool:
        return False

    def is_junction(self) -> bool:
        return False

    def inode(self) -> int:
        return stat_of(self._node).st_ino

    def stat(self, *, follow_symlinks: bool = True) -> os.stat_result:
        return stat_of(self._node)

    def __fspath__(self) -> str:
        return self.path


class _Entries:
    """As the iterator of os.scandir."""

    def __init__(self, entries: list[_Entry]) -> None:
        self._entries = iter(entries)

    def __iter__(self) -> Iterator[_Entry]:
        return self._entries

    def __next__(self) -> _Entry:
        return next(self._entries)

    def __enter__(self) -> _Entries:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        self._entries = iter(())


def stat_of(node: Node) -> os.stat_result:
    """The same numbers as on a mount."""
    from everram.runtime.fuse.operations import inode_of

    mode = (stat.S_IFDIR if node.folder else stat.S_IFREG) | node.mode
    seconds = node.modified_ns / 1e9
    values = (mode, inode_of(node.id), 0, 1, os.getuid(), os.getgid(), node.size_bytes, *[int(seconds)] * 3)
    times = {f"st_{which}time": seconds for which in "amc"}
    return os.stat_result(values, times | {f"st_{which}time_ns": node.modified_ns for which in "amc"})


def install(prefix: str) -> None:
    """See the module. Once in a process."""
    here = _Redirection(prefix)
    atexit.register(here.end)  # before any of the program's own, so it runs after those
    builtins.open = io.open = _opens(here, io.open)
    for name, function in {**_by_path(here), **_by_descriptor(here)}.items():
        setattr(os, name, function)
    os.rename = os.replace = _rename(here, os.rename)


def _opens(here: _Redirection, own: Callable[..., Any]) -> Callable[..., Any]:
    def open(
        file: Any,
        mode: str = "r",
        buffering: int = -1,
        encoding: str | None = None,
        errors: str | None = None,
        newline: str | None = None,
        closefd: bool = True,
        opener: Any = None,
    ) -> Any:
        raw = here.opened.get(file) if isinstance(file, int) else None
        path = None if isinstance(file, int) or opener is not None else here.remote(file)
        if raw is None and path is None:
            return own(file, mode, buffering, encoding, errors, newline, closefd, opener)
        text, letters = _checked(mode, buffering, encoding, errors, newline)
        if raw is None:
            from everram.runtime.redirect.raw import RemoteRaw

            raw = RemoteRaw(here.files, path or "", letters)
        opened = _wrapped(raw, letters, text, buffering, encoding, errors, newline)
        here.handed_out.add(opened)
        return opened

    open.__doc__ = own.__doc__
    return open


def _checked(mode: str, buffering: int, *of_text: str | None) -> tuple[bool, str]:
    """Whether it is text, and the mode without "b" and "t". Raises ValueError as Python's own does."""
    kinds = [letter for letter in mode if letter in "rwax"]
    if set(mode) - _MODE_BYTES or len(set(mode)) != len(mode) or len(kinds) != 1 or {"b", "t"} <= set(mode):
        raise ValueError(f"invalid mode: {mode!r}")
    text = "b" not in mode
    if not text and any(value is not None for value in of_text):
        raise ValueError("binary mode doesn't take an encoding, errors or newline argument")
    if text and buffering == 0:
        raise ValueError("can't have unbuffered text I/O")
    return text, kinds[0] + ("+" if "+" in mode else "")


def _wrapped(
    raw: RemoteRaw,
    letters: str,
    text: bool,
    buffering: int,
    encoding: str | None,
    errors: str | None,
    newline: str | None,
) -> Any:
    """In the buffers that Python's own open would choose."""
    from everram.runtime.redirect.raw import BUFFER_BYTES

    if buffering == 0:
        return raw
    size = buffering if buffering > 1 else BUFFER_BYTES
    if "+" in letters:
        buffered: Any = io.BufferedRandom(raw, size)
    else:
        buffered = io.BufferedReader(raw, size) if letters == "r" else io.BufferedWriter(raw, size)
    if not text:
        return buffered
    wrapper = io.TextIOWrapper(buffered, encoding, errors, newline, line_buffering=buffering == 1)
    wrapper.mode = letters  # type: ignore[misc]
    return wrapper


def _by_path(here: _Redirection) -> dict[str, Callable[..., Any]]:
    """The redirected functions of `os` that take one path first."""

    def call(act: Callable[[Any, str], Any]) -> Callable[[str], Any]:
        return lambda path: here.files.call(lambda files: act(files, path), path)

    def list_(path: str) -> list[Node]:
        found: list[Node] = here.files.call(lambda files: files.list(path), path)
        if len(found) == 1 and not here.node(path).folder:
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), f"{here.prefix}/{path}")
        return found

    def access(path: str, mode: int, **_: Any) -> bool:
        try:
            node = here.node(path)
        except OSError:
            return False
        return not mode & ~(node.mode >> 6)

    def truncate(path: str, length: int) -> None:
        from everram.runtime.redirect.raw import RemoteRaw

        with RemoteRaw(here.files, path, "r+") as raw:
            raw.truncate(length)

    def open_(path: str, flags: int, mode: int = 0o777, **_: Any) -> int:
        return _open_descriptor(here, path, flags, mode)

    functions: dict[str, Callable[..., Any]] = {
        "stat": lambda path, **_: stat_of(here.node(path)),
        "lstat": lambda path, **_: stat_of(here.node(path)),
        "access": access,
        "listdir": lambda path: [node.name for node in list_(path)],
        "scandir": lambda path: _Entries([_Entry(os.path.join(here.prefix, path), node) for node in list_(path)]),  # noqa: PTH118
        "mkdir": lambda path, mode=0o777, **_: call(lambda files, at: files.mkdir(at, mode & ~_umask()))(path) and None,
        "rmdir": lambda path, **_: call(lambda files, at: files.rmdir(at))(path),
        "unlink": lambda path, **_: call(lambda files, at: files.remove(at))(path),
        "remove": lambda path, **_: call(lambda files, at: files.remove(at))(path),
        "chmod": lambda path, mode, **_: call(lambda files, at: files.chmod(at, mode))(path) and None,
        "truncate": truncate,
        "open": open_,
    }
    return {name: _either(here, getattr(os, name), function) for name, function in functions.items()}


def _either(here: _Redirection, own: Callable[..., Any], redirected: Callable[..., Any]) -> Callable[..., Any]:
    def function(*arguments: Any, **named: Any) -> Any:
        first = arguments[0] if arguments else named.get("path", ".")
        if isinstance(first, int):
            return _of_descriptor(here, own, first, arguments, named)
        path = here.remote(first) if named.get("dir_fd") is None else None
        if path is None:
            return own(*arguments, **named)
        named.pop("path", None)
        return redirected(path, *arguments[1:], **named)

    function.__name__, function.__doc__ = own.__name__, own.__doc__
    return function


def _of_descriptor(here: _Redirection, own: Callable[..., Any], first: int, arguments: Any, named: Any) -> Any:
    """stat and truncate take descriptors, too."""
    raw = here.opened.get(first)
    if raw is not None and own.__name__ == "stat":
        return stat_of(here.node(raw.name))
    if raw is not None and own.__name__ == "truncate":
        raw.truncate(arguments[1])
        return None
    return own(*arguments, **named)


def _rename(here: _Redirection, own: Callable[..., Any]) -> Callable[..., Any]:
    def rename(src: Any, dst: Any, **named: Any) -> None:
        source, target = here.remote(src), here.remote(dst)
        if source is None and target is None:
            own(src, dst, **named)
        elif source is None or target is None:
            raise OSError(errno.EXDEV, os.strerror(errno.EXDEV), src, None, dst)
        else:
            here.files.call(lambda files: files.rename(source, target), source)

    return rename


def _umask() -> int:
    current = os.umask(0o22)
    os.umask(current)
    return current


def _open_descriptor(here: _Redirection, path: str, flags: int, bits: int) -> int:
    from everram.runtime.redirect.raw import RemoteRaw

    write = flags & os.O_ACCMODE != os.O_RDONLY
    if flags & os.O_EXCL and flags & os.O_CREAT:
        mode = "x+"
    elif write and flags & os.O_APPEND and flags & os.O_CREAT:
        mode = "a+"
    elif flags & os.O_CREAT and not _is_there(here, path):
        mode = "w+"
    else:
        mode = "r+" if write else "r"
    raw = RemoteRaw(here.files, path, mode, bits & ~_umask())
    if flags & os.O_TRUNC and write:
        raw.truncate(0)
    descriptor = _own_open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    here.opened[descriptor] = raw
    return descriptor


_own_open = os.open


def _is_there(here: _Redirection, path: str) -> bool:
    try:
        here.node(path)
    except FileNotFoundError:
        return False
    return True


def _by_descriptor(here: _Redirection) -> dict[str, Callable[..., Any]]:
    """The redirected functions of `os` that take a descriptor which the redirected `os.open` returned."""

    def close(own: Callable[[int], None], fd: int) -> None:
        raw = here.opened.pop(fd)
        own(fd)
        raw.close()

    functions: dict[str, Callable[..., Any]] = {
        "read": lambda raw, length: raw.read(length),
        "write": lambda raw, data: raw.write(data),
        "pread": lambda raw, length, offset: raw.pread(offset, length),
        "pwrite": lambda raw, data, offset: raw.pwrite(offset, bytes(data)),
        "lseek": lambda raw, position, how: raw.seek(position, how),
        "fstat": lambda raw: stat_of(here.node(raw.name)),
        "ftruncate": lambda raw, length: raw.truncate(length) and None,
        "fsync": lambda raw: None,
    }

    def redirected(name: str, act: Callable[..., Any]) -> Callable[..., Any]:
        own = getattr(os, name)

        def function(fd: int, *arguments: Any, **named: Any) -> Any:
            raw = here.opened.get(fd)
            return own(fd, *arguments, **named) if raw is None else act(raw, *arguments, **named)

        return function

    own_close = os.close
    made = {name: redirected(name, act) for name, act in functions.items()}
    made["close"] = lambda fd: close(own_close, fd) if fd in here.opened else own_close(fd)
    return made
