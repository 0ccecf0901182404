"""What a machine answers about the upgrade of its host software, as the supervisor's contract says it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from everram.runtime.contracts import supervisor_pb2 as sv


def upgrade_report(answer: Mapping[str, Any]) -> sv.UpgradeReport:
    said: Mapping[str, Any] = answer.get("said", {})
    return sv.UpgradeReport(
        upgraded=bool(answer.get("upgraded")),
        version=str(said.get("version", "")),
        producer=str(said.get("producer", "")),
        format=str(said.get("format", "")),
        reads=str(said.get("reads", "")),
        guests=int(said.get("guests", 0)),
        steps=[sv.StepTime(step=step, ns=int(ns)) for step, ns in answer.get("took_ns", {}).items()],
    )
