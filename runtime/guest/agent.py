"""The guest's end of its balloon: a thread that listens to the host and has the guest's memory obey.

The host rings by raising a word in the shared table and waking whoever waits for it; the agent answers by repeating the
word, so a host knows within a moment whether anybody is there. A program that is busy for long, or stopped, answers
late: the host then goes by what it sees from outside.
"""

from __future__ import annotations

import os
import threading
import traceback
import weakref

from everram.runtime.formats.page_classes import OLDEST, QUESTION_OFFSET
from everram.runtime.guest.volatile import Volatile
from everram.runtime.memory import futex

LOOK_S = 0.5
"""The longest sleep: a wake-up may be lost with the host that rang."""


def start(memory: Volatile, table_address: int) -> None:
    """The thread ends with the process; a forked child has none."""
    threading.Thread(target=_listen, args=(memory, table_address), name="everram memory", daemon=True).start()
    memories.add(memory)


def _listen(memory: Volatile, table_address: int) -> None:
    classes, aged = memory.classes, memory.classes.tick
    while True:
        question = classes.question
        try:
            while memory.obey():
                classes.set_answer(classes.question)
        except Exception:  # of the program's own `on_pressure`, which is not asked again
            traceback.print_exc()
            memory.on_pressure = None
        classes.set_answer(question)
        if classes.tick - aged >= OLDEST // 4:
            aged = classes.tick
            classes.forget_old()
        futex.wait(table_address + QUESTION_OFFSET, question, LOOK_S)


memories: weakref.WeakSet[Volatile] = weakref.WeakSet()


def _after_fork_in_child() -> None:
    for memory in memories:
        memory.detach()


os.register_at_fork(after_in_child=_after_fork_in_child)
