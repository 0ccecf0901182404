"""What a person has to choose before memory is opened that may not be opened silently: said in full, and checked.

    await check_choice(disk, survey, ended, report, open_image)     # raises FailedPrecondition, or does not

The sentence says what there is, what of it is missing, how the last life of this memory ended (with the report of the
energy, if it was the mains), and which words open what.
"""

from __future__ import annotations

from everram.actors.power_monitor.ends import CLEAN, INCOMPLETE, MISSING
from everram.actors.power_monitor.report import is_unsaved, words
from everram.runtime.contracts.power_monitor_pb2 import PowerReport
from everram.runtime.environment import Disk
from everram.runtime.errors import DataLoss, FailedPrecondition
from everram.runtime.formats.image import Survey
from everram.runtime.formats.image_reader import Image

EMPTY = "empty"
"""Start without what was lost on battery."""
LOST_SHOWN = 3
"""Of what an incomplete image lacks; the rest is counted."""


async def check_choice(disk: Disk, survey: Survey, ended: str, report: PowerReport | None, open_image: str) -> None:
    """Raises FailedPrecondition with the choices unless one of them is named, or none is needed."""
    unsaved = ended == INCOMPLETE or is_unsaved(report)
    if survey.state == "complete" or (survey.state == "none" and not unsaved and ended != MISSING):
        return
    choices = _choices(survey)
    if open_image in choices:
        return
    found = [await _found(disk, survey, unsaved=unsaved)]
    if report is not None and (unsaved or ended not in ("", CLEAN)):
        found.append(f"last loss of the mains: {words(report)}")
    elif unsaved:
        found.append("its mains were lost, and the storage took not even a report of it")
    if ended:
        found.append(f"its last life ended like this: {ended}")
    ways = "; ".join(f"`everram up --open {name}` {what}" for name, what in choices.items())
    raise FailedPrecondition(
        f"{'; '.join(found)}. Choose: {ways} (`everram power on HOST --open ...` if the cluster is up); "
        "`everram down --discard` erases it"
    )


def _choices(survey: Survey) -> dict[str, str]:
    choices = {}
    if survey.state == "incomplete":
        choices["incomplete"] = f"takes what was saved of generation {survey.generation}"
    if survey.marker is not None:
        choices["opened"] = f"takes generation {survey.marker.generation} ({survey.marker.cause}) as it was saved"
    choices[EMPTY] = "starts with empty memory"
    return choices


async def _found(disk: Disk, survey: Survey, *, unsaved: bool) -> str:
    if survey.state == "incomplete":
        found = f"the saved memory of this machine is incomplete (generation {survey.generation}): {survey.reason}"
        found += await _missing(disk, survey)
        if survey.marker is not None:
            found += f"; an older image (generation {survey.marker.generation}) is there too"
        return found
    if unsaved:
        older = "" if survey.marker is None else f"; an older image (generation {survey.generation}) is there"
        return f"this machine lost its mains, and nothing of its memory was saved{older}"
    if survey.state == "none":
        return (
            "the memory of this machine was saved when it was stopped, and the image is not there any more: put its "
            "folder back"
        )
    return (
        f"the saved memory of this machine (generation {survey.generation}) was opened before, and what guests wrote "
        "since was not saved"
    )


async def _missing(disk: Disk, survey: Survey) -> str:
    """What an image that is not whole lacks, as far as its catalog says."""
    try:
        image = await Image.open(disk, survey.generation, None)
    except DataLoss as error:
        return f"; nothing of it can be read: {error.message}"
    try:
        lost = image.lost
    finally:
        await image.close()
    more = f" and {len(lost) - LOST_SHOWN} more" if len(lost) > LOST_SHOWN else ""
    return f"; missing are {', '.join(lost[:LOST_SHOWN])}{more}" if lost else ""
