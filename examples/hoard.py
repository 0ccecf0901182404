"""A guest with volatile memory: fills some of it, frees all but a part, and goes on reading that part.

    everram run -d --memory 200MiB -- python examples/hoard.py 180 20        # MiB filled, and kept

What it does not keep its host may have back; what it keeps is verified every second, wherever it was meanwhile.
"""

from __future__ import annotations

import sys
import time

from everram.runtime import guest

MIB = 1 << 20


def content(number: int) -> bytes:
    return number.to_bytes(8, "little") * (MIB // 8)


def main() -> None:
    filled, kept = int(sys.argv[1]), int(sys.argv[2])
    memory = guest.attach().memory
    blocks = []
    for number in range(filled):
        block = memory.allocate(MIB)
        block.store(0, content(number))
        blocks.append(block)
    while len(blocks) > kept:
        memory.free(blocks.pop())
    print(f"filled {filled} MiB, keeps {kept}", flush=True)
    while True:
        for number, block in enumerate(blocks):
            if block.load() != content(number):
                print(f"block {number} is not what was stored", flush=True)
                return
        time.sleep(1)


if __name__ == "__main__":
    main()
