"""What a crashed supervisor left running: found by its mark and ended, before anything of the cluster starts again.

Every process of a cluster carries EVERRAM_MACHINE=CLUSTER_ID/... in its environment, whatever became of its parents.
A host's mounts carry the same mark in their sources, and end with its machine.
"""

from __future__ import annotations

import logging
import os
import select
import signal

from everram.runtime.cluster.config import ClusterConfig
from everram.runtime.cluster.folders import Folders
from everram.runtime.errors import DataLoss, Internal, PermissionDenied
from everram.runtime.fuse import mount as fuse
from everram.runtime.machine import freezer, tree

END_TIMEOUT_S = 10.0
"""A killed process that is still there after this is stuck in the kernel."""
ROUNDS_MAX = 20
"""A process may fork while it is being killed; one that wins this often is fighting back."""

log = logging.getLogger("everram.supervisor")


def end_remains(folders: Folders) -> int:
    """End every process of the cluster; how many there were. The caller holds the cluster's lock."""
    try:
        config = ClusterConfig.read(folders.config)
    except DataLoss:
        return 0  # nothing can be recognised by an identity that is lost
    marks = [f"{config.cluster_id}/{name}" for name in (*config.hosts, "coordination")]
    return sum(end_marked(mark) for mark in marks)


def end_marked(mark: str) -> int:
    """Kill whatever carries the mark until nothing is left; how many there were. Raises Internal if some stay."""
    count = 0
    for _ in range(ROUNDS_MAX):
        # Without `and`: both have to be asked. What is in the machine's cgroup may have wiped its environment.
        left, found = not freezer.end_machine_cgroups(mark), tree.marked(mark)
        if not found and not left:
            unmount_marked(mark)
            return count
        count += len(found)
        for pid in found:
            _kill(pid)
    raise Internal(f"processes of {mark} cannot be ended: {tree.marked(mark)}")


def unmount_marked(mark: str) -> None:
    """Take the mounts of a dead machine's host away: nobody answers there any more."""
    for source, folder in fuse.marked(fuse.mark_of(mark)).items():
        try:
            fuse.unmount(folder)
        except PermissionDenied as error:
            log.warning("%s (%s) stays mounted: %s", folder, source, error.message)


def _kill(pid: int) -> None:
    """Returns when it has ended."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        signal.pidfd_send_signal(descriptor, signal.SIGKILL)
        select.select([descriptor], [], [], END_TIMEOUT_S)
    except ProcessLookupError:
        return
    finally:
        os.close(descriptor)
