"""Counts on, whatever happens to it: `everram run --region counter=4KiB -- python examples/counter.py`."""

import time

from everram.runtime import guest

me = guest.attach()
counter = me.records("counter", "<Q")
while True:
    counter[0] = (counter[0][0] + 1,)  # one transaction: done or not done, whatever dies
    print(f"{me.name} has counted to {counter[0][0]}", flush=True)
    time.sleep(1)
