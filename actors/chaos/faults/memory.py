"""What happens to a host while pages of its guests are in the swap file."""

from __future__ import annotations

import asyncio

from everram.actors.chaos.fault import Fault, Kind, Scene
from everram.actors.memory_scheduler.swap_file import NAME
from everram.runtime.memory.contract import PAGE_BYTES


async def _swap_rot(scene: Scene, fault: Fault) -> None:
    """One bit of each page in the swap file is another for a while: no guest may ever see that."""
    media = scene.world.media(fault.host)
    file = media.files.get(NAME)
    rotting = f"swap file of {fault.host}"
    if file is None or rotting in scene.cycling:
        return
    scene.cycling.add(rotting)
    at, bit = fault.count, 1 << fault.count % 8
    rotten: dict[int, bytes] = {}
    for start in range(PAGE_BYTES, len(file.cached) - PAGE_BYTES, PAGE_BYTES):
        file.cached[start + at] ^= bit
        rotten[start] = bytes(file.cached[start : start + PAGE_BYTES])
    await asyncio.sleep(fault.length_s)
    for start, content in rotten.items():
        if file.cached[start : start + PAGE_BYTES] == content:  # nobody has written another page there
            file.cached[start + at] ^= bit
    scene.cycling.discard(rotting)


KINDS = {
    "swap-rot": Kind(_swap_rot, weight=0),
}
