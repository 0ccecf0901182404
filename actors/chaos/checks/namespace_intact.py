"""Every name leads to a file and back, every file has its memory, and there is no other memory of files.

Looked at from outside: the directory's pairs as its disk has them, and the memory objects of the machines.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from everram.runtime.coordination.directory import decode
from everram.runtime.coordination.file_directory import DROPPED, ENTRIES, INODES, id_of_memory

PROPERTY = "the namespace of files is intact"


def broken(pairs: Mapping[bytes, bytes]) -> str | None:
    """What no crash may leave, at any instant: an operation is one transaction."""
    inodes, entries = _inodes(pairs), _entries(pairs)
    for (parent, name), node_id in sorted(entries.items()):
        if node_id not in inodes:
            return f"{name!r} stands for {node_id}, which is no file"
        if (inodes[node_id]["parent"], inodes[node_id]["name"]) != (parent, name):
            return f"{name!r} stands for a file that is called {inodes[node_id]['name']!r}"
    for node_id, inode in sorted(inodes.items()):
        if not inode["holder"] and entries.get((str(inode["parent"]), str(inode["name"]))) != node_id:
            return f"file {node_id}, called {inode['name']!r}, has no such name"
    return None


def unsettled(
    pairs: Mapping[bytes, bytes], memories: Mapping[str, tuple[str, Iterable[str]]], *, restored: bool = True
) -> str | None:
    """What has to be over some time after the last fault. `memories`: of each host, its memory_id and the names of its
    memory objects. `restored`: whether some were saved and restored, which volatile files do not outlive."""
    if waiting := [key for key in sorted(pairs) if key.startswith(DROPPED)]:
        return f"{waiting[0].decode()} is not dropped yet"
    inodes = _inodes(pairs)
    for node_id, inode in sorted(inodes.items()):
        if inode["holder"]:
            return f"file {node_id} has no name, and is still held by {inode['holder']}"
    for host, (memory_id, names) in sorted(memories.items()):
        there = {node_id for name in names if (node_id := id_of_memory(name))}
        living = {
            node_id: bool(inode["persistent"])
            for node_id, inode in inodes.items()
            if inode["kind"] == "file" and (inode["host"], inode["memory_id"]) == (host, memory_id)
        }
        if left := sorted(there - living.keys()):
            return f"{host} has memory for file {left[0]}, which is none"
        wanted = {node_id for node_id, persistent in living.items() if persistent or not restored}
        if lost := sorted(wanted - there):
            return f"{host} has no memory for file {lost[0]}"
    return None


def _inodes(pairs: Mapping[bytes, bytes]) -> dict[str, Mapping[str, object]]:
    return {key.removeprefix(INODES).decode(): decode(value) for key, value in pairs.items() if key.startswith(INODES)}


def _entries(pairs: Mapping[bytes, bytes]) -> dict[tuple[str, str], str]:
    """(folder's id, name) -> id."""
    found = {}
    for key, value in pairs.items():
        if key.startswith(ENTRIES):
            parent, _, name = key.removeprefix(ENTRIES).decode().partition("/")
            found[parent, name] = str(decode(value)["id"])
    return found
