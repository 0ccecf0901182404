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
    listener = Listener(memory)
    while True:
        question = listener.attend()
        futex.wait(table_address + QUESTION_OFFSET, question, LOOK_S)


class Listener:
    """What is done each time the host rings, or might have."""

    def __init__(self, memory: Volatile) -> None:
        self._memory = memory
        self._aged = memory.classes.tick

    def attend(self) -> int:
        """The question that was answered; until there is another one there is nothing to do."""
        memory, classes = self._memory, self._memory.classes
        question = classes.question
        try:
            while memory.obey():
                classes.set_answer(classes.question)
        except Exception:  # of the program's own `on_pressure`, which is not asked again
            traceback.print_exc()
            memory.on_pressure = None
        classes.set_answer(question)
        if classes.tick - self._aged >= OLDEST // 4:
            self._aged = classes.tick
            classes.forget_old()
        return question


memories: weakref.WeakSet[Volatile] = weakref.WeakSet()


def _after_fork_in_child() -> None:
    for memory in memories:
        memory.detach()


os.register_at_fork(after_in_child=_after_fork_in_child)
