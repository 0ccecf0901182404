"""The report of a loss of the mains, as it lies on the machine's storage: JSON, written anew at each step."""

from __future__ import annotations

from google.protobuf.json_format import MessageToJson, Parse, ParseError

from everram.runtime.contracts.power_monitor_pb2 import PowerReport
from everram.runtime.environment import Disk
from everram.runtime.errors import EverramError

NAME = "power/report.json"
UNDER_WAY, SAVED, TAKEN_BACK = "under way", "saved", "the mains came back"
GIVEN_UP = "a person went on without what was not saved"
"""Outcomes; any other says what went wrong."""


async def write_report(disk: Disk, report: PowerReport) -> None:
    try:
        await disk.replace(NAME, MessageToJson(report, preserving_proto_field_name=True).encode())
    except EverramError:
        pass  # the storage does not take it: what it says is in the log and in the answer to `status`


async def read_report(disk: Disk) -> PowerReport | None:
    """Of the last loss of the mains; None if there was none, or its report cannot be read."""
    try:
        return Parse(await disk.read(NAME), PowerReport())
    except (EverramError, ParseError):
        return None


def is_unsaved(report: PowerReport | None) -> bool:
    """Whether the memory is neither saved nor kept: the battery did not last, or the storage did not take it."""
    return report is not None and report.outcome not in (SAVED, TAKEN_BACK, GIVEN_UP)


async def settle(disk: Disk, outcome: str) -> None:
    """What became of memory that was not saved."""
    report = await read_report(disk)
    if report is not None and is_unsaved(report):
        report.outcome = outcome
        await write_report(disk, report)
