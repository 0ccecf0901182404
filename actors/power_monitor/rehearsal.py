"""A rehearsal: how long a loss of the mains would take now, without one.

The guests stand still for as long as it takes to stop them, and a piece of the memory is really written to the storage,
beside the image, to measure how fast that is. Nothing else changes.
"""

from __future__ import annotations

import asyncio
import contextlib

from everram.actors.power_monitor.save import pieces_of, saved_objects
from everram.runtime.actor import ActorContext
from everram.runtime.contracts.power_monitor_pb2 import Rehearsal
from everram.runtime.errors import InvalidArgument

FREEZE_REASON = "rehearsal"
"""Of its own: whatever a loss of the mains has stopped meanwhile stays so, and a host that finds it takes it away."""
SAMPLE = "power/rehearsal"
SAMPLE_BYTES = 128 << 20
"""Of the memory: a disk's own cache has no say in it any more."""


async def rehearse(context: ActorContext, pause: asyncio.Lock, bytes_to_save: int) -> Rehearsal:
    """`pause` is held while the guests stand still. Raises ResourceExhausted where the storage has no room for the
    sample."""
    environment = context.environment
    clock = environment.clock
    answer = Rehearsal(battery_s=environment.machine.battery_s)
    async with pause:
        began_ns = clock.now_ns()
        try:
            await environment.machine.freeze("", FREEZE_REASON)
            answer.freeze_s = (clock.now_ns() - began_ns) / 1e9
        finally:
            with contextlib.suppress(InvalidArgument):  # of a machine that does not know the reason: say that first
                await environment.machine.thaw("", FREEZE_REASON)
    objects = saved_objects(environment.memory)
    answer.memory_bytes = bytes_to_save
    written = 0
    file = await environment.disk.open(SAMPLE, create=True)
    try:
        began_ns = clock.now_ns()
        for one in objects:
            for offset, length in pieces_of(one):
                if written < SAMPLE_BYTES:
                    await file.pwrite(written, one.read(offset, length))
                    written += length
                    await asyncio.sleep(0)
        await file.sync()
        took_s = (clock.now_ns() - began_ns) / 1e9
    finally:
        await file.close()
        await environment.disk.remove(SAMPLE)
    answer.bytes_per_s = written / took_s if took_s else 0.0
    answer.save_s = answer.memory_bytes / answer.bytes_per_s if answer.bytes_per_s else 0.0
    answer.margin_s = answer.battery_s - answer.freeze_s - answer.drain_s - answer.save_s
    return answer
