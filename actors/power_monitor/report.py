"""The report of a loss of the mains, as it lies on the machine's storage: JSON, written anew at each step."""

from __future__ import annotations

import time

from google.protobuf.json_format import MessageToJson, Parse, ParseError

from everram.runtime.contracts.power_monitor_pb2 import PowerReport
from everram.runtime.environment import Disk
from everram.runtime.errors import EverramError

NAME = "power/report.json"
AC_LOSS = "a loss of the mains"
"""Cause of an image that was saved on battery."""
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


def words(report: PowerReport) -> str:
    """What came of a loss of the mains, for a person."""
    began = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(report.began_ns / 1e9))
    said = [
        f"at {began} UTC, with a battery of {report.battery_s:.3f} s: guests stopped in "
        f"{report.freeze_s:.3f} s, logs drained in {report.drain_s:.3f} s"
    ]
    if report.outcome == SAVED:
        said.append(f"memory saved in {report.save_s:.3f} s, {report.left_s:.3f} s of the battery left")
    elif report.outcome == UNDER_WAY:
        said.append("and its battery did not last: it was empty before the memory was saved")
    else:
        said.append(f"and then {report.outcome}")
    said += [
        f"of {guest.name} what lies between {copy.durable} and {guest.tail} did not make it to {copy.host}"
        for guest in report.guests
        for copy in guest.copies
        if not copy.drained
    ]
    if report.not_held:
        said.append(f"that {', '.join(report.not_held)} should wait for what was saved could not be told to anybody")
    return "; ".join(said)
