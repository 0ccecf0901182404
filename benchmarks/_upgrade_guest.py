"""The guest of `upgrade.py`: looks at the clock over and over, with naps in between whose length in seconds is its
argument, and notes the longest gaps as (end_ns, gap_ns) of CLOCK_MONOTONIC, which all processes share.

It touches its whole region, prints "ready", and at SIGTERM prints what it noted as one JSON object a line.
"""

from __future__ import annotations

import json
import signal
import sys
import time

from everram.runtime import guest

PAGE_WORDS = 512
NAP_S = float(sys.argv[1])
NOTED_NS = int(1.3e9 * NAP_S) + 150_000
"""Shorter gaps are the nap itself."""


def main() -> None:
    words = guest.attach().region("data").view.cast("Q")
    for word in range(0, len(words), PAGE_WORDS):
        words[word] = word
    enough = False

    def stop(number: int, frame: object) -> None:
        nonlocal enough
        enough = True

    signal.signal(signal.SIGTERM, stop)
    print("ready", flush=True)
    clock, nap = time.monotonic_ns, time.sleep
    gaps: list[tuple[int, int]] = []
    before_ns = clock()
    while not enough:
        nap(NAP_S)
        now_ns = clock()
        if now_ns - before_ns > NOTED_NS:
            gaps.append((now_ns, now_ns - before_ns))
        before_ns = now_ns
    intact = all(words[word] == word for word in range(0, len(words), PAGE_WORDS))
    print(json.dumps({"gaps": gaps, "intact": intact}), flush=True)
    sys.exit(0)


if __name__ == "__main__":
    main()
