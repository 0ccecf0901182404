"""The report of a loss of the mains, as it lies on the machine's storage: JSON, written anew at each step."""

from __future__ import annotations

from google.protobuf.json_format import MessageToJson, Parse, ParseError

from everram.runtime.contracts.power_monitor_pb2 import PowerReport
from everram.runtime.environment import Disk
from everram.runtime.errors import EverramError

NAME = "power/report.json"
UNDER_WAY, SAVED, TAKEN_BACK = "under way", "saved", "the mains came back"
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


async def give_up(disk: Disk) -> None:
    """A person has chosen to go on without what was not saved."""
    report = await read_report(disk)
    if report is not None and report.outcome == UNDER_WAY:
        report.outcome = "nothing was saved before the battery was empty"
        await write_report(disk, report)
