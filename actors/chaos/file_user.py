"""A program that uses remote files while everything breaks, and remembers what it was told.

    user = FileUser(world, cluster, answered, 0, pause_s=0.05)
    await user.live()                        # until `stop`
    await user.look_once_more()              # names and bytes, once everything works again

It has names of its own, so nobody else changes its files; beside them all users append to one file. What a refused or
unanswered operation has done is not guessed: such a name may be there or not, such content is only held to be its own.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import TypeVar

from everram.actors.chaos.checks import namespace_intact
from everram.actors.chaos.checks.answered import Answered
from everram.actors.chaos.cluster import Cluster
from everram.actors.chaos.file_client import FileClient
from everram.actors.remote_memory.refusals import errno_in
from everram.runtime.contracts import remote_memory_pb2 as rm
from everram.runtime.coordination.file_directory import ROOT
from everram.runtime.errors import EverramError, NotFound, Outcome
from everram.runtime.node import Node
from everram.runtime.simulation.world import World

T = TypeVar("T")

BYTES = "what is written to a file is read from it"
STAYS = "a file stays as long as its memory"
ASK_TIMEOUT_S = 12.0
"""An access insists for five seconds on its owner, and for as long on its manager."""
FILES_MAX = 6
"""Of one user: then it removes some."""
WORD_BYTES, WORDS_MAX = 8, 60
RECORD_BYTES = 16
LOG = "log"
ACTS = {"make": 3, "write": 5, "read": 4, "truncate": 1, "rename": 2, "remove": 2, "append": 3}
"""Each with its weight in the draw."""
ESTALE = 116


@dataclass(slots=True, eq=False)
class Known:
    """A file as its user knows it."""

    node: rm.Node
    tag: int
    persistent: bool
    generation: int
    """Of its machine: a volatile file does not outlive one."""
    open: rm.OpenFile | None = None
    content: bytearray = field(default_factory=bytearray)
    doubtful: bool = False
    """Whether something that may have been written was not answered for."""


class FileUser:
    """See the module."""

    def __init__(self, world: World, cluster: Cluster, answered: Answered, number: int, *, pause_s: float) -> None:
        self._world, self._cluster, self._answered = world, cluster, answered
        self._name = f"files {number}"
        self._number, self._pause_s = number, pause_s
        self._stream = world.stream(self._name)
        self._client = FileClient(self._ask, self._stream.choice(cluster.names), ASK_TIMEOUT_S)
        self._files: dict[str, Known] = {}
        """By their names, which are there for certain."""
        self._either: dict[str, str] = {}
        """Names that may be there; of a rename each with the other one, of which exactly one is."""
        self._made = 0
        self._log: Known | None = None
        self._appended: dict[int, bytes] = {}
        self._stopping = False
        acts = (self._make, self._write, self._read, self._truncate, self._rename, self._remove, self._append)
        self._acts: dict[str, Callable[[], Awaitable[None]]] = dict(zip(ACTS, acts, strict=True))

    def stop(self) -> None:
        """After what it is at."""
        self._stopping = True

    async def live(self) -> None:
        while not self._stopping:
            await asyncio.sleep(self._stream.uniform(0, 2 * self._pause_s))
            act = self._stream.choices(list(ACTS), weights=list(ACTS.values()))[0]
            await self._answered.watch(f"{self._name}'s {act}", self._try(act), 3 * ASK_TIMEOUT_S)
            self._look_at_the_namespace()

    async def _try(self, act: str) -> None:
        try:
            await self._acts[act]()
        except EverramError as error:
            self._world.note(self._name, f"cannot {act}: {error.message}")
            self._forget_session()

    async def _ask(self, host: str, act: Callable[[Node], Awaitable[T]]) -> T:
        return await self._cluster.ask(self._name, host, act, ASK_TIMEOUT_S)

    def _forget_session(self) -> None:
        """The host may have died with it: what was open is opened again."""
        self._client.session = ""
        for known in (*self._files.values(), *([self._log] if self._log else [])):
            known.open = None

    # -- what it does

    async def _make(self) -> None:
        if len(self._files) >= FILES_MAX:
            await self._remove()
            return
        self._made += 1
        path = f"u{self._number}-{self._made}"
        host, persistent = self._stream.choice(self._cluster.names), self._stream.random() < 0.5
        generation = self._cluster.generation(host)
        self._either[path] = ""
        file = await self._client.make(path, host=host, persistent=persistent)
        del self._either[path]
        self._files[path] = Known(file.node, self._number << 16 | self._made, persistent, generation, file)

    async def _write(self) -> None:
        known = await self._one_open()
        if known is None:
            return
        offset = WORD_BYTES * self._stream.randrange(WORDS_MAX)
        words = [known.tag << 32 | self._stream.getrandbits(32) for _ in range(self._stream.randrange(1, WORDS_MAX))]
        data = b"".join(word.to_bytes(WORD_BYTES, "little") for word in words)
        doubtful, known.doubtful = known.doubtful, True
        await self._of(known, self._client.write(_open(known), offset, data))
        known.doubtful = doubtful
        known.content.extend(bytes(max(0, offset + len(data) - len(known.content))))
        known.content[offset : offset + len(data)] = data
        if self._stream.random() < 0.5:
            self._check(known, await self._of(known, self._client.read(_open(known))))

    async def _truncate(self) -> None:
        known = await self._one_open()
        if known is None:
            return
        size_bytes = WORD_BYTES * self._stream.randrange(WORDS_MAX)
        doubtful, known.doubtful = known.doubtful, True
        await self._of(known, self._client.truncate(_open(known), size_bytes))
        known.doubtful = doubtful
        known.content[:] = known.content[:size_bytes].ljust(size_bytes, b"\0")

    async def _read(self) -> None:
        if (known := await self._one_open()) is not None:
            self._check(known, await self._of(known, self._client.read(_open(known))))

    async def _rename(self) -> None:
        if not self._files:
            return
        self._made += 1
        old, new = self._stream.choice(sorted(self._files)), f"u{self._number}-{self._made}"
        known = self._files.pop(old)
        self._either[old], self._either[new] = new, old
        try:
            await self._named(old, self._client.rename(old, new))
        except EverramError as error:
            if error.outcome is Outcome.FAILED:
                self._certain(old, known, also=new)
            raise
        self._certain(new, known, also=old)

    async def _remove(self) -> None:
        if not self._files:
            return
        path = self._stream.choice(sorted(self._files))
        known = self._files[path]
        if known.open is not None and self._stream.random() < 0.7:
            closing, known.open = known.open, None
            await self._client.close(closing)
        del self._files[path]
        self._either[path] = ""
        try:
            await self._named(path, self._client.remove(path))
        except EverramError as error:
            if error.outcome is Outcome.FAILED:
                self._certain(path, known)
            raise
        del self._either[path]

    def _certain(self, path: str, known: Known, *, also: str = "") -> None:
        """This name is there, and the other is not."""
        self._files[path] = known
        for name in (path, also):
            self._either.pop(name, None)

    async def _append(self) -> None:
        """To what all users append to; none overwrites another's."""
        if self._log is None or self._log.open is None:
            generations = {host: self._cluster.generation(host) for host in self._cluster.names}
            file = await self._client.open(LOG, write=True, create=True, append=True, persistent=True)
            if self._log is None or self._log.node.id != file.node.id:
                self._appended.clear()
                self._log = Known(file.node, 0, persistent=True, generation=generations[file.node.host])
            self._log.open = file
        self._made += 1
        record = self._number.to_bytes(8, "little") + self._made.to_bytes(8, "little")
        written = await self._of(self._log, self._client.write(_open(self._log), 0, record))
        self._appended[written.offset] = record

    async def _one_open(self) -> Known | None:
        if not self._files:
            return None
        path = self._stream.choice(sorted(self._files))
        known = self._files[path]
        if known.open is None:
            known.open = await self._named(path, self._client.open(path, write=True))
            if known.open.node.id != known.node.id:
                self._world.violate(STAYS, f"{self._name}: {path} is another file than it was")
        return known

    # -- what it holds against what it was told

    async def _named(self, path: str, ask: Awaitable[T]) -> T:
        """Of a name that is there."""
        try:
            return await ask
        except NotFound as error:
            if "ENOENT" in error.message:
                self._world.violate(namespace_intact.PROPERTY, f"{self._name}: {path} is gone: {error.message}")
            raise
        except EverramError as error:
            known = self._files.get(path)
            if known is not None:
                self._check_stale(known, error)
            raise

    async def _of(self, known: Known, ask: Awaitable[T]) -> T:
        try:
            return await ask
        except EverramError as error:
            self._check_stale(known, error)
            raise

    def _check_stale(self, known: Known, error: EverramError) -> None:
        if errno_in(error) == ESTALE and self._lives(known):
            self._world.violate(STAYS, f"{self._name}: {known.node.name}: {error.message}")

    def _lives(self, known: Known) -> bool:
        """Whether its memory is the one that it was in."""
        host = known.node.host
        here = self._cluster.memory_ids.get(host) == known.node.memory_id
        return here and (known.persistent or self._cluster.generation(host) == known.generation)

    def _check(self, known: Known, found: bytes) -> None:
        if not known.doubtful:
            if found != known.content:
                at = next((i for i, (a, b) in enumerate(zip(found, known.content, strict=False)) if a != b), -1)
                what = f"{len(found)} bytes of {len(known.content)}, other ones from {at} on"
                self._world.violate(BYTES, f"{self._name}: {known.node.name} has {what}")
            return
        words = {int.from_bytes(found[at : at + WORD_BYTES], "little") for at in range(0, len(found), WORD_BYTES)}
        if not all(word >> 32 == known.tag for word in words - {0}):
            self._world.violate(BYTES, f"{self._name}: {known.node.name} has bytes that nobody wrote to it")

    def _look_at_the_namespace(self) -> None:
        wrong = namespace_intact.broken(self._world.coordination.durable.pairs(ROOT))
        if wrong is not None:
            self._world.violate(namespace_intact.PROPERTY, wrong)

    async def look_once_more(self) -> bool:
        """Names and bytes, as they are when nothing breaks any more; whether all of that could be asked."""
        self._forget_session()
        try:
            names = set(await self._client.names())
            for path in sorted(self._files):
                known = self._files[path]
                known.open = await self._named(path, self._client.open(path))
                self._check(known, await self._of(known, self._client.read(_open(known))))
            await self._look_at_the_log()
        except EverramError as error:
            self._world.note(self._name, f"cannot look: {error.message}")
            return errno_in(error) == ESTALE and self._drop_the_dead()
        self._check_names({name for name in names if name.startswith(f"u{self._number}-")})
        return True

    def _drop_the_dead(self) -> bool:
        """Files whose memory has died cannot be looked at; then the others can."""
        for path in [path for path, known in self._files.items() if not self._lives(known)]:
            self._either[path] = ""
            del self._files[path]
        if self._log is not None and not self._lives(self._log):
            self._log = None
        return False

    async def _look_at_the_log(self) -> None:
        if self._log is None or not self._appended:
            return
        file = await self._client.open(LOG)
        if file.node.id != self._log.node.id:
            return
        content = await self._of(self._log, self._client.read(file))
        for offset, record in sorted(self._appended.items()):
            if content[offset : offset + RECORD_BYTES] != record:
                self._world.violate(BYTES, f"{self._name}: what was appended at {offset} is not there")

    def _check_names(self, names: set[str]) -> None:
        if lost := self._files.keys() - names:
            self._world.violate(namespace_intact.PROPERTY, f"{self._name}: {sorted(lost)[0]} is gone")
        if left := names - self._files.keys() - self._either.keys():
            self._world.violate(namespace_intact.PROPERTY, f"{self._name}: {sorted(left)[0]} is there still")
        for old, new in sorted(self._either.items()):
            if new and (old in names) == (new in names):
                both = "both there" if old in names else "both gone"
                self._world.violate(
                    namespace_intact.PROPERTY, f"{self._name}: {old} and {new}, its new name, are {both}"
                )


def _open(known: Known) -> rm.OpenFile:
    assert known.open is not None, "it was opened"
    return known.open
