"""The faults of a host that anybody may make in their own cluster, by name (`everram fault HOST NAME`).

Those of its disk are told by a file in its state folder, whose content is the fault's name, and those of its links by
its machine: both last until they are healed, whatever process is the host meanwhile.
"""

from __future__ import annotations

DISK_FAULT_FILE = "fault.disk"
DISK_FULL, DISK_SLOW, DISK_FAILS = DISK_FAULTS = ("disk-full", "disk-slow", "disk-fails")
LINK_DELAY, LINK_SLOW, LINK_CORRUPT, ONE_WAY = LINK_FAULTS = ("link-delay", "link-slow", "link-corrupt", "one-way")
HOST_FAULTS = ("host-kill", "hang", "machine-kill", "partition", *LINK_FAULTS, *DISK_FAULTS)
