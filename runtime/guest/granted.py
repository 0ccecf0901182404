"""What the machine grants a process of a guest: the handshake of docs/formats.md, "Attach", from the guest's side."""

from __future__ import annotations

import array
import contextlib
import json
import os
import socket
from dataclasses import dataclass
from typing import Any

from everram.runtime.errors import EverramError
from everram.runtime.formats.page_classes import MEMORY_LABEL, PageClasses
from everram.runtime.guest.errors import NotAGuest, RegionError
from everram.runtime.guest.region import Region
from everram.runtime.guest.volatile import Volatile
from everram.runtime.memory import userfaultfd
from everram.runtime.memory.mapped import Mapped
from everram.runtime.memory.old_pages import OldPages
from everram.runtime.memory.userfaultfd import Feature

MESSAGE_BYTES_MAX = 64 * 1024
DESCRIPTORS_MAX = 253
"""The kernel's limit in one message."""
OTHER_ROLES = ("log", "memory", "classes", "old")
"""Of grants that are no regions."""
TIMEOUT_S = 30.0
"""For one answer: long enough for a host that is just being restarted to take up fault service."""


@dataclass(slots=True)
class Granted:
    """This process's hold of its guest's memory. `connection` stays open for life: its end is the end of the hold."""

    connection: socket.socket
    epoch: int
    recovered: bool
    log: Mapped
    regions: list[Region]
    doorbell: int
    memory: Volatile | None = None
    """Volatile memory, where the guest has any."""
    memory_mapping: Mapped | None = None
    table_mapping: Mapped | None = None
    userfaultfd: int = -1
    """Kept open for life: if the last one closed, blocked threads would go on with zeros."""

    def close(self) -> None:
        """Give the memory back, before anything was done with it."""
        self.log.close()
        for region in self.regions:
            region.mapping.close()
            if region.old is not None:
                region.old.close()
        for mapping in (self.memory_mapping, self.table_mapping):
            if mapping is not None and self.memory is None:  # its views go with the process
                mapping.close()
        os.close(self.doorbell)
        if self.userfaultfd >= 0:
            os.close(self.userfaultfd)
        self.connection.close()


def ask(path: str, guest_id: str, epoch: int) -> Granted:
    """Attach to the machine at `path`. Raises NotAGuest with the machine's own words if it refuses."""
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
    with contextlib.ExitStack() as undo:
        undo.callback(connection.close)
        connection.settimeout(TIMEOUT_S)
        try:
            connection.connect(path)
        except OSError as error:
            raise NotAGuest(f"the machine at {path} does not answer ({error.strerror}): was it stopped?") from error
        asking = {"everram": 1, "do": "attach", "guest": guest_id, "epoch": epoch, "saves": True}
        answer, descriptors = _exchange(connection, asking)
        granted = _map(connection, answer, descriptors)
        tracked = [grant["label"] for grant in answer["grants"] if grant["tracked"]]
        if tracked:
            _hand_over_faults(granted, tracked if answer["tracking"] else [])
        use_memory(granted)
        undo.pop_all()
    return granted


def _map(connection: socket.socket, answer: dict[str, Any], descriptors: list[int]) -> Granted:
    """Takes the descriptors: all are closed again but the last, the doorbell, and that too if this raises."""
    grants = answer["grants"]
    with contextlib.ExitStack() as undo:
        for descriptor in descriptors:
            undo.callback(os.close, descriptor)
        if len(descriptors) != len(grants) + 1 or [grant["role"] for grant in grants].count("log") != 1:
            raise NotAGuest("the machine granted no log and doorbell: it is of another version than this library")
        mappings = [Mapped(fd, grant["size_bytes"]) for fd, grant in zip(descriptors, grants, strict=False)]
        doorbell = os.dup(descriptors[-1])  # close-on-exec too
    regions: list[Region] = []
    others: dict[str, Mapped] = {}
    for mapping, grant in zip(mappings, grants, strict=True):
        if grant["role"] not in OTHER_ROLES:
            regions.append(Region(grant["label"], len(regions), grant["role"], mapping, grant["size_bytes"]))
        elif grant["role"] != "old":
            others[grant["role"]] = mapping
    by_name = {region.name: region for region in regions}
    for mapping, grant in zip(mappings, grants, strict=True):
        if grant["role"] == "old" and grant["label"] in by_name:
            by_name[grant["label"]].old = _old_pages(grant["label"], mapping)
    granted = Granted(connection, answer["epoch"], answer["recovered"], others["log"], regions, doorbell)
    granted.memory_mapping, granted.table_mapping = others.get("memory"), others.get("classes")
    return granted


def use_memory(granted: Granted) -> None:
    """Begin to use the volatile memory, once its faults are served; nothing to do without any. Raises NotAGuest."""
    if granted.memory_mapping is None or granted.table_mapping is None:
        return
    try:
        classes = PageClasses.open(granted.table_mapping)
    except ValueError as error:
        raise NotAGuest(f"this library does not fit the host: {error}; start the guest with its everram") from error
    granted.memory = Volatile(granted.memory_mapping, classes)


def _old_pages(label: str, mapping: Mapped) -> OldPages:
    """Raises RegionError."""
    try:
        return OldPages.open(mapping)
    except EverramError as error:
        raise RegionError(f"region {label} cannot be written to: {error.message}") from error


def _hand_over_faults(granted: Granted, labels: list[str]) -> None:
    """Let the host see first writes to these regions, or say that this process cannot; returns when it serves them."""
    descriptor = -1
    if labels:
        with contextlib.suppress(OSError):
            descriptor = userfaultfd.make()
    if descriptor >= 0:
        try:
            # Here, because the features belong to this address space whoever makes the call.
            wanted = Feature.PAGEFAULT_FLAG_WP | Feature.WP_SHMEM | Feature.MISSING_SHMEM
            userfaultfd.handshake(descriptor, wanted)
        except OSError:
            os.close(descriptor)
            descriptor = -1
    mapped = {region.name: (_address(region), region.size_bytes) for region in granted.regions}
    if granted.memory_mapping is not None:
        mapped[MEMORY_LABEL] = granted.memory_mapping.address, granted.memory_mapping.size_bytes
    ranges = [
        {"label": label, "address": address, "length": size_bytes}
        for label, (address, size_bytes) in mapped.items()
        if label in labels and descriptor >= 0
    ]
    _exchange(granted.connection, {"do": "track", "ranges": ranges}, [descriptor] if descriptor >= 0 else [])
    granted.userfaultfd = descriptor


def _address(region: Region) -> int:
    """Where its mapping begins in this process."""
    assert isinstance(region.mapping, Mapped)
    return region.mapping.address


def _exchange(
    connection: socket.socket, message: dict[str, Any], descriptors: list[int] | None = None
) -> tuple[dict[str, Any], list[int]]:
    """One question, one answer with its descriptors. Raises NotAGuest."""
    ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))] if descriptors else []
    received = array.array("i")
    try:
        connection.sendmsg([json.dumps(message).encode()], ancillary)
        space = socket.CMSG_SPACE(DESCRIPTORS_MAX * received.itemsize)
        data, extra, _, _ = connection.recvmsg(MESSAGE_BYTES_MAX, space, socket.MSG_CMSG_CLOEXEC)
    except OSError as error:
        raise NotAGuest(
            f"attaching broke off ({error}): the machine has ended, or the guest is being stopped"
        ) from error
    for level, kind, content in extra:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            received.frombytes(content[: len(content) - len(content) % received.itemsize])
    answer = json.loads(data) if data else {"ok": False, "error": "the machine closed the connection"}
    if not answer.get("ok"):
        for descriptor in received:
            os.close(descriptor)
        raise NotAGuest(f"this process may not attach: {answer.get('error', 'no reason given')}")
    return answer, received.tolist()
