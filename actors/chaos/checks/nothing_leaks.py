"""A host's snapshots are consistent, and when the last is removed nothing is left of any."""

from __future__ import annotations

from collections.abc import Sequence

from everram.runtime.contracts.nvm_device_pb2 import NvmStatus

PROPERTY = "snapshots leave nothing behind"


def check(findings: Sequence[str], status: NvmStatus) -> str | None:
    if findings:
        return f"{len(findings)} findings: {findings[0]}"
    if status.snapshots == 0 and (status.store_bytes or status.storage_bytes):
        return (
            f"no snapshot is left, but {status.store_bytes} bytes in memory and {status.storage_bytes} on storage are"
        )
    return None
