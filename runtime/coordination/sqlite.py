"""Makes the embedded coordination store durable: one SQLite file, `coordination.db`, in the cluster's state folder.

Write-ahead log with `synchronous=FULL`: when `append` returns, a power cut takes nothing back. The file is locked
exclusively, so two servers never share it. Commits run in one thread, because a disk that stalls (an image being saved
beside it) must not stall the renewal of leases.

Tables (user_version 1): `meta(name, value)` with revision, compacted, cluster_id; `pairs`, the living keys;
`leases(lease, ttl_ms)`; `history(revision, position, event)`, the recent changes as etcd's mvccpb.Event with `prev_kv`.
"""

from __future__ import annotations

import asyncio
import secrets
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import groupby
from pathlib import Path

from everram.runtime.contracts import mvcc_pb2
from everram.runtime.coordination.api import KeyValue
from everram.runtime.coordination.refusals import NoSpace
from everram.runtime.coordination.store import Change, Saved, SavedLease
from everram.runtime.coordination.wire import delta_from_wire, delta_to_wire
from everram.runtime.errors import DataLoss, EverramError, FailedPrecondition, ResourceExhausted

FILE_NAME = "coordination.db"
FORMAT_VERSION = 1
APPLICATION_ID = 0x45565243
"""SQLite's own magic for who wrote a file: "EVRC"."""
LOCK_TIMEOUT_S = 1.0
"""A killed predecessor's lock ends with its process, which the kernel may still be tearing down."""

_TABLES = """
CREATE TABLE meta(name TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE pairs(key BLOB PRIMARY KEY, value BLOB NOT NULL, create_revision INTEGER NOT NULL,
                   mod_revision INTEGER NOT NULL, version INTEGER NOT NULL, lease INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE leases(lease INTEGER PRIMARY KEY, ttl_ms INTEGER NOT NULL);
CREATE TABLE history(revision INTEGER, position INTEGER, event BLOB NOT NULL,
                     PRIMARY KEY(revision, position)) WITHOUT ROWID;
"""


class SqlitePersistence:
    """Persistence in `folder`, which is made if need be.

    Raises FailedPrecondition if another server has it open or a newer version wrote it, DataLoss if it is damaged,
    ResourceExhausted if the disk is full.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / FILE_NAME
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        with self._explained():
            self._database = sqlite3.connect(
                self.path, timeout=LOCK_TIMEOUT_S, isolation_level=None, check_same_thread=False
            )
        try:
            with self._explained():
                self._open()
        except EverramError:
            self._database.close()
            raise
        self._compacted = 0  # history up to here is gone from the file
        self._commits = ThreadPoolExecutor(1, thread_name_prefix="coordination-commits")

    def _open(self) -> None:
        execute = self._database.execute
        execute("PRAGMA locking_mode=EXCLUSIVE")
        execute("PRAGMA journal_mode=WAL")
        execute("PRAGMA synchronous=FULL")
        with self._transaction():
            version = execute("PRAGMA user_version").fetchone()[0]
            if version > FORMAT_VERSION:
                raise FailedPrecondition(
                    f"{self.path} has format {version}; this everram reads up to {FORMAT_VERSION}: use the newer one"
                )
            if version == 0:
                self._create()

    def _create(self) -> None:
        for statement in filter(str.strip, _TABLES.split(";")):
            self._database.execute(statement)
        fresh = (("revision", 1), ("compacted", 0), ("cluster_id", secrets.randbits(62) + 1))
        self._database.executemany("INSERT INTO meta VALUES(?, ?)", fresh)
        self._database.execute(f"PRAGMA application_id={APPLICATION_ID}")
        self._database.execute(f"PRAGMA user_version={FORMAT_VERSION}")

    def load(self) -> Saved:
        """Everything committed. Raises DataLoss."""
        with self._explained():
            return self._load(self._database.execute)

    def _load(self, execute: Callable[[str], sqlite3.Cursor]) -> Saved:
        meta: dict[str, int] = dict(execute("SELECT name, value FROM meta"))
        pairs = execute("SELECT key, value, create_revision, mod_revision, version, lease FROM pairs ORDER BY key")
        leases = execute("SELECT lease, ttl_ms FROM leases ORDER BY lease")
        rows = execute("SELECT revision, event FROM history ORDER BY revision, position")
        history = tuple(
            Change(revision, tuple(delta_from_wire(mvcc_pb2.Event.FromString(event)) for _, event in group))
            for revision, group in groupby(rows, key=lambda row: int(row[0]))
        )
        return Saved(
            revision=meta["revision"],
            compacted=meta["compacted"],
            pairs=tuple(KeyValue(*row) for row in pairs),
            leases=tuple(SavedLease(*row) for row in leases),
            history=history,
            cluster_id=meta["cluster_id"],
        )

    async def append(self, changes: Sequence[Change], compacted: int) -> None:
        """Durable when this returns. Raises NoSpace (nothing was written), DataLoss (unknown: end and load again)."""
        await asyncio.get_running_loop().run_in_executor(self._commits, self._append, tuple(changes), compacted)

    def _append(self, changes: Sequence[Change], compacted: int) -> None:
        try:
            with self._explained(), self._transaction():
                for change in changes:
                    self._write(change)
                self._set_meta("revision", changes[-1].revision)
                if compacted > self._compacted:
                    self._set_meta("compacted", compacted)
                    self._database.execute("DELETE FROM history WHERE revision <= ?", (compacted,))
            self._compacted = compacted
        except ResourceExhausted as error:
            raise NoSpace(f"{error.message}; nothing was changed") from error

    def _set_meta(self, name: str, value: int) -> None:
        self._database.execute("UPDATE meta SET value=? WHERE name=?", (value, name))

    def _write(self, change: Change) -> None:
        run = self._database.executemany
        gone = [(delta.key,) for delta in change.deltas if delta.after is None]
        put = [delta.after for delta in change.deltas if delta.after is not None]
        run("DELETE FROM pairs WHERE key=?", gone)
        run(
            "INSERT OR REPLACE INTO pairs VALUES(?, ?, ?, ?, ?, ?)",
            [(kv.key, kv.value, kv.create_revision, kv.mod_revision, kv.version, kv.lease) for kv in put],
        )
        run(
            "INSERT INTO history VALUES(?, ?, ?)",
            [
                (change.revision, i, delta_to_wire(delta, change.revision, with_before=True).SerializeToString())
                for i, delta in enumerate(change.deltas)
            ],
        )
        run("INSERT INTO leases VALUES(?, ?)", [(lease.lease, lease.ttl_ms) for lease in change.granted])
        run("DELETE FROM leases WHERE lease=?", [(lease.lease,) for lease in change.revoked])

    def close(self) -> None:
        """Finish a running commit, fold the write-ahead log into the file and let go of it."""
        self._commits.shutdown(wait=True)
        self._database.close()

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self._database.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._database.execute("COMMIT")
        except BaseException:
            # A full disk may have ended the transaction already.
            if self._database.in_transaction:
                self._database.execute("ROLLBACK")
            raise

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """Turn SQLite's errors into sentences that say what to do."""
        try:
            yield
        except sqlite3.Error as error:
            code = getattr(error, "sqlite_errorcode", 0) & 0xFF
            if code == sqlite3.SQLITE_FULL:
                raise ResourceExhausted(f"the disk of {self.path} is full: free some space") from error
            if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
                raise FailedPrecondition(f"another coordination server has {self.path} open: stop it first") from error
            raise DataLoss(f"{self.path} cannot be used ({error}): restore it, or start a new cluster") from error
