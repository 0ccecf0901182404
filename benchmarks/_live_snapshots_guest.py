"""The guest of `_live_snapshots.py`: stores to its region at full speed, or looks at the clock, and notes when.

It prints "ready", goes on for so many seconds, prints one JSON object and sleeps until it is stopped. Times are of
CLOCK_MONOTONIC, which is the same for all processes of a computer.

    stamp   time after time: the longest gaps between two looks, as (end_ns, gap_ns)
    write   stores of a word to each page of a hot set in turn: how many in each bucket, as (end_ns, stores)
"""

from __future__ import annotations

import argparse
import json
import signal
import time

from everram.runtime import guest

PAGE_BYTES = 4096
WORDS_PER_PAGE = PAGE_BYTES // 8
GAPS = 50
BUCKET_NS = 2_000_000


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=("stamp", "write"))
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--map", action="store_true", help="touch every page first")
    parser.add_argument("--hot-bytes", type=int, default=10 << 20)
    arguments = parser.parse_args()
    words = guest.attach().region("data").view.cast("Q")
    if arguments.map:
        for word in range(0, len(words), WORDS_PER_PAGE):
            words[word] = 1
    hot = range(0, arguments.hot_bytes // 8, WORDS_PER_PAGE)
    print("ready", flush=True)
    until_ns = time.monotonic_ns() + int(arguments.seconds * 1e9)
    result = stamp(until_ns) if arguments.what == "stamp" else write(words, hot, until_ns)
    print(json.dumps(result), flush=True)
    signal.pause()


def stamp(until_ns: int) -> list[tuple[int, int]]:
    clock = time.monotonic_ns
    gaps: list[tuple[int, int]] = []
    least = 0
    before_ns = now_ns = clock()
    while now_ns < until_ns:
        now_ns = clock()
        if now_ns - before_ns > least:
            gaps.append((now_ns, now_ns - before_ns))
            if len(gaps) > 2 * GAPS:
                gaps = sorted(gaps, key=lambda gap: gap[1])[-GAPS:]
                least = gaps[0][1]
        before_ns = now_ns
    return sorted(gaps, key=lambda gap: gap[1])[-GAPS:]


def write(words: memoryview, hot: range, until_ns: int) -> list[tuple[int, int]]:
    clock = time.monotonic_ns
    buckets: list[tuple[int, int]] = []
    value = stores = 0
    end_ns = clock() + BUCKET_NS
    while end_ns < until_ns:
        value += 1
        for word in hot:
            words[word] = value
            stores += 1
            if not stores & 63 and clock() > end_ns:
                end_ns = clock()
                buckets.append((end_ns, stores))
                stores = 0
                end_ns += BUCKET_NS
    return buckets


if __name__ == "__main__":
    main()
